"""How many images, how many classes, which ratio: against prune_fe.score and prune; resume, faults, figures."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

import prune_fe
from prune_fe.data.images import choose, digits, held_out, targets_of
from prune_fe.errors import CheckpointError, DataError, InputError
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run import UNPRUNED, run
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.measure.cost import cost
from prune_fe.measure.evaluate import evaluate
from prune_fe.pruning.prune import prune
from prune_fe.report.tables import Table
from prune_fe.scorers.feature_entropy import FeatureEntropy
from prune_fe.studies import series
from prune_fe.studies.series import (
    ANEW,
    SAME,
    Births,
    Sample,
    advice,
    classes_study,
    drawn,
    ladder,
    ratio_study,
    samples_study,
)
from prune_fe.tracing.feature_maps import find_layers

LAYER = "features.4"
RECIPE = Recipe.model_validate(
    {
        "name": "t",
        "data": {"source": "digits", "size": 12},
        "model": {"name": "vgg-small", "arguments": {"stages": [[6], [8]]}},
        "train": {"lr": 0.05, "schedule": "cosine", "epochs": 1, "batch_size": 64},
        "score": {"samples": 20},
        "scorers": ["feature-entropy", "l1-filter"],
        "prune": {"ratio": 0.5},
        "finetune": {"lr": 0.02, "schedule": "cosine", "epochs": 1, "batch_size": 64},
        "seeds": [1, 4],
    }
)
SPLITS = held_out(digits(12), RECIPE.data.validation, 1)


class Silent:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, task: str) -> Callable[[int, int], None]:
        return lambda done, total: None


def study(
    of: Callable[..., list[Table]], folder: Path, recipe: Recipe = RECIPE, **options: Any
) -> tuple[list[Table], list[str]]:
    """The tables, and what was said."""
    folder.mkdir(exist_ok=True)
    where, report = RunFolder(folder, recipe.model_dump(mode="json")), Silent()
    try:
        return of(recipe, where, report, **options), report.said
    finally:
        where.close()


def changed(**parts: Any) -> Recipe:
    return Recipe.model_validate(RECIPE.model_dump(exclude_defaults=True) | parts)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("done again, or too early")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Table], list[str]]:
    """A folder with all three studies, the tables of the samples, and what was said then."""
    folder = tmp_path_factory.mktemp("series")
    tables, said = study(samples_study, folder, layer=LAYER, sizes=(10, 500, 40), draws=12)
    return folder, tables, said


@pytest.fixture(scope="module")
def births(done: Any) -> Births:
    """Of every training image, in the last layer of the network of seed 1."""
    network = prune_fe.load(done[0] / "seed-1/trained")
    layer = find_layers(network, SPLITS.test[0][0][None], [LAYER])[0]
    return Births.of(network, layer, SPLITS.train, FeatureEntropy())


def fake(values: Any, labels: Any) -> Births:
    return Births(FeatureEntropy(), np.array(values), np.array(labels))


@pytest.mark.parametrize("settings", [{}, {"rank": "edges", "normalise": "samples", "p": 0.9, "by": "entropy"}])
def test_a_draw_is_what_score_finds_on_its_images(done: Any, settings: dict[str, Any]) -> None:
    network, judge = prune_fe.load(done[0] / "seed-1/trained"), FeatureEntropy(**settings)
    layer = find_layers(network, SPLITS.test[0][0][None], [LAYER])[0]
    births = Births.of(network, layer, SPLITS.train, judge, batch_size=50)
    images = np.array(choose(SPLITS.train, [2, 5, 6], 15, seed=3))
    scores = prune_fe.score(network, Subset(SPLITS.train, images.tolist()), judge, layers=[LAYER])
    found = births.score(images)
    np.testing.assert_allclose(found.keep, scores.keep[LAYER], atol=1e-9)
    for quantity, values in found.raw.items():
        np.testing.assert_allclose(values, scores.raw[quantity][LAYER], atol=1e-9)
    entropy, ratio = births.quantities(images[np.array(targets_of(SPLITS.train))[images] == 5])
    np.testing.assert_allclose(entropy, scores.raw["feature_entropy_nats"][LAYER][1], atol=1e-9)
    np.testing.assert_allclose(ratio, scores.raw["entropy_per_rate_nats"][LAYER][1], atol=1e-9)


def test_more_images_spread_less_and_agree_better(births: Births) -> None:
    few, many = (drawn(births, size, 16, seed=0) for size in (5, 40))
    assert many.spread.mean() < 0.6 * few.spread.mean()
    assert many.layer.std(axis=0).mean() < few.layer.std(axis=0).mean()
    assert many.agreement[10][SAME].mean() > few.agreement[10][SAME].mean()
    assert few.agreement[10][SAME].mean() > few.agreement[1][ANEW].mean()
    assert {k: set(found) for k, found in few.agreement.items()} == {
        1: {SAME, ANEW}, 2: {SAME, ANEW}, 5: {SAME, ANEW}, 10: {SAME},
    }  # fmt: skip
    assert few.disjoint


def test_draws_of_all_images_are_the_same(births: Births) -> None:
    least = min(map(len, births.members))
    same = Births(births.judge, *(part[np.concatenate([m[:least] for m in births.members])] for part in
                                  (births.values, births.labels)))  # fmt: skip
    sample = drawn(same, least, 5, seed=0)
    assert sample.spread.max() < 1e-12
    assert not sample.disjoint
    assert all(found[SAME] == pytest.approx([1, 1]) for found in sample.agreement.values())
    assert (sample.agreement[1][ANEW] < 1).all()


def test_the_spread_is_that_of_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    births = fake(np.random.default_rng(0).integers(0, 4, (40, 3)), [0] * 20 + [7] * 20)
    asked: list[Any] = []
    quantities = Births.quantities

    def kept(self: Births, images: Any) -> Any:
        asked.append(images)
        return quantities(self, images)

    monkeypatch.setattr(Births, "quantities", kept)
    sample = drawn(births, 8, 3, seed=5)
    assert len(asked) == 6  # the fourth draw, that would make a second pair, is not made
    first, second = asked[0], asked[1]
    assert not set(first) & set(second)
    assert all(len(set(images)) == 8 for images in asked)
    assert {tuple(np.unique(births.labels[images])) for images in asked} == {(0,), (7,)}
    entropy = np.array([quantities(births, images)[0] for images in (asked[0], asked[1], asked[4])])
    np.testing.assert_allclose(sample.spread[0], entropy.std(axis=0, ddof=1))
    np.testing.assert_allclose(sample.layer[:, 0], entropy.mean(axis=1))
    assert drawn(births, 8, 3, seed=5).spread.tolist() == sample.spread.tolist()
    assert drawn(births, 8, 3, seed=6).spread.tolist() != sample.spread.tolist()


def test_values_too_large_to_count_up_to_are_counted() -> None:
    births = fake([[10**15, 0], [3, 0], [10**15, 2], [3, 2]], [0] * 4)
    entropy, _ = births.quantities(np.arange(4))
    assert entropy == pytest.approx([np.log(2), 0])


def test_the_ladder_ends_with_all() -> None:
    assert ladder(1) == [1]
    assert ladder(10) == [1, 2, 5, 10]
    assert ladder(200) == [1, 2, 5, 10, 20, 50, 100, 200]


def test_advice_is_the_least_number_of_images() -> None:
    def sample(size: int, same: float, anew: float, disjoint: bool = True) -> Sample:
        nothing = np.zeros((2, 2))
        found = {SAME: np.array([same, same]), ANEW: np.array([anew, anew])}
        worse = {name: values - 0.3 for name, values in found.items()}
        return Sample(size, disjoint, nothing, nothing, nothing, {1: worse, 5: found})

    said = advice([sample(10, 0.93, 0.6), sample(50, 0.97, 0.7)])
    assert f"{SAME}: a mean correlation of 0.9 takes 50 images, 10 of each of 5 classes" in said
    assert f"{SAME}: a mean correlation of 0.95 takes 250 images, 50 of each of 5 classes" in said
    assert f"{ANEW}: none reaches a mean correlation of 0.95, the best is 0.70" in said
    # where there is a choice, it is no draw whose images must be those of the other
    said = advice([sample(10, 0.93, 0.6), sample(50, 1.25, 0.95, disjoint=False)])
    assert f"{SAME}: a mean correlation of 0.9 takes 50 images, 10 of each of 5 classes;" in said
    assert f"{ANEW}: a mean correlation of 0.95 takes 250 images, 50 of each of 5 classes, where two draws sh" in said
    # and none of the same classes, which are not anew
    nothing, few = np.zeros((2, 2)), np.array([0.2, 0.2])
    said = advice([Sample(10, True, nothing, nothing, nothing, {1: {SAME: few, ANEW: few}, 2: {SAME: few + 0.75}})])
    assert f"{SAME}: a mean correlation of 0.9 takes 20 images, 10 of each of 2 classes" in said
    assert f"{ANEW}: none reaches a mean correlation of 0.9, the best is 0.20" in said
    assert f"{ANEW}: there are no other classes" in advice(
        [Sample(9, True, nothing, nothing, nothing, {1: {SAME: few}})]
    )


def test_the_files_hold_every_draw_and_unit(done: Any) -> None:
    folder, tables, said = done
    name = f"study-samples-seed-1-{LAYER}"
    assert any("draws of 500 images are left out: the smallest class has" in text for text in said)
    assert ANEW in tables[1].note
    assert "mean correlation of 0.95" in tables[1].note
    assert tables[1].rows["10 × 10 classes"][ANEW] == "–"
    assert list(tables[0].rows) == ["10 images", "40 images"]
    assert list(tables[1].rows)[:2] == ["10 × 1 class", "10 × 2 classes"]
    of_draws, of_units = lines(folder / f"{name}-draws.csv"), lines(folder / f"{name}-units.csv")
    assert (len(of_draws), len(of_units)) == (2 * 12, 2 * 8)
    first = [float(row["layer_entropy_nats"]) for row in of_draws[:12]]
    assert tables[0].rows["10 images"]["layer's mean H"] == pytest.approx(first)
    spread = np.mean([float(row["spread_nats"]) for row in of_units[:8]])
    assert tables[0].rows["10 images"]["spread"] == pytest.approx([spread])
    assert "10 × 10 classes" in {row["row"] for row in lines(folder / f"{name}.csv")}
    assert "Two draws" in (folder / f"{name}.md").read_text()
    assert "number of classes K" in (folder / f"{name}.svg").read_text()


def test_only_the_classes_of_the_recipe_are_drawn(done: Any, tmp_path: Path) -> None:
    recipe = changed(score={"classes": [3, 7]})
    (tmp_path / "seed-1").symlink_to(done[0] / "seed-1")
    tables, _ = study(samples_study, tmp_path, recipe, sizes=(10,), draws=2)
    assert list(tables[1].rows) == ["10 × 1 class", "10 × 2 classes"]


def test_classes_of_which_units_are_scored(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, _ = done
    tables, _ = study(classes_study, folder, counts=[10, 2])
    rows = tables[0].rows
    assert list(rows) == [UNPRUNED, "random", "K = 2", "K = 10"]
    network, example = prune_fe.load(folder / "seed-1/trained"), SPLITS.test[0][0][None]
    scores = prune_fe.score(network, SPLITS.train, classes=2, samples=20, seed=1)
    pruned = prune(network, scores, 0.5, example).model
    assert rows["K = 2"]["after pruning"] == [evaluate(pruned, SPLITS.test).accuracy]
    assert rows["K = 2"]["images"] == [40]
    price = cost(pruned, example)
    assert (rows["K = 2"]["parameters"], rows["K = 2"]["multiply-adds"]) == ([price.parameters], [price.macs])
    assert rows["random"]["parameters"] == [price.parameters]
    assert rows[UNPRUNED]["after pruning"] == [evaluate(network, SPLITS.test).accuracy]
    table = lines(folder / "study-classes-seed-1.csv")
    assert [(row["scorer"], row["classes"]) for row in table] == [
        (UNPRUNED, "0"), ("random", "0"), ("feature-entropy", "2"), ("feature-entropy", "10"),
    ]  # fmt: skip
    assert float(table[2]["accuracy_finetuned"]) == rows["K = 2"]["fine-tuned"][0]
    assert "right after pruning" in (folder / "study-classes-seed-1.svg").read_text()
    assert "ratio 0.5; random" in (folder / "study-classes-seed-1.md").read_text()
    monkeypatch.setattr(series, "_point", never)
    again, _ = study(classes_study, folder, counts=[2, 10])
    assert again[0].markdown() == tables[0].markdown()
    with pytest.raises(AssertionError, match="done again"):
        study(classes_study, folder, counts=[2, 10], ratio=0.25)
    monkeypatch.undo()
    before = (folder / "study-classes-seed-1.md").read_text()
    study(classes_study, folder, counts=[2], ratio=0.25)
    assert "ratio 0.25; random" in (folder / "study-classes-seed-1-ratio-0.25.md").read_text()
    assert (folder / "study-classes-seed-1.md").read_text() == before


def test_a_point_of_the_recipes_ratio_is_a_row_of_its_run(tmp_path: Path) -> None:
    recipe = changed(seeds=[1])
    where = RunFolder(tmp_path, recipe.model_dump(mode="json"))
    expected = {row.scorer: row for row in run(recipe, where, Silent())}
    where.close()
    tables, _ = study(ratio_study, tmp_path, recipe, ratios=[0.5])
    for table, label in zip(tables, ("feature-entropy", "l1-filter"), strict=True):
        row, cells = expected[label], table.rows["0.5"]
        assert cells["after pruning"] == [row.accuracy_pruned]
        assert cells["fine-tuned"] == [row.accuracy_finetuned]
        assert (cells["parameters"], cells["multiply-adds"]) == ([row.parameters], [row.macs])


def test_rounds_are_pruned_as_the_run_prunes_them(tmp_path: Path) -> None:
    recipe = changed(
        seeds=[1],
        prune={"ratio": 0.5, "rounds": "layers", "rescore": "each_round", "recalibrate": 100},
        finetune={"lr": 0.02, "schedule": "cosine", "epochs": 1, "batch_size": 64, "when": "each_round"},
    )
    where = RunFolder(tmp_path, recipe.model_dump(mode="json"))
    expected = {row.scorer: row for row in run(recipe, where, Silent())}
    where.close()
    tables, _ = study(ratio_study, tmp_path, recipe, ratios=[0.5])
    cells = tables[0].rows["0.5"]
    assert cells["fine-tuned"] == [expected["feature-entropy"].accuracy_finetuned]
    assert "after pruning" not in cells


def test_a_killed_study_goes_on_with_what_it_has(done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = changed(finetune=None)
    for name in ("whole", "killed"):
        (tmp_path / name / "seed-1").mkdir(parents=True)
        (tmp_path / name / "seed-1/trained").symlink_to(done[0] / "seed-1/trained")
    whole, _ = study(ratio_study, tmp_path / "whole", recipe, ratios=[0.75, 0.25])
    assert [list(table.rows) for table in whole] == [[UNPRUNED, "0.25", "0.75"]] * 2
    macs = [cells["multiply-adds"][0] for cells in whole[0].rows.values()]
    assert macs[0] > macs[1] > macs[2]
    assert "fine-tuned" not in whole[0].rows["0.25"]
    point, calls = series._point, 0

    def dies(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return point(*arguments)

    monkeypatch.setattr(series, "_point", dies)
    with pytest.raises(KeyboardInterrupt):
        study(ratio_study, tmp_path / "killed", recipe, ratios=[0.25, 0.75])
    again, _ = study(ratio_study, tmp_path / "killed", recipe, ratios=[0.25, 0.75])
    assert calls == 2 + 1 + 2  # what was finished, what was killed, what was left
    assert [table.markdown() for table in again] == [table.markdown() for table in whole]
    less, _ = study(ratio_study, tmp_path / "killed", recipe, ratios=[0.75])  # 0.25 is not lost
    assert [table.markdown() for table in less] == [table.markdown() for table in whole]
    damaged = tmp_path / "killed/seed-1/study-ratio-0.25/l1-filter.json"
    content = json.loads(damaged.read_text())
    for text in ("{", "[]", json.dumps({name: content[name] for name in list(content)[1:]})):
        damaged.write_text(text)
        with pytest.raises(CheckpointError, match="l1-filter.json: damaged"):
            study(ratio_study, tmp_path / "killed", recipe, ratios=[0.25])


def test_a_ratio_takes_the_place_of_a_budget(done: Any, tmp_path: Path) -> None:
    recipe = changed(prune={"target_macs": 0.5}, finetune=None, scorers=["feature-entropy"])
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1/trained").symlink_to(done[0] / "seed-1/trained")
    tables, _ = study(classes_study, tmp_path, recipe, counts=[2])
    said = (tmp_path / "study-classes-seed-1.md").read_text()
    assert "target_macs 0.5; random" in said
    (half,), (whole,) = (tables[0].rows[row]["multiply-adds"] for row in ("K = 2", UNPRUNED))
    assert half == pytest.approx(whole / 2, rel=0.2)  # the layers are narrow
    tables, _ = study(ratio_study, tmp_path, recipe, ratios=[0.25])
    (quarter,) = tables[0].rows["0.25"]["multiply-adds"]
    assert half < quarter < whole


@pytest.mark.parametrize(
    ("of", "options", "error", "match"),
    [
        (samples_study, {"draws": 1}, InputError, "draws=1: a spread needs at least 2"),
        (samples_study, {"sizes": (0, 5)}, InputError, r"sizes=\(0, 5\): allowed are numbers of images, 1 or more"),
        (samples_study, {"sizes": ()}, InputError, r"sizes=\(\)"),
        (samples_study, {"sizes": (500, 900)}, DataError, "draws of 500 images: the smallest class has 1.. training"),
        (samples_study, {"layer": "features.9"}, InputError, "'features.9': the model has no such module"),
        (samples_study, {"seed": 2}, InputError, "seed 2: the recipe has 1, 4"),
        (classes_study, {"counts": [5, 11]}, InputError, "the data has 10 classes, allowed are numbers from 1 to 10"),
        (classes_study, {"counts": [0]}, InputError, r"counts=\(0,\)"),
        (classes_study, {"counts": []}, InputError, r"counts=\(\)"),
        (classes_study, {"ratio": 1.0}, InputError, "ratio 1.0: allowed are shares from 0 to less than 1"),
        (ratio_study, {"ratios": [0.5, -0.1]}, InputError, "ratio -0.1: allowed are shares"),
        (ratio_study, {"ratios": [float("nan")]}, InputError, "ratio nan: allowed are shares"),
        (ratio_study, {"ratios": []}, InputError, "ratios: none given"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(
    of: Any, options: dict[str, Any], error: type[Exception], match: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(series, "trained", never)
    with pytest.raises(error, match=match):
        study(of, tmp_path, **options)


def test_the_number_of_classes_needs_feature_entropy_and_the_control_its_label(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scorers: l1-filter; a study of the number of classes needs feature-entropy"):
        study(classes_study, tmp_path / "a", changed(scorers=["l1-filter"]))
    called = changed(scorers=[{"name": "feature-entropy", "label": "random"}])
    with pytest.raises(InputError, match="the label 'random' is the control's"):
        study(classes_study, tmp_path / "b", called)


def test_without_matplotlib_the_numbers_are_there(done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "seed-1").symlink_to(done[0] / "seed-1")
    tables, said = study(samples_study, tmp_path, layer=LAYER, sizes=(10,), draws=2)
    assert any("no figure: matplotlib is missing" in text for text in said)
    assert tables[1].rows["10 × 10 classes"]
    assert not list(tmp_path.glob("*.svg"))


def test_the_network_is_left_as_it_was(births: Births, done: Any) -> None:
    network = prune_fe.load(done[0] / "seed-1/trained").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    layer = find_layers(network, SPLITS.test[0][0][None], [LAYER])[0]
    found = Births.of(network, layer, Subset(SPLITS.train, range(30)), FeatureEntropy())
    np.testing.assert_array_equal(found.values, births.values[:30])
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
