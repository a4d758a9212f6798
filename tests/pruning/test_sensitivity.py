"""Each group is measured as prune() would cut it, once, and an interrupted measurement goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prune_fe.errors import CheckpointError, InputError
from prune_fe.measure.evaluate import evaluate
from prune_fe.pruning import sensitivity as module
from prune_fe.pruning.loss_curves import FILE_NAME, Sensitivity, load_sensitivity
from prune_fe.pruning.prune import prune
from prune_fe.pruning.sensitivity import UNFINISHED, sensitivity
from prune_fe.scoring.score import score
from prune_fe.scoring.scores import Scores

RATIOS = (0.1, 0.5, 0.75)


class Net(nn.Module):
    """Has layers that a sum ties together, one in two parts, and a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.parts = nn.Conv2d(8, 8, 3, groups=2)
        self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        return self.head(self.hidden(self.parts(x).relu().mean((2, 3))).relu())


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(30, 3, 8, 8, generator=generator), torch.arange(30) % 4)


def scored(net: nn.Module) -> Scores:
    return score(net, scorer="l1-filter", example=torch.zeros(1, 3, 8, 8), linear=True)


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    calls: list[Any] = []
    original = getattr(module, name)

    def counted(*args: Any, **keywords: Any) -> Any:
        calls.append(args)
        return original(*args, **keywords)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_every_point_is_the_network_that_prune_makes(
    net: Net, images: TensorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    analyses = count_calls(monkeypatch, "analyse")
    reported: list[tuple[int, int]] = []
    scores = scored(net)
    found = sensitivity(net, scores, images, ratios=RATIOS, batch_size=7, progress=lambda *step: reported.append(step))
    assert len(analyses) == 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    whole = evaluate(net, images)
    assert (found.accuracy, found.images) == (whole.accuracy, 30)
    assert found.loss == pytest.approx(whole.loss, abs=1e-6)
    layers = [("stem", "outer"), ("inner",), ("parts",), ("hidden",)]
    assert [(curve.layers, curve.reason) for curve in found.curves] == [(names, None) for names in layers]
    for curve in found.curves:
        assert [point.ratio for point in curve.points] == list(RATIOS)
        for point in curve.points:
            alone = dict.fromkeys(curve.layers, point.ratio)
            if point.removed == 0:
                assert (point.macs, point.parameters, point.loss) == (1, 1, pytest.approx(whole.loss, abs=1e-6))
                continue
            pruned = prune(net, scores, alone, images[0][0][None])
            result = evaluate(pruned.model, images)
            assert (point.accuracy, point.macs, point.parameters) == (result.accuracy, pruned.macs, pruned.parameters)
            assert point.loss == pytest.approx(result.loss, abs=1e-6)
            assert point.removed == sum(step.count for step in pruned.steps)
    assert [point.removed for point in found.curves[2].points] == [2, 4, 6]  # of two parts
    assert reported[-1] == (13, 13)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)


def test_the_kind_of_data_and_the_batches_change_nothing(net: Net, images: TensorDataset) -> None:
    scores = scored(net)
    one = sensitivity(net, scores, images, ratios=[0.5])
    other = sensitivity(net, scores, DataLoader(images, 4), ratios=[0.5], example=torch.zeros(1, 3, 8, 8))
    assert one.about == other.about
    assert [p.loss for c in one.curves for p in c.points] == pytest.approx(
        [p.loss for c in other.curves for p in c.points], abs=1e-6
    )


def test_a_group_without_scores_has_no_points_and_a_reason(net: Net, images: TensorDataset) -> None:
    scores = score(net, scorer="l1-filter", example=torch.zeros(1, 3, 8, 8), layers=["stem", "outer"])
    found = sensitivity(net, scores, images, ratios=[0.5])
    reasons = {curve.layers: (len(curve.points), curve.reason) for curve in found.curves}
    assert reasons == {("stem", "outer"): (1, None), ("inner",): (0, "not scored"), ("parts",): (0, "not scored")}


class Stop(Exception):
    pass


