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
        ("--samples", "9999"): "the smallest compared class has",
    }
    for more, message in wrong.items():
        assert main([*words[:5], *more]) in (2, 3)
        assert message in capsys.readouterr().err


def test_layers_takes_several_layers_and_compares_with_random_networks(done, recipe, capsys):
    shutil.copytree(done[1], "runs/tiny-1")
    words = ["study", "layers", "tiny.yaml", "--resume", "auto", "--layer", "features.0", "features.3"]
    assert main([*words, "--random-seeds", "1", "--random-classes", "2", "--class", "3"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "epochs" not in printed
    for text in ("Layers: class 3", "features.3", "H random", "scored on 2 of the classes"):
        assert text in printed
    (path,) = Path("runs/tiny-1").glob("study-layers-seed-0-2-layers-*-class-3-samples-5-random-classes-2.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["network"] for row in rows} == {"trained", "random 0"}
    assert path.with_suffix(".svg").exists()
    assert main([*words, "--random-seeds", "0"]) == 2
    assert "--random-seeds" in capsys.readouterr().err


def test_flags_of_the_explanation_say_which_layers_and_images(recipe, monkeypatch, capsys):
    from prune_fe.studies import explanation

    given = []
    monkeypatch.setattr(explanation, "explanation_study", lambda *_, options, executor: given.append(options) or [])  # type: ignore[func-returns-value]
    words = ["study", "explanation", "tiny.yaml", "--layer", "features.0", "features.3", "--images-per-class", "2"]
    assert main([*words, "--seed", "0"]) == 0, capsys.readouterr().err
    assert (given[0].layers, given[0].images_per_class, given[0].seed) == (("features.0", "features.3"), 2, 0)
    assert main([*words[:-1], "0"]) == 2


def test_a_trained_network_needs_no_recipe(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    words = ["study", "rescaling", "--model", trained, "--data", "digits", "--samples", "6"]
    assert main([*words, "--output", "studies"]) == 0
    assert "layer 'features.4': the last convolution" in capsys.readouterr().out
