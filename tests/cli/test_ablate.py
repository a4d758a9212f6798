"""prune-fe ablate."""

import csv
import json
import shutil
from pathlib import Path

from prune_fe.cli.app import main
from tests.cli.helpers import refused

QUICK = ["--set", "ablate.control_seeds=1", "--set", "ablate.every=2"]


def test_one_class_of_the_last_convolution_in_both_orders(done, recipe, capsys):
    shutil.copytree(done[1], "runs/tiny-1")
    words = ["ablate", str(recipe), "--class", "3"]
    assert main([*words, *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "Table 11" in printed
    rows = list(csv.DictReader(Path("runs/tiny-2/ablation-features.4.csv").read_text().splitlines()))
    assert {row["class"] for row in rows} == {"3"}
    assert {row["order"] for row in rows} == {"ascending", "descending"}
    assert {row["scorer"] for row in rows} == {"l1-filter", "feature-entropy", "random#0"}


def test_an_unknown_layer_or_class_is_refused_and_leaves_no_run(recipe, capsys):
    assert "layer 'features.9'" in refused(capsys, 2, "ablate", recipe, "--layer", "features.9")
    assert "class 'ten'" in refused(capsys, 2, "ablate", recipe, "--class", "ten")
    assert list(Path("runs").iterdir()) == []


def test_a_trained_network_needs_no_recipe(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    words = ["ablate", "--model", trained, "--data", "digits", "--scorer", "l1-filter", "feature-entropy"]
    assert main([*words, "--score-samples", "4", "--class", "3", *QUICK, "--output", "studies", "--json"]) == 0
    printed = capsys.readouterr()
    assert "layer 'features.4': the last convolution" in printed.err
    assert "multiplied by a random factor" not in printed.err
    [run] = Path("studies").iterdir()
    content = json.loads(printed.out)
    assert content["folder"] == str(run)
    assert {entry["row"] for entry in content["numbers"]} >= {"l1-filter", "feature-entropy", "random"}
    assert (run / "ablation-features.4.csv").is_file()
    assert "name a recipe, or a trained network with --model" in refused(capsys, 2, "ablate")
    assert "not both" in refused(capsys, 2, "ablate", "quickstart", "--model", trained)
    assert "--model needs images: pass --data PATH" in refused(capsys, 2, "ablate", "--model", trained)
    assert "vgg-small has no trained weights" in refused(
        capsys, 2, "ablate", "--model", "vgg-small", "--data", "digits"
    )
