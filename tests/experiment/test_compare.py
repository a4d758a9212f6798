"""A small comparison: what is in the grid, that nothing is done twice, and that every number of its report is right."""

import copy
import csv
import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import prune_fe
from prune_fe.cli.app import main
from prune_fe.data.splits import hold_out
from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment import compare, experiment, tasks
from prune_fe.experiment.claims import Claims
from prune_fe.experiment.recipe import Recipe, with_controls
from prune_fe.experiment.results import UNPRUNED, load_result
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.measure.statistics import spearman
from prune_fe.report import checklist, report
from prune_fe.report.findings import Findings, load_findings
from prune_fe.training.options import TrainOptions
from prune_fe.training.schedule import count_epochs

CONTENT: dict[str, Any] = {
    "name": "t",
    "data": {"source": "digits", "size": 12, "validation": 0.6},  # fewer training images: faster
    "model": {"name": "vgg-small", "arguments": {"stages": [[4], [8]]}},
    "train": {"lr": 0.05, "schedule": "cosine", "epochs": 1, "batch_size": 128},
    "score": {"samples": 10},
    "scorers": ["feature-entropy", {"name": "apoz", "label": "zeros"}],
    "finetune": {"lr": 0.01, "schedule": "cosine", "epochs": 1, "batch_size": 128},
    "compare": {
        "networks": {"one": {"name": "vgg-small", "arguments": {"stages": [[4], [8]]}},
                     "two": {"name": "vgg-small", "arguments": {"stages": [[6], [4]]}}},
        "ratios": [0.25, 0.75], "scratch": [1, 2],
    },
    "seeds": [0, 3],
    "threads": 1,
}  # fmt: skip
RECIPE = Recipe.model_validate(CONTENT)
SCORERS = ["feature-entropy", "zeros", "random", "l1-filter"]
CELLS = 2 * 2 * (1 + 2 * (len(SCORERS) + 2))  # networks, seeds; unpruned; ratios; scorers and scratch


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Silent:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, task: str) -> Callable[[int, int], None]:
        return lambda done, total: None


def fill(folder: Path, recipe: Recipe = RECIPE) -> list[str]:
    folder.mkdir(exist_ok=True)
    silent = Silent()
    where = RunFolder(folder, recipe.model_dump(mode="json"), shared=True)
    compare.compare(recipe, where, silent)
    where.close()
    return silent.said


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("comparison")
    fill(folder)
    report.write_report(folder)
    torch.set_num_threads(before)
    return folder


@pytest.fixture(scope="module")
def found(filled: Path) -> Findings:
    return load_findings(filled)


def test_every_cell_of_the_grid_is_there_with_its_controls(filled: Path, found: Findings) -> None:
    assert len(list((filled / "cells").glob("*.json"))) == CELLS == len(found.results)
    assert found.networks == ["one", "two"]
    assert found.scorers == SCORERS
    assert found.scratch == ["scratch#1", "scratch#2"]
    assert (found.goal, found.points, found.seeds, found.missing) == ("ratio", [0.25, 0.75], [0, 3], [])
    assert found.same_cost()
    assert not list((filled / "claims").iterdir())


def test_pruned_networks_start_from_one_network_and_scratch_has_the_whole_budget(found: Findings) -> None:
    for network in found.networks:
        for seed in (0, 1):
            before = found.select(network, UNPRUNED)[seed].row.accuracy
            for scorer in (*found.scorers, *found.scratch):
                cells = [found.select(network, scorer, point)[seed] for point in found.points]
                assert {cell.row.accuracy_before for cell in cells} == {before}
                epochs = {"scratch#1": 2, "scratch#2": 4}.get(scorer, 1)
                assert [len(cell.epochs) - 1 for cell in cells] == [epochs] * 2
    one = found.select("one", "random", 0.75)[0]
    assert {layer: len(units) for layer, units in one.removed.items()} == {"features.0": 3, "features.4": 6}
    assert one.removed != found.select("one", "random", 0.75)[1].removed