def test_an_interrupted_measurement_goes_on(
    net: Net, images: TensorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, expected = scored(net), sensitivity(net, scored(net), images, ratios=RATIOS)
    calls = count_calls(monkeypatch, "evaluate")

    def stop_in_the_third_group(done: int, _: int) -> None:
        if done == 9:
            raise Stop

    folder = tmp_path / "deep" / "er"
    with pytest.raises(Stop):
        sensitivity(net, scores, images, ratios=RATIOS, folder=folder, progress=stop_in_the_third_group)
    names = {path.name for path in (folder / UNFINISHED).iterdir()}
    assert names == {"about.json", "network.json", "group-0001.json", "group-0002.json"}
    with pytest.raises(CheckpointError, match=r"sensitivity.json: no such file; prune-fe sensitivity writes one"):
        load_sensitivity(folder)
    del calls[:]
    assert sensitivity(net, scores, images, ratios=RATIOS, folder=folder) == expected
    assert 0 < len(calls) <= 6  # of two groups
    del calls[:]
    assert sensitivity(net, scores, images, ratios=RATIOS, folder=folder) == expected == load_sensitivity(folder)
    assert calls == []
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == [FILE_NAME]


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_something_else_is_refused(net: Net, images: TensorDataset, tmp_path: Path, finished: bool) -> None:
    scores = scored(net)

    def stop(done: int, _: int) -> None:
        if not finished and done == 3:
            raise Stop

    def measure(**changed: Any) -> Sensitivity:
        given: dict[str, Any] = {"model": net, "scores": scores, "data": images, "ratios": [0.5]} | changed
        return sensitivity(**given, folder=tmp_path, progress=stop)

    with pytest.raises(Stop) if not finished else np.errstate():
        measure()
    heavier = Net().eval()
    heavier.load_state_dict(net.state_dict())
    with torch.no_grad():
        heavier.head.bias.add_(1)
    brighter = TensorDataset(images.tensors[0] + 1, images.tensors[1])
    labelled = TensorDataset(images.tensors[0], images.tensors[1].flip(0))
    random = score(net, scorer="random", example=torch.zeros(1, 3, 8, 8), linear=True)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": heavier}, "weights"),
        ({"scores": random}, "scores"),
        ({"data": brighter}, "images"),
        ({"data": labelled}, "images"),
        ({"ratios": [0.25]}, "ratios"),
        ({"reduction": "max", "ratios": [0.25]}, "reduction, ratios"),
    ]
    for changed, what in cases:
        with pytest.raises(
            InputError, match=rf"holds a measurement with another choice of {what}; choose another folder"
        ):
            measure(**changed)


def test_a_damaged_file_is_named(net: Net, images: TensorDataset, tmp_path: Path) -> None:
    sensitivity(net, scored(net), images, ratios=[0.5], folder=tmp_path)
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text().replace('"units": 8', '"units": 9', 1))
    with pytest.raises(CheckpointError, match=r"sensitivity.json: damaged"):
        load_sensitivity(tmp_path)
    path.write_text(json.dumps({"curves": [], "accuracy": "high", "loss": 1.0, "images": 2}))
    with pytest.raises(CheckpointError, match=r"sensitivity.json: damaged \(not a sensitivity file"):
        load_sensitivity(tmp_path)


def test_a_cut_that_is_not_sound_ends_the_curve(
    net: Net, images: TensorDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module._Measurement._find_fault

    def find_fault(self: Any, number: int, removed: list[Any]) -> str | None:
        return "unsound" if number == 1 and len(removed) > 3 else original(self, number, removed)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Measurement, "_find_fault", find_fault)
    found = sensitivity(net, scored(net), images, ratios=RATIOS)
    assert [point.ratio for point in found.curves[1].points] == [0.1, 0.5]
    assert found.curves[1].reason == "unsound"
    assert [len(curve.points) for curve in found.curves] == [3, 2, 3, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratios": []}, "ratios: list should have at least 1 item"),
        ({"ratios": [0.5, 0.25]}, r"ratios: 0.5, 0.25: write each ratio once, the smallest first"),
        ({"ratios": [0.5, 1.0]}, r"ratios.1: input should be less than 1"),
        ({"ratio": 0.5}, "ratio: unknown key; did you mean 'ratios'"),
        ({"scores": 3}, "scores is a int; sensitivity.. needs what prune_fe.score returns"),
        ({"recovery": 3}, r"recovery is a int; it must be a Recovery\(description, apply\)"),
        ({"progress": 3}, "progress is a int; it must be a function"),
        ({"logits": 3}, "logits is a int; it must be a function"),
    ],
)
def test_wrong_arguments_are_refused(net: Net, images: TensorDataset, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sensitivity(**{"model": net, "scores": scored(net), "data": images, **given})
