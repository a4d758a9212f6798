"""prune-fe evaluate."""

import json
from pathlib import Path

from prune_fe.cli.app import main
from prune_fe.models.build import build
from prune_fe.models.saved import save
from tests.cli.helpers import names, refused

LATENCY = ["--latency", "--batch-sizes", "1", "2", "--threads", "1", "--seconds", "0.001"]


def test_a_model_of_other_classes_is_not_evaluated(done, photos, capsys):
    colour = build("vgg-small", 2, stages=[[4], [4]])
    save(colour, "colour", {"size": 16, "classes": ["a", "b"]})
    message = refused(capsys, 3, "evaluate", "--model", "colour", "--data", photos)
    assert "its classes are not those that colour was trained on (a, b)" in message
    grey = done[1] / "seed-0" / "trained"
    assert "does not run on images of 3×16×16" in refused(capsys, 2, "evaluate", "--model", grey, "--data", photos)


def test_the_images_may_be_those_of_training(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    counts = {}
    for split in ("test", "train", "validation"):
        assert main(["evaluate", "--model", trained, "--data", "digits", "--split", split]) == 0
        printed = capsys.readouterr().out
        counts[split] = int(printed.partition(" % of ")[2].partition(f" {split} images")[0].replace(",", ""))
    assert counts["train"] > counts["test"] > counts["validation"] > 0
    assert "--split" in refused(capsys, 2, "evaluate", "--model", trained, "--data", "digits", "--split", "val")


def test_the_time_of_a_pruned_network_is_compared_with_its_original(done, capsys):
    pruned = str(done[1] / "seed-0" / "l1-filter" / "pruned")
    assert main(["evaluate", "--model", pruned, *LATENCY, "--dtype", "float32", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" not in printed  # no images were read
    assert "original -> pruned: parameters 246 -> 92, multiply-adds 18,472 -> 6,932 an image of 16×16" in printed
    for row in ("1, float32, contiguous", "2, bfloat16, channels_last"):
        assert row in printed
    assert "Multiply-adds fell to 38%" in printed


def test_quality_and_time_are_said_together_against_a_named_network(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    assert main(["evaluate", "--model", trained, "--data", "digits", *LATENCY, "--against", "vgg-small"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("accuracy ") < printed.index("original -> pruned") < printed.index("Multiply-adds fell to ")
    assert main(["evaluate", "--model", "vgg-small", "--size", "16", "--num-classes", "10", *LATENCY,
                 "--against", trained]) == 2  # fmt: skip
    assert f"{trained} does not run on images of 3×16×16" in capsys.readouterr().err


def test_the_numbers_are_written_and_printed_as_json(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    words = ["evaluate", "--model", trained, "--data", "digits", "--json", "--output", "quality"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert names("quality") == ["classes.csv", "confusion.csv", "confusion.svg", "evaluation.json"]
    written = json.loads(Path("quality/evaluation.json").read_text())
    assert all(written[key] == printed[key] for key in ("accuracy", "classes"))
    assert printed["accuracy_low"] < printed["accuracy"] < printed["accuracy_high"]
    assert sum(row["images"] for row in printed["classes"]) == printed["images"] == 360
    assert sum(map(sum, printed["confusion"])) == 360
    assert printed["timing_disturbed"] in (True, False)
    assert "quality exists already" in refused(capsys, 2, *words)
    assert "--output holds what is measured on images" in refused(
        capsys, 2, "evaluate", "--model", trained, *LATENCY, "--against", trained, "--output", "q"
    )
