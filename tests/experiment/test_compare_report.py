"""The report of a small comparison that was really made: its numbers are those of the results."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from prune_fe.cli.app import main
from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.results import UNPRUNED
from prune_fe.measure.statistics import spearman
from prune_fe.records import read_record, write_record
from prune_fe.report import checklist, report
from prune_fe.report.findings import Findings
from prune_fe.report.loading import load_findings
from tests.experiment.helpers import CELLS, CONTENT, SCORERS

pytestmark = pytest.mark.xdist_group("compare")  # so that `filled` is made once


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
    assert "not compared, because seeds are missing: zeros" in text
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
    assert "| one | 0.25 (1 of 2 seeds) |" in text
    alone = dataclasses.replace(found, results=found.select("one", "zeros", 0.25))
    text = report.report_markdown("", "", list(report.report_sections(alone)))
    assert "no other criterion" in text


def test_a_control_with_a_label_of_its_own_counts(found: Findings) -> None:
    content = found.recipe.model_dump(mode="json")
    for entry in content["scorers"]:
        entry["label"] = "norm" if entry["name"] == "l1-filter" else entry["label"]
    cells = [
        dataclasses.replace(cell, row=dataclasses.replace(cell.row, scorer="norm"))
        if cell.row.scorer == "l1-filter"
        else cell
        for cell in found.results
    ]
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
    for words in (
        "Trade-off: one",
        "Which classes pay: two",
        "Spearman",
        "from scratch, 2× budget",
        "measured time",
        "data.validation",
        "Commits of the results",
    ):
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
    for what in (
        "At least 5 operating points",
        "seeds of every result",
        "The same with twice the budget",
        "Everything that the recipe asks for",
        "Random units of the same widths",
    ):
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
    with pytest.raises(CheckpointError, match="damaged .*; delete it, and the next run makes it again"):
        report.write_report(folder)
    for path in (folder / "cells").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no network has been measured yet"):
        report.write_report(folder)


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
    for what in (
        "Random units",
        "Filter L1",
        "from scratch",
        "Everything",
        "operating points",
        "Accuracy before",
        "The same cost",
    ):
        assert not any(what in line for line in lines), what


def test_a_cell_whose_images_are_not_its_own_is_damaged(filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled, tmp_path / "c")
    path = tmp_path / "c/cells/one.seed-0.zeros.ratio-0.25.json"
    content = read_record(path)
    bits, images = content["correct"]["bits"], content["correct"]["images"]
    for changed in ({"bits": bits[:20]}, {"bits": "A" * len(bits)}, {"images": images - 40}):
        write_record(path, content | {"correct": content["correct"] | changed})
        with pytest.raises(
            CheckpointError, match="ratio-0.25.json: damaged .*; delete it, and the next run makes it again"
        ):
            load_findings(tmp_path / "c")
    write_record(path, content)
    test = read_record(tmp_path / "c/test.json")
    write_record(tmp_path / "c/test.json", test | {"labels": test["labels"][:-1]})
    with pytest.raises(CheckpointError, match=f"has {images} test images, test.json has {images - 1}"):
        load_findings(tmp_path / "c")


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
    assert "better than random" not in page


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_in_a_browser_without_errors(filled: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    words = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--dump-dom",
        "--virtual-time-budget=2000",
        f"--user-data-dir={tmp_path}/profile",
        f"file://{filled}/report.html",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    for text in ("What came out", "<svg", "from scratch, 1× budget", "Checklist, filled in from the data"):
        assert text in done.stdout
