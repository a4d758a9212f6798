"""Cumulative ablation of a recipe's networks: against ablate() on each class's own scores; resume, faults, figure."""

import csv
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml

import prune_fe
from prune_fe.ablation.trial import Ablation, Trial
from prune_fe.cli.app import main
from prune_fe.data.images import Rescaled, digits, held_out
from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.measure.statistics import kendall, spearman
from prune_fe.report.tables import Table
from prune_fe.scorers.class_selectivity import ClassSelectivity
from prune_fe.studies import cumulative
from prune_fe.studies.cumulative import ablation_study
from prune_fe.studies.cumulative_report import Network, agreement, per_class, scorers_of

CLASSES = ["3", "7"]
UNITS = 8
RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "data": {"source": "digits", "size": 12},
        "model": {"name": "vgg-small", "arguments": {"stages": [[4], [UNITS]]}},
        "train": {"lr": 0.05, "schedule": "cosine", "epochs": 1, "batch_size": 64},
        "score": {"samples": 20},
        "scorers": ["l1-filter", "l1-activation", "class-selectivity", "random"],
        "ablate": {"control_seeds": 2, "every": 3},
        "seeds": [1, 4],
    }
)


class Silent:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, task: str) -> Callable[[int, int], None]:
        return lambda done, total: None


def study(folder: Path, recipe: Recipe = RECIPE, classes: list[str] | None = CLASSES, **options: Any) -> list[Table]:
    folder.mkdir(exist_ok=True)
    where = RunFolder(folder, recipe.model_dump(mode="json"))
    try:
        return ablation_study(recipe, where, Silent(), classes=classes, **options)
    finally:
        where.close()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Table], list[Network]]:
    """A finished study: its folder, its tables, and what they are made of."""
    folder, kept = tmp_path_factory.mktemp("study"), []
    with pytest.MonkeyPatch.context() as patch:
        tabled = cumulative.tabled

        def keeping(networks: Any) -> list[Table]:
            kept.append(networks)
            return tabled(networks)

        patch.setattr(cumulative, "tabled", keeping)
        tables = study(folder)
    return folder, tables, kept[0]


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("number", [0, 1])
def test_each_class_goes_by_the_scores_of_its_own_images(done: Any, order: str, number: int) -> None:
    folder, _, networks = done
    network, label = networks[1], int(CLASSES[number])
    model = prune_fe.load(folder / "seed-4/trained")
    splits = held_out(digits(12), RECIPE.data.validation, 4)
    test = Rescaled.at_random(splits.test, 0.5, 1.5, 4)
    options: dict[str, Any] = {"samples": 20, "seed": 4, "layers": ["features.4"]}
    found = {
        "l1-activation": prune_fe.score(model, splits.train, "l1-activation", classes=[label], **options),
        "class-selectivity": prune_fe.score(model, splits.train, ClassSelectivity(of=label), **options),
        "l1-filter": prune_fe.score(model, None, "l1-filter", layers=["features.4"], example=torch.zeros(1, 1, 12, 12)),
    }
    for name, scores in found.items():
        np.testing.assert_allclose(network.keep[name][number], scores.keep["features.4"], rtol=1e-5)
        alone = prune_fe.ablate(
            model, test, scores, "features.4", order, every=3, classes=[label]  # type: ignore[arg-type]
        )  # fmt: skip
        study = network.ablations[name][order]
        assert study.removed.tolist() == alone.removed.tolist() == [0, 3, 6, 8]
        np.testing.assert_array_equal(study.hits[:, number], alone.hits[:, 0])
        np.testing.assert_array_equal(study.called[:, number], alone.called[:, 0])
        np.testing.assert_allclose(study.loss[:, number], alone.loss[:, 0], rtol=1e-5)
        np.testing.assert_allclose(study.peak_held_out[number], alone.peak_held_out[0])


def test_the_control_is_random_and_its_seeds_differ(done: Any) -> None:
    _, _, networks = done
    scorers = scorers_of(networks)
    assert scorers["random"] == ["random#0", "random#1"]
    rows = [network.keep[label][0].tolist() for network in networks for label in scorers["random"]]
    assert all(sorted(row) == list(range(UNITS)) for row in rows)
    assert len({tuple(row) for row in rows}) == 4


def test_single_units_are_what_scores_are_correlated_with(done: Any) -> None:
    _, tables, networks = done
    each = networks[0].each
    assert each.removed.tolist() == [0] + [1] * UNITS
    assert each.classes == tuple(CLASSES)
    suffered = each.loss[1:] - each.loss[0]
    perfect = Network(1, {}, {"a": suffered.T, "b": -suffered.T}, each)
    assert agreement([perfect], ["a"], spearman) == pytest.approx([1, 1])
    assert agreement([perfect], ["b"], kendall) == pytest.approx([-1, -1])
    assert set(tables[-1].rows) == {"l1-filter", "l1-activation", "class-selectivity", "random"}


