"""Cumulative ablation of a recipe's networks: against ablate() on each class's own scores; resume, faults, files."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml

import prune_fe
from prune_fe.ablation.trial import Trial
from prune_fe.cli.app import main
from prune_fe.data.datasets import Rescaled
from prune_fe.data.digits import digits
from prune_fe.data.splits import hold_out
from prune_fe.errors import CheckpointError, DataError, InputError
from prune_fe.experiment.experiment import Experiment
from prune_fe.experiment.recipe import Recipe
from prune_fe.report.tables import Table
from prune_fe.scorers.class_selectivity import ClassSelectivity
from prune_fe.studies import ablation_tasks, cumulative_ablation
from prune_fe.studies.ablation_tables import AblatedNetwork, labels_by_scorer
from prune_fe.studies.cumulative_ablation import ablation_study

CLASSES = ["3", "7"]
UNITS = 8


@pytest.fixture(scope="module")
def recipe(recipe_with: Callable[..., Recipe]) -> Recipe:
    return recipe_with(
        model={"name": "vgg-small", "arguments": {"stages": [[4], [UNITS]]}},
        scorers=["l1-filter", "l1-activation", "class-selectivity", "random"],
        ablate={"control_seeds": 2, "every": 3, "rescale": [0.5, 1.5]},
    )


@pytest.fixture(scope="module")
def study(run_study: Any, recipe: Recipe) -> Callable[..., list[Table]]:
    def run(folder: Path, recipe: Recipe = recipe, classes: list[str] | None = CLASSES, **options: Any) -> list[Table]:
        tables: list[Table] = run_study(ablation_study, folder, recipe, classes=classes, **options)[0]
        return tables

    return run


def keep_networks(patch: pytest.MonkeyPatch) -> list[AblatedNetwork]:
    """Return a list that the networks of the next study are put into."""
    kept: list[AblatedNetwork] = []
    ablation_tables = cumulative_ablation.ablation_tables

    def keep(networks: list[AblatedNetwork]) -> list[Table]:
        kept.extend(networks)
        return ablation_tables(networks)

    patch.setattr(cumulative_ablation, "ablation_tables", keep)
    return kept


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, study: Callable[..., list[Table]]
) -> tuple[Path, list[Table], list[AblatedNetwork]]:
    """A finished study: its folder, its tables, and the networks that they are made of."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        kept = keep_networks(patch)
        tables = study(folder)
    return folder, tables, kept


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("number", [0, 1])
def test_each_class_goes_by_the_scores_of_its_own_images(done: Any, order: str, number: int) -> None:
    folder, _, networks = done
    network, label = networks[1], int(CLASSES[number])
    model = prune_fe.load(folder / "seed-4/trained")
    splits = hold_out(digits(12), 0.1, 4)
    test = Rescaled.at_random(splits.test, 0.5, 1.5, 4)
    options: dict[str, Any] = {"samples": 20, "seed": 4, "layers": ["features.4"]}
    expected = {
        "l1-activation": prune_fe.score(model, splits.train, "l1-activation", classes=[label], **options),
        "class-selectivity": prune_fe.score(model, splits.train, ClassSelectivity(of=label), **options),
        "l1-filter": prune_fe.score(model, None, "l1-filter", layers=["features.4"], example=torch.zeros(1, 1, 12, 12)),
    }
    for name, scores in expected.items():
        np.testing.assert_allclose(network.scores[name][number], scores.keep["features.4"], rtol=1e-5)
        alone = prune_fe.ablate(
            model,
            test,
            scores,
            "features.4",
            order,  # type: ignore[arg-type]
            every=3,
            classes=[label],
        )
        ablation = network.ablations[name][order]
        assert ablation.removed.tolist() == alone.removed.tolist() == [0, 3, 6, 8]
        np.testing.assert_array_equal(ablation.hits[:, number], alone.hits[:, 0])
        np.testing.assert_array_equal(ablation.called[:, number], alone.called[:, 0])
        np.testing.assert_allclose(ablation.loss[:, number], alone.loss[:, 0], rtol=1e-5)
        np.testing.assert_allclose(ablation.peak_held_out[number], alone.peak_held_out[0])