def test_a_cell_is_what_the_steps_give_by_hand(filled: Path, found: Findings) -> None:
    network = prune_fe.load(filled / "networks/one/seed-3/trained")
    splits = hold_out(prune_fe.digits(12), RECIPE.data.validation, 3)
    scores = prune_fe.score(network, splits.train, "apoz", samples=10, seed=3)
    example = splits.test[0][0][None]
    pruned = prune_fe.prune(network, scores, ratio=0.75, example=example)
    cell = found.select("one", "zeros", 0.75)[1]
    assert {k: list(v) for step in pruned.steps for k, v in step.removed.items()} == cell.removed
    assert cell.row.accuracy_pruned == pytest.approx(prune_fe.evaluate(pruned.model, splits.test).accuracy, abs=0.003)
    assert cell.row.parameters == prune_fe.cost(pruned.model, example).parameters
    assert cell.correct.mean() == pytest.approx(cell.row.accuracy)


def test_nothing_is_done_twice(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compress", "measure", "fit"):
        monkeypatch.setattr(compare, name, lambda *_, **__: pytest.fail("done again"))
    monkeypatch.setattr(experiment, "score_units", lambda *_, **__: pytest.fail("done again"))
    fill(filled)


def test_a_killed_comparison_loses_its_current_cell_and_no_more(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    gone = ["one.seed-0.zeros.ratio-0.25.json", "two.seed-3.scratch#1.ratio-0.75.json"]
    for name in gone:
        (folder / "cells" / name).unlink()
    real = compare.compress

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "compress", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(folder)
    assert not list((folder / "claims").iterdir())
    monkeypatch.setattr(compare, "compress", real)
    assert [text.split(":")[0] for text in fill(folder) if "of the test images" in text] == [n[:-5] for n in gone]
    for name in gone:
        old, new = (load_result(where / "cells" / name) for where in (filled, folder))
        assert old.row.accuracy == new.row.accuracy
        np.testing.assert_array_equal(old.correct, new.correct)


def test_cells_that_others_are_at_are_waited_for(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    cell = folder / "cells" / "one.seed-0.zeros.ratio-0.25.json"
    content = cell.read_bytes()
    cell.unlink()
    monkeypatch.setattr(tasks.time, "sleep", lambda _: cell.write_bytes(content))
    monkeypatch.setattr(compare, "compress", lambda *_, **__: pytest.fail("done by two"))
    other = Claims(folder / "claims")
    with other.claimed(f"cells.{cell.stem}") as mine:
        assert mine
        assert "waiting for 1 tasks that other processes work on" in fill(folder)


def test_differences_are_paired_over_the_test_images(found: Findings) -> None:
    to_random = found.differences_to_random("one", 0.25)
    assert set(to_random) == {*SCORERS, "scratch#1", "scratch#2"} - {"random"}
    each, accuracy = to_random["zeros"], {s: np.mean(found.accuracies("one", s, 0.25)) for s in SCORERS}
    assert (each.other, each.seeds) == ("random", 2)
    assert each.estimate.mean == pytest.approx(accuracy["zeros"] - accuracy["random"])
    best = found.best("one", 0.25)
    assert best is not None
    assert accuracy[best] == pytest.approx(max(accuracy.values()))
    to_best = found.differences_to_best("one", 0.25)
    assert best not in to_best
    for scorer in set(SCORERS) - {best}:
        assert to_best[scorer].estimate.mean == pytest.approx(accuracy[scorer] - accuracy[best])
        assert to_best[scorer].other == best
    if best != "random":  # what is said of two does not depend on why they are looked at
        assert to_random[best] == to_best["random"].reversed


def test_what_lacks_a_seed_is_not_compared(filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    (folder / "cells/one.seed-3.zeros.ratio-0.25.json").unlink()
    part = load_findings(folder)
    assert "zeros" not in part.comparable("one", 0.25)[1]
    assert "zeros" in part.comparable("one", 0.75)[1]
    assert "zeros" not in part.differences_to_best("one", 0.25).keys() | part.differences_to_random("one", 0.25).keys()
    cell = part.select("one", "zeros", 0.25)[0]
    assert part.drop("one", "zeros", 0.25) == pytest.approx(cell.row.accuracy_before - cell.row.accuracy)
    report.write_report(folder)
    text = (folder / "report.md").read_text()
    assert "Not compared, because seeds are missing: zeros" in text
    assert "(1 of 2 seeds)" in text
    assert part.missing == ["one: zeros at ratio 0.25: 1 of 2 seeds"]


def test_one_that_is_ahead_by_a_seed_does_not_stand_alone(found: Findings) -> None:
    ahead = dataclasses.replace(
        found, results=[cell for cell in found.results if cell.row.seed == 0 or cell.row.scorer in (UNPRUNED, "zeros")]
    )
    seeds, known = ahead.comparable("one", 0.25)
    assert (seeds, set(known)) == ((0,), {*SCORERS, "scratch#1", "scratch#2"})
    accuracy = {s: ahead.select("one", s, 0.25)[0].row.accuracy for s in SCORERS}  # of seed 0
    best = ahead.best("one", 0.25)
    assert accuracy[str(best)] == max(accuracy.values())
    for scorer, each in ahead.differences_to_random("one", 0.25).items():
        if scorer in SCORERS:
            assert each.estimate.mean == pytest.approx(accuracy[scorer] - accuracy["random"])
    text = report.report_markdown("", "", list(report.report_sections(ahead)))
    assert "one, share removed 0.25 (1 of 2 seeds): " in text
    alone = dataclasses.replace(found, results=found.select("one", "zeros", 0.25))
    text = report.report_markdown("", "", list(report.report_sections(alone)))
    assert "and there is no other criterion to compare it with" in text
    assert "highest mean accuracy" not in text


def test_a_control_with_a_label_of_its_own_counts(found: Findings) -> None:
    content = found.recipe.model_dump(mode="json")
    for entry in content["scorers"]:
        entry["label"] = "norm" if entry["name"] == "l1-filter" else entry["label"]
    cells = [
        dataclasses.replace(cell, row=dataclasses.replace(cell.row, scorer="norm"))
        if cell.row.scorer == "l1-filter" else cell
        for cell in found.results
    ]  # fmt: skip
    named = dataclasses.replace(found, recipe=Recipe.model_validate(content), results=cells)
    assert "- yes: Filter L1 norm, at every operating point" in report.report_markdown(
        "", "", list(report.report_sections(named))
    )


def test_scores_are_compared_by_seed(filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    shutil.rmtree(folder / "networks/one/seed-0/scores/zeros")
    part = load_findings(folder)
    pair = [part.scores["one", 3, label].keep["features.4"] for label in ("zeros", "l1-filter")]
    assert part.agreement("one", "zeros", "l1-filter")["features.4"] == pytest.approx(spearman(*pair))


def test_agreement_is_of_the_scores_and_of_what_is_removed(filled: Path, found: Findings) -> None:
    by_layer = found.agreement("one", "zeros", "l1-filter")
    pairs = [[found.scores["one", seed, label] for label in ("zeros", "l1-filter")] for seed in (0, 3)]
    for layer, value in by_layer.items():
        assert value == pytest.approx(np.mean([spearman(a.keep[layer], b.keep[layer]) for a, b in pairs]))
    whole = np.array(found.matrix(SCORERS, lambda one, other: found.agreement("one", one, other, spearman)))
    assert np.diag(whole) == pytest.approx(np.ones(4))
    np.testing.assert_allclose(whole, whole.T)
    assert found.overlap("one", 0.25, "random", "random") == {"features.0": 1, "features.4": 1}
    each = []
    for seed in (0, 1):
        a, b = (set(found.select("one", scorer, 0.75)[seed].removed["features.4"]) for scorer in ("random", "zeros"))
        each.append(len(a & b) / len(a | b))
    overlap = found.overlap("one", 0.75, "random", "zeros")["features.4"]
    assert overlap == pytest.approx(np.mean(each))
    with (filled / "agreement.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 6  # networks, layers, pairs
    row = next(r for r in rows if [*r.values()][:4] == ["one", "features.4", "zeros", "random"])
    assert float(row["jaccard_ratio_0.75"]) == pytest.approx(overlap)
    assert float(row["spearman"]) == pytest.approx(found.agreement("one", "zeros", "random")["features.4"])


def test_classes_pay_what_the_images_say(filled: Path, found: Findings) -> None:
    known = found.class_accuracies("two", "l1-filter", 0.75)
    assert known is not None
    before, accuracy = known["before"].to_numpy(), known["after"].to_numpy()
    images = np.bincount(found.labels)
    for values, mean in (
        (accuracy, found.accuracies("two", "l1-filter", 0.75)),
        (before, found.accuracies("two", UNPRUNED)),
    ):
        assert (values * images).sum() / images.sum() == pytest.approx(np.mean(mean))
    assert found.class_accuracies("two", "nobody", 0.75) is None
    with (filled / "classes.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if [*row.values()][:3] == ["two", "l1-filter", "0.75"]]
    np.testing.assert_allclose([float(row["after"]) for row in rows], accuracy)
    np.testing.assert_allclose([float(row["before"]) for row in rows], before)


def test_before_and_after_are_of_the_same_seeds(found: Findings) -> None:
    gone = [cell for cell in found.results if (cell.network, cell.row.scorer, cell.row.seed) == ("two", "zeros", 3)]
    part = dataclasses.replace(found, results=[cell for cell in found.results if cell not in gone])
    known = part.class_accuracies("two", "zeros", 0.75)
    assert known is not None
    images, unpruned = np.bincount(found.labels), found.select("two", UNPRUNED)[0]
    assert unpruned.row.seed == 0
    assert (known["before"].to_numpy() * images).sum() / images.sum() == pytest.approx(unpruned.row.accuracy)


def test_the_report_holds_what_was_measured(filled: Path, found: Findings) -> None:
    page, text = ((filled / name).read_text() for name in ("report.html", "report.md"))
    for scorer in SCORERS:
        values = [100 * value for value in found.accuracies("one", scorer, 0.75)]
        said = f"{np.mean(values):.2f} ±{np.std(values, ddof=1):.2f} %"
        assert said in page
        assert said in text
    for words in ("Trade-off: one", "Which classes pay: two", "Jaccard", "Kendall", "from scratch, 2× budget",
                  "measured time", "data.validation", "Commits of the results"):  # fmt: skip
        assert words in page
    without_scripts = re.sub(r"(?s)<script.*?</script>", "", page)
    assert not re.search(r"(src|href)=\"(?!#)", without_scripts)
    content = json.loads((filled / "report.json").read_text())
    assert len(content["cells"]) == 2 * 2 * 6
    assert content["missing"] == []
    assert len((filled / "cells.csv").read_text().splitlines()) == CELLS + 1


def test_what_is_missing_is_marked_as_missing(filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    for path in (folder / "cells").glob("*"):
        if "scratch#2" in path.name or ("seed-3" in path.name and "random" in path.name):
            path.unlink()
    report.write_report(folder)
    part = load_findings(folder)
    assert "one: random at ratio 0.25: 1 of 2 seeds" in part.missing
    lines = (folder / "report.md").read_text().splitlines()
    listed = {line.split(":")[0]: line for line in lines if line.startswith("- ")}
    assert listed
    missing = [line for line in lines if line.startswith("- **missing**")]
    for what in ("At least 5 operating points", "seeds of every result", "The same with twice the budget",
                 "Everything that the recipe asks for", "Random units of the same widths"):  # fmt: skip
        assert any(what in line for line in missing), what
    assert any("trained from scratch with the same budget" in line for line in lines if line.startswith("- yes"))
    whole = [line for line in (filled / "report.md").read_text().splitlines() if line.startswith("- yes")]
    assert any("Everything that the recipe asks for" in line for line in whole)


def test_a_folder_without_a_comparison_or_with_a_damaged_cell_is_named(filled: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing of `prune-fe run` or `prune-fe compare` to report"):
        report.write_report(tmp_path)
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    cell = next((folder / "cells").glob("*random*"))
    cell.write_text(cell.read_text()[:100])
    with pytest.raises(CheckpointError, match="damaged .*; delete it, and it is made again"):
        report.write_report(folder)
    for path in (folder / "cells").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no network has been measured yet"):
        report.write_report(folder)


def test_bad_input_is_said_before_any_network_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "_load_or_train", lambda *_: pytest.fail("trained"))

    def wrong(change: dict[str, Any], text: str) -> None:
        with pytest.raises(InputError, match=text):
            fill(tmp_path / "c", Recipe.model_validate(CONTENT | change))
        shutil.rmtree(tmp_path / "c", ignore_errors=True)

    wrong({"prune": {"ranking": "global"}}, "prune.ranking: a comparison takes the same share of every layer")
    wrong({"data": {"source": "digits", "size": 6}}, "network 'one': feature-entropy: layer 'features.4': maps are 3×3")
    nowhere = {"networks": {"x": {"name": "no-such-net"}}}
    wrong({"compare": nowhere}, "network 'x': .*no-such-net")
    for faulty, text in (
        ({"ratios": [0.5], "target_macs": [0.5]}, "ratios and target_macs were given"),
        ({"ratios": [0.5, 0.5]}, "ratios: one of them is given twice"),
        ({"ratios": []}, "at least 1 item"),
        ({"networks": {"../x": {"name": "vgg-small"}}}, "String should match"),
    ):
        with pytest.raises(ValueError, match=text):
            Recipe.model_validate(CONTENT | {"compare": faulty})


def test_targets_are_operating_points_too(tmp_path: Path) -> None:
    compared = {"target_macs": [0.5], "scratch": []}
    recipe = Recipe.model_validate(CONTENT | {"compare": compared, "seeds": [0], "scorers": ["random"]})
    fill(tmp_path / "c", recipe)
    part = load_findings(tmp_path / "c")
    assert (part.goal, part.points, part.networks) == ("target_macs", [0.5], ["vgg-small"])
    cell = part.select("vgg-small", "random", 0.5)[0]
    assert cell.row.macs < 0.7 * part.select("vgg-small", UNPRUNED)[0].row.macs
    assert "multiply-adds left 0.5" in " ".join(
        text for text in report.report_markdown("", "", list(report.report_sections(part))).splitlines()
    )


def test_nothing_of_what_was_asked_for_can_hide(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checklist, "FEW_POINTS", 2)
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    for path in (folder / "cells").iterdir():
        if "zeros" in path.name or "scratch" in path.name or "ratio-0.75" in path.name:
            path.unlink()
    part = load_findings(folder)
    assert (part.points, part.scratch) == ([0.25, 0.75], ["scratch#1", "scratch#2"])
    assert "two: zeros at ratio 0.25: 0 of 2 seeds" in part.missing
    assert "two: scratch#2 at ratio 0.75: 0 of 2 seeds" in part.missing
    assert "one: l1-filter at ratio 0.75: 0 of 2 seeds" in part.missing
    report.write_report(folder)
    lines = [line for line in (folder / "report.md").read_text().splitlines() if line.startswith("- yes")]
    for what in ("Random units", "Filter L1", "from scratch", "Everything", "operating points", "Accuracy before",
                 "The same cost"):  # fmt: skip
        assert not any(what in line for line in lines), what


def test_a_ratio_of_zero_is_a_point_of_its_own(tmp_path: Path) -> None:
    compared = {"ratios": [0.0, 0.5], "scratch": []}
    fill(tmp_path / "c", Recipe.model_validate(CONTENT | {"compare": compared, "seeds": [0], "scorers": ["random"]}))
    part = load_findings(tmp_path / "c")
    assert part.points == [0.0, 0.5]
    unpruned, none, half = (part.select("vgg-small", s, p)[0].row for s, p in
                            ((UNPRUNED, None), ("random", 0.0), ("random", 0.5)))  # fmt: skip
    assert none.parameters == unpruned.parameters > half.parameters
    assert none.accuracy_pruned == pytest.approx(unpruned.accuracy)


def test_from_scratch_is_a_new_network_of_the_same_widths(filled: Path, found: Findings, tmp_path: Path) -> None:
    """Its first weights are as its constructor draws them, and not those that the trained network began with."""
    recipe = with_controls(RECIPE)
    folder = RunFolder(filled, RECIPE.model_dump(mode="json"), shared=True)
    comparison = compare.Comparison(experiment.begin(recipe, folder, Silent()))
    drawn: list[torch.nn.Module] = []

    def fit(_: Any, model: torch.nn.Module, *__: Any) -> list[Any]:
        drawn.append(copy.deepcopy(model))
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "fit", fit)
        comparison._from_scratch("one", 0, "scratch#1", 0.75, tmp_path / "x.json")
    cell = load_result(tmp_path / "x.json")
    assert cell.removed == found.select("one", "random", 0.75)[0].removed
    assert cell.row.parameters == found.select("one", "random", 0.75)[0].row.parameters
    torch.manual_seed(0 + compare.SEED_OFFSET)
    fresh = dict(comparison.select("one", 0).build_network().named_parameters())["features.4.weight"]
    outs, ins = ([u for u in range(n) if u not in cell.removed[f"features.{i}"]] for i, n in ((4, 8), (0, 4)))
    assert torch.equal(dict(drawn[0].named_parameters())["features.4.weight"], fresh[outs][:, ins])


def test_the_budget_is_what_the_control_was_trained_for(found: Findings) -> None:
    control = found.select("one", "random", 0.25)[0]
    assert compare.budget_of(RECIPE, control) == 1 + 1
    epochs = [{"number": number} for number in (0, 1, 2, 0, 1, 2)]  # two rounds of two epochs
    rounds = dataclasses.replace(control, epochs=epochs)
    assert compare.budget_of(RECIPE, rounds) == 1 + 4
    assert compare.budget_of(RECIPE.model_copy(update={"train": None}), rounds) == 4
    assert count_epochs(TrainOptions()) == 3


def test_a_cell_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    small = {"seeds": [0], "scorers": ["apoz"], "compare": {"ratios": [0.5], "scratch": [1]}}
    recipe.write_text(yaml.safe_dump(CONTENT | small))
    real = compare.compress

    def diverges(at_point: Any, entry: Any, scores: Any) -> Any:
        if entry.label == "random":
            raise InputError("the loss is nan in epoch 1: lower lr (it is 9)")
        return real(at_point, entry, scores)

    monkeypatch.setattr(compare, "compress", diverges)
    assert main(["compare", str(recipe), "--output", str(tmp_path / "runs")]) == 2
    out = capsys.readouterr()
    assert (
        "1 tasks failed, and 1 more that need them; the first is cells.vgg-small.seed-0.random.ratio-0.5: the loss"
        in out.err
    )
    assert "report: " in out.out
    page = (tmp_path / "runs/t-1/report.md").read_text()
    assert "**missing**: Failed: cells.vgg-small.seed-0.random.ratio-0.5 (the loss is nan in epoch 1" in page
    part = load_findings(tmp_path / "runs/t-1")
    assert part.missing == [f"vgg-small: {scorer} at ratio 0.5: 0 of 1 seeds" for scorer in ("random", "scratch#1")]
    assert len(part.select("vgg-small", "l1-filter", 0.5)) == 1
    monkeypatch.setattr(tasks, "world_size", lambda: 2)  # the others would wait for a process that goes on alone
    words = ["compare", str(recipe), "--output", str(tmp_path / "runs"), "--resume", "auto"]
    assert main(words) == 2
    assert "prune-fe: cells.vgg-small.seed-0.random.ratio-0.5: the loss is nan in epoch 1" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(words) == 0
    assert "Failed" not in (tmp_path / "runs/t-1/report.md").read_text()


def test_a_damaged_network_says_what_to_do(filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled, tmp_path / "c", ignore=shutil.ignore_patterns("one.seed-0.zeros.ratio-0.25.json"))
    weights = tmp_path / "c/networks/one/seed-0/trained/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="trained.*; delete .*trained, and it is made again"):
        fill(tmp_path / "c")


def test_what_cannot_be_pruned_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "_load_or_train", lambda *_: pytest.fail("trained"))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(CONTENT))
    assert main(["compare", str(recipe), "--output", str(tmp_path / "runs"), "--set", "prune.protect=[nolayer]"]) == 2
    assert "network 'one': " in (said := capsys.readouterr().err)
    assert "nolayer" in said
    assert not any((tmp_path / "runs").iterdir())


def test_a_run_and_a_comparison_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = RECIPE.model_dump(mode="json")
    compared = RunFolder.create(tmp_path, "t", content, shared=True)
    alone = RunFolder.create(tmp_path, "t", content)
    for folder in (compared, alone):
        folder.close()
    with pytest.raises(InputError, match="t-1 is the folder of a comparison: choose another one"):
        RunFolder.resume(compared.path, content)
    with pytest.raises(InputError, match="t-2 is no folder of a comparison: choose another one"):
        RunFolder.resume(alone.path, content, shared=True)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(CONTENT | {"name": "other"}))
    RunFolder.create(tmp_path, "other", content, shared=True).close()
    assert main(["run", str(recipe), "--output", str(tmp_path), "--resume", "auto"]) == 2
    assert "no run of 'other' to resume" in capsys.readouterr().err


def test_points_that_are_close_have_cells_of_their_own() -> None:
    folder = RunFolder.__new__(RunFolder)
    folder.path = Path("f")
    splits, device = prune_fe.digits(12), torch.device("cpu")
    one = experiment.Experiment(RECIPE, splits, 0, device, folder, Path("f"), Silent()).with_network("one")
    assert one.result_path("apoz", 0.5) == Path("f/cells/one.seed-0.apoz.ratio-0.5.json")
    assert one.result_path("apoz", 0.5000001).name == "one.seed-0.apoz.ratio-0.5000001.json"
    assert one.result_path(UNPRUNED).name == "one.seed-0.unpruned.json"


def test_a_cell_whose_images_are_not_its_own_is_damaged(filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled, tmp_path / "c")
    path = tmp_path / "c/cells/one.seed-0.zeros.ratio-0.25.json"
    content = json.loads(path.read_text())
    bits, images = content["correct"]["bits"], content["correct"]["images"]
    for changed in ({"bits": bits[:20]}, {"bits": "A" * len(bits)}, {"images": images - 40}):
        path.write_text(json.dumps(content | {"correct": content["correct"] | changed}))
        with pytest.raises(CheckpointError, match="ratio-0.25.json: damaged .*; delete it, and it is made again"):
            load_findings(tmp_path / "c")
    path.write_text(json.dumps(content))
    test = json.loads((tmp_path / "c/test.json").read_text())
    (tmp_path / "c/test.json").write_text(json.dumps(test | {"labels": test["labels"][:-1]}))
    with pytest.raises(CheckpointError, match=f"has {images} test images, test.json has {images - 1}"):
        load_findings(tmp_path / "c")


def test_a_budget_that_the_steps_do_not_fill_is_a_cosine(
    filled: Path, found: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[Any] = []

    def keeps(*arguments: Any) -> Any:
        settings.append(arguments[2])
        raise InputError("enough")

    steps = CONTENT | {"train": {"lr": 0.05, "batch_size": 64, "schedule": "step"}}
    shutil.copytree(filled, tmp_path / "c", ignore=shutil.ignore_patterns("*scratch*"))
    recipe = Recipe.model_validate(steps)
    (tmp_path / "c/recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    monkeypatch.setattr(compare, "fit", keeps)
    with pytest.raises(InputError, match="tasks failed"):
        fill(tmp_path / "c", recipe)
    # four steps from 0.05 on, and one epoch of fine-tuning
    assert {(each.schedule, each.epochs, each.lr) for each in settings} == {("cosine", 5, 0.05), ("cosine", 10, 0.05)}
    sections = list(report.report_sections(dataclasses.replace(found, recipe=recipe)))
    assert "Its learning rate follows a cosine" in report.report_markdown("", "", sections)
    whole = report.report_markdown("", "", list(report.report_sections(found)))
    assert "Its learning rate follows a cosine" not in whole


def test_those_who_share_a_comparison_may_have_other_machines_but_no_other_images(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    elsewhere = RECIPE.model_copy(update={"device": "cpu", "threads": 2, "workers": 0})
    fill(folder, elsewhere)
    with pytest.raises(InputError, match="was begun with another recipe .not the same: finetune"):
        fill(folder, RECIPE.model_copy(update={"finetune": None}))
    content = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps(content | {"labels": content["labels"][::-1]}))
    with pytest.raises(InputError, match="was begun with other test images or classes"):
        fill(folder)


def test_a_label_of_a_control_is_the_controls() -> None:
    for label in ("random", "l1-filter"):
        with pytest.raises(InputError, match=f"the label '{label}' is a control's, give 'apoz' another one"):
            with_controls(Recipe.model_validate(CONTENT | {"scorers": [{"name": "apoz", "label": label}]}))


def test_the_commands(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(CONTENT | {"name": "t", "seeds": [0]}))
    words = ["compare", str(recipe), "--output", str(tmp_path / "runs"), "--set", "compare.scratch=[]"]
    words += ["--set", "compare.networks={}", "--set", "compare.ratios=[0.5]"]
    assert main(words) == 0
    assert "report: " in capsys.readouterr().out
    page = tmp_path / "runs/t-1/report.html"
    first = page.read_text()
    page.unlink()
    assert main([*words, "--resume", "auto"]) == 0
    assert page.read_text() == first
    page.unlink()
    assert main(["report", str(page.parent)]) == 0
    assert page.read_text() == first
    assert main(["report", str(tmp_path)]) == 2
    assert "nothing of `prune-fe run`" in capsys.readouterr().err


def test_a_full_disk_costs_the_current_cell_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    small = {"seeds": [0], "scorers": ["apoz"], "compare": {"ratios": [0.5], "scratch": []}}
    recipe.write_text(yaml.safe_dump(CONTENT | small))
    words, real = ["compare", str(recipe), "--output", str(tmp_path / "runs")], os.replace

    def full(source: Any, target: Any) -> None:
        if "random.ratio" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert main(words) == 5
    said = capsys.readouterr().err
    assert re.search(r"random.ratio-0.5.json: No space left on device \(\d+ MiB free\); what is finished is kept", said)
    monkeypatch.setattr(os, "replace", real)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs/t-1/cells").glob("[!.]*.json")}
    assert len(kept) == 2
    (tmp_path / "runs/t-1/cells/.half.json").write_text("{")  # as a kill leaves it
    assert main([*words, "--resume", "auto"]) == 0
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs/t-1/cells").glob("[!.]*.json")}
    assert len(now) == 4
    assert kept.items() <= now.items()


def test_a_run_has_the_same_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({k: v for k, v in CONTENT.items() if k != "compare"} | {"seeds": [0]}))
    assert main(["run", str(recipe), "--output", str(tmp_path / "runs")]) == 0
    page = (tmp_path / "runs/t-1/report.html").read_text()
    for words in (
        "What came out",
        "feature-entropy",
        "zeros",
        "H/ε, nats by depth",
        "What a comparison must report",
        "missing",
    ):
        assert words in page
    assert "There is no random to compare with" in page


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_in_a_browser_without_errors(filled: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    words = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        "--virtual-time-budget=2000", f"--user-data-dir={tmp_path}/profile", f"file://{filled}/report.html",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    for text in ("What came out", "<svg", "from scratch, 1× budget", "Checklist, filled in from the data"):
        assert text in done.stdout