def test_table_11_says_the_peak_and_what_is_chosen_on_the_other_half(done: Any) -> None:
    _, tables, networks = done
    table = next(table for table in tables if table.title.startswith("Table 11"))
    cells = table.rows["l1-activation"]
    both = [network.ablations["l1-activation"]["descending"] for network in networks]
    assert cells["unchanged"].mean == pytest.approx(np.mean([each.balanced_accuracy[0] for each in both]))
    assert cells["best"].mean == pytest.approx(np.mean([each.balanced_accuracy.max(axis=0) for each in both]))
    held = []
    for each in both:
        for chosen, reported in (each.halves, each.halves[::-1]):
            steps = chosen.balanced_accuracy.argmax(axis=0)
            held += [reported.balanced_accuracy[step, number] for number, step in enumerate(steps)]
    assert cells["chosen on the other half"].mean == pytest.approx(np.mean(held))
    assert cells["chosen on the other half"].mean <= cells["best"].mean + 0.05
    random = per_class(networks, scorers_of(networks)["random"], "descending", lambda a: a.peak_held_out)
    assert cells["difference to random"].mean == pytest.approx(np.mean(held) - random.mean())


def test_the_files_hold_every_class_and_step(done: Any) -> None:
    folder, _, networks = done
    with (folder / "ablation-features.4.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 5 * 2 * 2  # seeds, labels, orders, classes
    row = next(
        r for r in rows if (r["seed"], r["scorer"], r["order"], r["class"]) == ("4", "l1-filter", "ascending", "7")
    )
    assert float(row["area"]) == pytest.approx(networks[1].ablations["l1-filter"]["ascending"].area[1])
    with (folder / "ablation-features.4-curves.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 5 * 2 * 4
    assert "5, 1.5" in (folder / "ablation-features.4.md").read_text()
    assert (folder / "ablation-features.4.svg").read_text().count("random") >= 1


def test_finished_curves_are_used_again(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tables, _ = done

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(Trial, "run", never)
    again = study(folder)
    assert [table.markdown() for table in again] == [table.markdown() for table in tables]


def test_a_killed_study_goes_on_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPE.model_copy(update={"seeds": [1]})
    whole = study(tmp_path / "whole", recipe)
    run, calls = Trial.run, 0

    def dies(self: Trial, *arguments: Any, **options: Any) -> Ablation:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return run(self, *arguments, **options)

    monkeypatch.setattr(Trial, "run", dies)
    monkeypatch.setattr(cumulative, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "killed", recipe)
    first, calls = calls, 6
    again = study(tmp_path / "killed", recipe)
    assert [table.markdown() for table in again] == [table.markdown() for table in whole]
    every = 1 + 2 * (2 * 2 + 3)  # each unit; two orders of two scorers by class, and of three that are the same for all
    assert (first - 1) + (calls - 6) == every


def test_a_study_of_one_class_takes_the_curves_of_all(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, networks = done
    monkeypatch.setattr(Trial, "run", lambda *_, **__: pytest.fail("run again"))
    one = study(folder, classes=["7"])
    mean = (
        networks[0].ablations["l1-filter"]["ascending"].area[1]
        + networks[1].ablations["l1-filter"]["ascending"].area[1]
    )
    assert one[0].rows["l1-filter"]["area under accuracy"].mean == pytest.approx(mean / 2)


def test_curves_that_are_no_use_are_named(done: Any) -> None:
    folder, _, _ = done
    curve = folder / "seed-1/ablation/features.4/l1-filter.ascending.npz"
    good = curve.read_bytes()
    curve.write_bytes(good[: len(good) // 2])
    with pytest.raises(CheckpointError, match="l1-filter.ascending.npz: damaged"):
        study(folder)
    curve.write_bytes((curve.parent / "l1-filter.descending.npz").read_bytes())
    with pytest.raises(InputError, match="is of other scores than these; choose another run folder"):
        study(folder)
    curve.write_bytes(good)


def test_one_class_has_no_interval_and_no_verdict(done: Any) -> None:
    folder, _, _ = done
    one = study(folder, classes=["7"])
    assert "[" not in one[0].text("l1-filter", "area under accuracy")
    assert one[0].note == "One class: there is nothing that could tell the scorers apart."
    with pytest.raises(InputError, match="classes: one of them stands twice"):
        study(folder, classes=["7", "7"])


def test_bad_input_is_said_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cumulative, "trained", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match="class '12': no such class"):
        study(tmp_path / "a", classes=["12"])
    with pytest.raises(InputError, match="layer 'features.9': the model has no such module"):
        study(tmp_path / "b", layers=["features.9"])


def test_scorers_that_cannot_judge_the_layer_are_left_out_and_said(
    done: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pooling has no filters; the network that lies in the folder is not trained again."""
    folder, _, _ = done
    monkeypatch.setattr("prune_fe.experiment.run.fit", lambda *_: pytest.fail("trained again"))
    report, where = Silent(), RunFolder(folder, RECIPE.model_dump(mode="json"))
    tables = ablation_study(RECIPE, where, report, layers=["features.3"], classes=CLASSES)
    assert any("l1-filter is left out: layer 'features.3'" in text for text in report.said)
    assert set(tables[0].rows) == {"l1-activation", "class-selectivity", "random"}
    alone = RECIPE.model_copy(update={"scorers": RECIPE.scorers[:1]})
    with pytest.raises(InputError, match="'features.3' is a MaxPool2d and has no filters"):
        study(tmp_path, alone, layers=["features.3"])
    where.close()


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_of_several_layers_the_same_share_is_taken(
    done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Literal["ascending", "descending"]
) -> None:
    shutil.copytree(done[0] / "seed-1", tmp_path / "seed-1")
    networks: list[Network] = []
    monkeypatch.setattr(cumulative, "SHARES", (0, 0.25, 0.5, 1))

    def keeping(found: list[Network]) -> list[Table]:
        networks.extend(found)
        return []

    monkeypatch.setattr(cumulative, "tabled", keeping)
    study(tmp_path, RECIPE.model_copy(update={"seeds": [1]}), layers=["features.*"])
    splits = held_out(digits(12), RECIPE.data.validation, 1)
    test = Rescaled.at_random(splits.test, 0.5, 1.5, 1)
    model = prune_fe.load(tmp_path / "seed-1/trained")
    layers = ["features.0", "features.4"]
    for number, name in enumerate(CLASSES):
        scores = prune_fe.score(
            model, splits.train, "l1-activation", classes=[int(name)], samples=20, seed=1, layers=layers
        )
        found = prune_fe.ablate_layers(model, test, scores, layers, (0, 0.25, 0.5, 1), order, classes=[int(name)])
        study_of = networks[0].ablations["l1-activation"][order]
        assert study_of.layers == tuple(layers)
        assert study_of.removed.tolist() == found.removed.tolist() == [0, 3, 6, 12]
        np.testing.assert_array_equal(study_of.hits[:, number], found.hits[:, 0])
        np.testing.assert_allclose(study_of.loss[:, number], found.loss[:, 0], rtol=1e-5)
    assert networks[0].each is None


def test_the_tables_of_several_layers(done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(done[0] / "seed-1", tmp_path / "seed-1")
    monkeypatch.setattr(cumulative, "SHARES", (0, 0.5, 1))
    recipe = RECIPE.model_copy(update={"seeds": [1]})
    tables = study(tmp_path, recipe, layers=["features.4", "features.0"])
    assert [table.title.split(":")[0] for table in tables] == [
        "Ablation, ascending", "Ablation, descending", "Table 11",
    ]  # fmt: skip
    text = next(tmp_path.glob("ablation-2-layers-*.md")).read_text()
    assert "The same share of each of features.0, features.4 of vgg-small" in text
    assert "Cumulative ablation of 2 layers" in next(tmp_path.glob("ablation-2-layers-*.svg")).read_text()
    with next(tmp_path.glob("ablation-2-layers-*[0-9a-f].csv")).open() as file:
        assert "spearman_single_unit" not in next(csv.DictReader(file))
    with pytest.raises(
        InputError, match=r"layer 'conv\*': no convolution is called so; there are features.0, features.4"
    ):
        study(tmp_path, recipe, layers=["conv*"])
    with pytest.raises(InputError, match="layer 'features' holds 'features.4': of these only one"):
        study(tmp_path, recipe, layers=["features", "features.4"])


def test_what_is_called_like_the_control_is_refused(tmp_path: Path) -> None:
    scorers = [{"name": "l1-filter", "label": "random"}]
    with pytest.raises(InputError, match="the label 'random' is the control's, give 'l1-filter' another one"):
        study(tmp_path, Recipe.model_validate(RECIPE.model_dump() | {"scorers": scorers}))


def test_without_matplotlib_the_numbers_are_there(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, _ = done
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report, where = Silent(), RunFolder(folder, RECIPE.model_dump(mode="json"))
    ablation_study(RECIPE, where, report, classes=CLASSES)
    where.close()
    assert any("no figure: matplotlib is missing" in text for text in report.said)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE.model_dump(mode="json", exclude_defaults=True) | {"seeds": [1]}))
    words = ["ablate", str(recipe), "--output", str(tmp_path / "runs")]
    assert main([*words, "--class", "3", "--set", "ablate.rescale=null"]) == 0
    out = capsys.readouterr().out
    for text in ("best units first", "Table 11", "Spearman", "l1-activation", "figure: "):
        assert text in out
    assert main([*words, "--class", "eleven"]) == 2
    assert "class 'eleven': no such class" in capsys.readouterr().err
    assert main([*words, "--set", "ablate.rescale=[2, 1]"]) == 2
    assert "ablate: rescale: from 2.0 to 1.0 is no range" in capsys.readouterr().err
    assert main([*words, "--set", "ablate.evry=2"]) == 2
    assert "ablate.evry: unknown key; did you mean 'every'?" in capsys.readouterr().err
    assert len(list((tmp_path / "runs").iterdir())) == 1  # what could not begin left no folder