def test_the_control_is_random_and_its_seeds_differ(done: Any) -> None:
    _, _, networks = done
    scorers = labels_by_scorer(networks)
    assert scorers["random"] == ["random#0", "random#1"]
    rows = [network.scores[label][0].tolist() for network in networks for label in scorers["random"]]
    assert all(sorted(row) == list(range(UNITS)) for row in rows)
    assert len({tuple(row) for row in rows}) == 4


def test_every_unit_is_masked_alone(done: Any) -> None:
    folder, tables, networks = done
    model = prune_fe.load(folder / "seed-4/trained")
    test = Rescaled.at_random(hold_out(digits(12), 0.1, 4).test, 0.5, 1.5, 4)
    single_units = prune_fe.ablate_each(model, test, "features.4", classes=[3, 7])
    assert networks[1].single_units.classes == tuple(CLASSES)
    np.testing.assert_allclose(networks[1].losses_by_unit, single_units.loss[1:] - single_units.loss[0], rtol=1e-5)
    assert set(tables[-1].rows) == {"l1-filter", "l1-activation", "class-selectivity", "random"}


def test_the_files_hold_every_class_and_step(done: Any, read_rows: Any) -> None:
    folder, _, networks = done
    rows = read_rows(folder / "ablation-features.4.csv")
    assert len(rows) == 2 * 5 * 2 * 2  # seeds, labels, orders, classes
    row = next(
        r for r in rows if (r["seed"], r["scorer"], r["order"], r["class"]) == ("4", "l1-filter", "ascending", "7")
    )
    assert float(row["area"]) == pytest.approx(networks[1].ablations["l1-filter"]["ascending"].area[1])
    assert len(read_rows(folder / "ablation-features.4-curves.csv")) == 2 * 5 * 2 * 4
    assert "5, 1.5" in (folder / "ablation-features.4.md").read_text()
    assert (folder / "ablation-features.4.svg").read_text().count("random") >= 1


