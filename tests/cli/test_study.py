"""prune-fe study."""

import csv
import shutil
from pathlib import Path

from prune_fe.cli.app import main


def test_a_study_prints_its_tables_and_uses_the_trained_network_of_a_run(done, recipe, capsys):
    shutil.copytree(done[1], "runs/tiny-1")
    words = ["study", "rescaling", "tiny.yaml", "--resume", "auto", "--layer", "features.0", "--unit", "1"]
    assert main([*words, "--class", "3"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "epochs" not in printed
    for text in ("studying unit 1 of 'features.0'", "class '3', 5 training images", "APoZ", "FPGM", "half scale"):
        assert text in printed
    name = "runs/tiny-1/study-rescaling-seed-0-features.0-unit-1-class-3-samples-5"
    assert "| ×, × |" in Path(f"{name}.md").read_text()
    rows = list(csv.DictReader(Path(f"{name}.csv").read_text().splitlines()))
    assert {row["row"] for row in rows if "tables 9" in row["table"]} == {
        "×, ×",
        "half scale, ×",
        "×, half scale",
        "half scale, half scale",
    }
    wrong = {
        ("--layer", "nope"): "no such module",
        ("--unit", "4"): "no unit 4, it has 4",
        ("--class", "x"): "no such class",
        ("--seed", "5"): "seed 5: the recipe has 0",
        ("--samples", "9999"): "the smallest class has",
    }
    for more, message in wrong.items():
        assert main([*words[:5], *more]) in (2, 3)
        assert message in capsys.readouterr().err
