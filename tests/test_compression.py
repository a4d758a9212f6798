"""prune_fe.compress: one call from a trained network to a smaller one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prune_fe
from prune_fe.data.digits import digits
from prune_fe.errors import InputError
from prune_fe.experiment import compression as steps
from prune_fe.experiment.compression import Compression
from prune_fe.experiment.recipe import load_recipe
from prune_fe.report.loading import load_findings
from prune_fe.report.page import Figures
from prune_fe.report.sections import report_sections
from prune_fe.training.loop import finetune

DATA = digits(12, validation=0.5)
QUICK: dict[str, Any] = {"epochs": 1, "samples": 5, "scorer": "l1-filter", "device": "cpu"}


class Net(nn.Module):
    """A network of the user's own, which no library can build."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.last = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.two(self.norm(self.one(x)).relu()).relu().amax((2, 3)))


@pytest.fixture(autouse=True, scope="module")
def _short_timings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        whole = steps.compare_latency
        patch.setattr(steps, "compare_latency", lambda *a, **b: whole(*a, **b, seconds=0.01))
        yield


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    network = Net()
    options = {"lr": 0.1, "schedule": "cosine", "epochs": 3, "batch_size": 32}
    finetune(network, DATA.train, DATA.validation, **options)  # type: ignore[arg-type]
    return network


@pytest.fixture(scope="module")
def done(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Compression:
    folder = tmp_path_factory.mktemp("compressed") / "net"
    return prune_fe.compress(net, DATA, output=folder, export="torch-export", **QUICK)


def test_half_of_the_multiply_adds_is_left_and_everything_is_in_the_folder(done: Any) -> None:
    assert done.macs_left == pytest.approx(0.5, abs=0.05)
    names = {path.name for path in done.folder.iterdir()}
    assert names >= {"model", "model.pt2", "export.json", "latency.json", "report.html", "recipe.yaml", "summary.csv"}
    recipe = load_recipe(done.folder / "recipe.yaml")
    assert recipe.finetune is not None
    assert (recipe.prune.target_macs, recipe.prune.recalibrate, recipe.finetune.epochs) == (0.5, 500, 1)
    assert done.exported["relative_difference"] < 1e-5


def test_the_three_lines_are_those_of_the_results(done: Any) -> None:
    cost, time, accuracy = str(done).splitlines()
    assert cost.startswith(f"{100 * done.macs_left:.3g} % of the multiply-adds")
    assert "batch 1, " in time
    before, after = done.before.row.accuracy, done.after.row.accuracy
    assert accuracy.startswith(f"accuracy {100 * before:.1f} → {100 * after:.1f} % (")
    assert accuracy.endswith("95 % interval, 360 test images)")
    assert before == pytest.approx(prune_fe.evaluate(done_start(done), DATA.test).accuracy)


def test_the_report_has_the_figures_of_the_three_lines(done: Any) -> None:
    figures = next(iter(next(iter(report_sections(load_findings(done.folder)))).blocks))
    assert isinstance(figures, Figures)
    (cost, _), (time, _), (accuracy, change) = figures.figures
    lines = str(done).splitlines()
    assert lines[0].startswith(f"{cost} of the multiply-adds")
    assert lines[1].startswith("times not comparable") if time == "–" else f"{time} as fast" in lines[1]
    change = change.removeprefix("test accuracy: ").partition(" points")[0]
    assert lines[2].startswith(f"accuracy {accuracy} ({change}; 95 % interval")


def done_start(done: Any) -> nn.Module:
    return prune_fe.load(done.folder / "seed-0" / "trained", Net())


def test_the_saved_network_is_the_measured_one(done: Any) -> None:
    model = prune_fe.load(done.folder / "model", Net())
    assert prune_fe.evaluate(model, DATA.test).accuracy == done.after.row.accuracy
    assert prune_fe.cost(model, DATA.test[0][0][None]).macs == done.after.row.macs


def test_the_same_call_computes_nothing_again(done: Any, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compare_latency", "export"):
        monkeypatch.setattr(steps, name, lambda *_, **__: pytest.fail("done already"))
    monkeypatch.setattr("prune_fe.experiment.run.compress", lambda *_, **__: pytest.fail("done already"))
    again = prune_fe.compress(net, DATA, output=done.folder, export="torch-export", **QUICK)
    assert str(again) == str(done)


def test_what_was_interrupted_goes_on(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(steps, "export", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prune_fe.compress(net, DATA, output=tmp_path / "a", export="torch-export", **QUICK)
    assert not (tmp_path / "a" / "export.json").exists()
    (tmp_path / "a" / "model.pt2").write_text("what a killed process has left")
    result = prune_fe.compress(net, DATA, output=tmp_path / "a", export="torch-export", **QUICK)
    assert json.loads((tmp_path / "a" / "export.json").read_text())["path"] == "model.pt2"
    assert result.exported is not None


def test_other_weights_in_the_same_folder_are_refused(done: Any) -> None:
    with pytest.raises(InputError, match="was begun with other weights of the network; choose another --output"):
        prune_fe.compress(Net(), DATA, output=done.folder, export="torch-export", **QUICK)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorers": "taylor"}, "scorers: no such option; did you mean 'scorer'"),
        ({"scorer": "tailor"}, "unknown scorer 'tailor'; did you mean 'taylor'?"),
        ({"target_macs": 2.0}, "target_macs"),
        ({"data": [1]}, "data is a list; it must be what prune_fe.folder"),
        ({"output": __file__}, "exists already; choose another output"),
    ],
)
def test_wrong_settings_are_refused(net: nn.Module, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"data": DATA, "output": tmp_path / "new"} | settings
    with pytest.raises(InputError, match=message):
        prune_fe.compress(net, **arguments)
    assert not (tmp_path / "new").exists()