def test_finished_curves_are_used_again(done: Any, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished result is read: its numbers are those of the first call to the last bit."""
    folder, tables, _ = done
    names = ("ablation-features.4.csv", "ablation-features.4-curves.csv")
    before = [(folder / name).read_bytes() for name in names]
    monkeypatch.setattr(Trial, "_run", lambda *_, **__: pytest.fail("run again"))
    again = study(folder)
    assert [table.markdown() for table in again] == [table.markdown() for table in tables]
    assert [(folder / name).read_bytes() for name in names] == before


def test_a_killed_study_goes_on_with_what_it_has(
    tmp_path: Path, study: Any, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe.model_copy(update={"seeds": [1]})
    whole = study(tmp_path / "whole", recipe)
    run, calls = Trial._run, 0

    def dies(self: Trial, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return run(self, *arguments, **options)

    monkeypatch.setattr(Trial, "_run", dies)
    monkeypatch.setattr(ablation_tasks, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "killed", recipe)
    first, calls = calls, 6
    again = study(tmp_path / "killed", recipe)
    assert [table.markdown() for table in again] == [table.markdown() for table in whole]
    every = 1 + 2 * (2 * 2 + 3)  # each unit; two orders of two scorers by class, and of three that are the same for all
    assert (first - 1) + (calls - 6) == every


def test_a_study_of_one_class_takes_the_curves_of_all(done: Any, study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, networks = done
    monkeypatch.setattr(Trial, "_run", lambda *_, **__: pytest.fail("run again"))
    one = study(folder, classes=["7"])
    mean = (
        networks[0].ablations["l1-filter"]["ascending"].area[1]
        + networks[1].ablations["l1-filter"]["ascending"].area[1]
    )
    assert one[0].rows["l1-filter"]["area under accuracy"].mean == pytest.approx(mean / 2)


def test_another_class_leaves_the_curves_of_the_first(
    done: Any, tmp_path: Path, study: Any, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all classes share one order, as they do for a scorer of weights."""
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1/trained").symlink_to(done[0] / "seed-1/trained")
    recipe = recipe.model_copy(update={"seeds": [1], "scorers": recipe.scorers[:1]})
    first = study(tmp_path, recipe, classes=["3"])
    study(tmp_path, recipe, classes=["7"])
    monkeypatch.setattr(Trial, "_run", lambda *_, **__: pytest.fail("run again"))
    assert [table.rows for table in study(tmp_path, recipe, classes=["3"])] == [table.rows for table in first]
    study(tmp_path, recipe, classes=["7", "3"])


def test_the_numbers_are_on_the_disk_before_the_tables(
    done: Any, tmp_path: Path, study: Any, read_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(done[0], tmp_path / "run")
    for path in (tmp_path / "run").glob("ablation-*"):
        path.unlink()

    def fails(_: Any) -> None:
        raise DataError("no table")

    monkeypatch.setattr(cumulative_ablation, "ablation_tables", fails)
    with pytest.raises(DataError, match="no table"):
        study(tmp_path / "run")
    assert len(read_rows(tmp_path / "run/ablation-features.4.csv")) == 2 * 5 * 2 * 2
    assert len(read_rows(tmp_path / "run/ablation-features.4-curves.csv")) == 2 * 5 * 2 * 4


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([3, 7, 7, 2, 2], "table 11 needs at least two test images of a class"),
        ([3, 3, 7, 2], "table 11 needs at least two test images of a class and of another one"),
        ([3, 3], "class '7': there are no images of it"),
    ],
)
def test_too_few_test_images_for_table_11_are_said_before_anything_is_trained(
    labels: list[int], match: str, tmp_path: Path, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_labels, n_test = cumulative_ablation.image_labels, len(cumulative_ablation.image_labels(digits(12).test))

    def with_few_test_images(images: Any) -> list[int]:
        known = list(image_labels(images))
        return labels if len(known) == n_test else known

    monkeypatch.setattr(cumulative_ablation, "image_labels", with_few_test_images)
    monkeypatch.setattr(Experiment, "network", property(lambda _: pytest.fail("trained")))
    classes = ["3"] if Counter(labels)[7] > 1 else CLASSES
    with pytest.raises(DataError, match=match):
        study(tmp_path, classes=classes)


def test_curves_that_are_no_use_are_named(done: Any, study: Any) -> None:
    folder, _, _ = done
    curve = folder / "seed-1/ablation/features.4/l1-filter.ascending.npz"
    good = curve.read_bytes()
    curve.write_bytes(good[: len(good) // 2])
    with pytest.raises(
        CheckpointError, match=r"l1-filter.ascending.npz: damaged .*; delete it, and the next run makes it again"
    ):
        study(folder)
    curve.write_bytes((curve.parent / "l1-filter.descending.npz").read_bytes())
    with pytest.raises(InputError, match="is of other scores than these; choose another run folder"):
        study(folder)
    curve.write_bytes(good)


def test_one_class_has_no_interval_and_no_verdict(done: Any, study: Any) -> None:
    folder, _, _ = done
    one = study(folder, classes=["7"])
    assert "[" not in one[0].text("l1-filter", "area under accuracy")
    assert one[0].note == "One class: there is nothing that could tell the scorers apart."
    with pytest.raises(InputError, match="classes: one of them is given twice"):
        study(folder, classes=["7", "7"])


def test_bad_input_is_said_before_anything_is_trained(
    tmp_path: Path, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Experiment, "network", property(lambda _: pytest.fail("trained")))
    with pytest.raises(InputError, match="class '12': no such class"):
        study(tmp_path / "a", classes=["12"])
    with pytest.raises(InputError, match="layer 'features.9': the model has no such module"):
        study(tmp_path / "b", layers=["features.9"])


def test_scorers_that_cannot_score_the_layer_are_left_out_and_said(
    done: Any, run_study: Any, study: Any, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pooling has no filters; the network that lies in the folder is not trained again."""
    monkeypatch.setattr("prune_fe.experiment.trained.fit", lambda *_: pytest.fail("trained again"))
    tables, said = run_study(ablation_study, done[0], recipe, layers=["features.3"], classes=CLASSES)
    assert any("l1-filter is left out: layer 'features.3'" in text for text in said)
    assert set(tables[0].rows) == {"l1-activation", "class-selectivity", "random"}
    alone = recipe.model_copy(update={"scorers": recipe.scorers[:1]})
    with pytest.raises(InputError, match="'features.3' is a MaxPool2d and has no filters"):
        study(tmp_path, alone, layers=["features.3"])


@pytest.fixture(scope="module")
def of_two_layers(
    done: Any, tmp_path_factory: pytest.TempPathFactory, study: Any, recipe: Recipe
) -> tuple[Path, list[Table], list[AblatedNetwork]]:
    """A finished study of both layers, with fewer shares than usual."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "seed-1").mkdir()
    (folder / "seed-1/trained").symlink_to(done[0] / "seed-1/trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_tasks, "SHARES", (0, 0.25, 0.5, 1))
        kept = keep_networks(patch)
        tables = study(folder, recipe.model_copy(update={"seeds": [1]}), layers=["features.*"])
    return folder, tables, kept


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_of_several_layers_the_same_share_is_taken(
    of_two_layers: Any, order: Literal["ascending", "descending"]
) -> None:
    folder, _, networks = of_two_layers
    splits = hold_out(digits(12), 0.1, 1)
    test = Rescaled.at_random(splits.test, 0.5, 1.5, 1)
    model = prune_fe.load(folder / "seed-1/trained")
    layers = ["features.0", "features.4"]
    for number, name in enumerate(CLASSES):
        scores = prune_fe.score(
            model, splits.train, "l1-activation", classes=[int(name)], samples=20, seed=1, layers=layers
        )
        expected = prune_fe.ablate_layers(model, test, scores, layers, (0, 0.25, 0.5, 1), order, classes=[int(name)])
        ablation = networks[0].ablations["l1-activation"][order]
        assert ablation.layers == tuple(layers)
        assert ablation.removed.tolist() == expected.removed.tolist() == [0, 3, 6, 12]
        np.testing.assert_array_equal(ablation.hits[:, number], expected.hits[:, 0])
        np.testing.assert_allclose(ablation.loss[:, number], expected.loss[:, 0], rtol=1e-5)
    assert networks[0].single_units is None


def test_the_tables_of_several_layers(of_two_layers: Any, study: Any, recipe: Recipe, read_rows: Any) -> None:
    folder, tables, _ = of_two_layers
    assert [table.title.split(":")[0] for table in tables] == [
        "Ablation, ascending",
        "Ablation, descending",
        "Table 11",
    ]
    text = next(folder.glob("ablation-2-layers-*.md")).read_text()
    assert "The same share of each of features.0, features.4 of vgg-small" in text
    assert "Cumulative ablation of 2 layers" in next(folder.glob("ablation-2-layers-*.svg")).read_text()
    assert "spearman_single_unit" not in read_rows(next(folder.glob("ablation-2-layers-*[0-9a-f].csv")))[0]
    recipe = recipe.model_copy(update={"seeds": [1]})
    with pytest.raises(
        InputError, match=r"layer 'conv\*': no convolution is called so; there are features.0, features.4"
    ):
        study(folder, recipe, layers=["conv*"])
    with pytest.raises(InputError, match="layer 'features' holds 'features.4': of these only one"):
        study(folder, recipe, layers=["features", "features.4"])


def test_what_is_called_like_the_control_is_refused(tmp_path: Path, study: Any, recipe: Recipe) -> None:
    scorers = [{"name": "l1-filter", "label": "random"}]
    with pytest.raises(InputError, match="the label 'random' is the control's, give 'l1-filter' another one"):
        study(tmp_path, Recipe.model_validate(recipe.model_dump() | {"scorers": scorers}))


def test_the_command(tmp_path: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True) | {"seeds": [1]}))
    words = ["ablate", str(path), "--output", str(tmp_path / "runs")]
    assert main([*words, "--class", "3", "--set", "ablate.rescale=null"]) == 0
    out = capsys.readouterr().out
    for text in ("best units first", "Table 11", "Spearman", "l1-activation", "figure: "):
        assert text in out
    assert main([*words, "--class", "eleven"]) == 2
    assert "class 'eleven': no such class" in capsys.readouterr().err
    assert main([*words, "--set", "ablate.rescale=[2, 1]"]) == 2
    assert "ablate: rescale: 2.0 is above 1.0; write the smaller one first" in capsys.readouterr().err
    assert main([*words, "--set", "ablate.evry=2"]) == 2
    assert "ablate.evry: unknown key; did you mean 'every'?" in capsys.readouterr().err
    assert len(list((tmp_path / "runs").iterdir())) == 1  # what could not begin left no folder
