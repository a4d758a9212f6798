"""prune-fe compare."""

from pathlib import Path

from prune_fe.cli.app import main
from tests.cli.helpers import names, refused

GRID = ["--set", "compare.ratios=[0.5]", "--set", "compare.scratch=[]"]


def test_a_comparison_leaves_its_results_and_a_report_and_is_continued(recipe, capsys):
    assert main(["compare", str(recipe), *GRID]) == 0
    assert "report: runs/tiny-1/report.html" in capsys.readouterr().out
    results = {path: path.read_bytes() for path in Path("runs/tiny-1/cells").iterdir()}
    assert {path.name.split(".seed-0.")[1] for path in results} == {
        "unpruned.json",
        "unpruned-fine-tuned.json",
        "l1-filter.ratio-0.5.json",
        "feature-entropy.ratio-0.5.json",
        "random.ratio-0.5.json",
    }
    assert main(["compare", str(recipe), *GRID, "--resume", "auto"]) == 0
    assert {path: path.read_bytes() for path in Path("runs/tiny-1/cells").iterdir()} == results
    assert "runs: no run of 'tiny' to resume" in refused(capsys, 2, "run", recipe, "--resume", "auto")


def test_what_cannot_be_compared_is_refused_and_leaves_no_run(recipe, capsys):
    message = refused(capsys, 2, "compare", recipe, *GRID, "--set", "prune.ranking=global")
    assert "prune.ranking: a comparison takes the same share of every layer" in message
    assert names("runs") == []
