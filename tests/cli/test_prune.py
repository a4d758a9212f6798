"""prune-fe prune."""

import json
from pathlib import Path

import torch

from prune_fe.cli.app import main
from prune_fe.models.build import build
from prune_fe.models.saved import load, save
from tests.cli.helpers import refused, scored


def test_scores_of_another_network_prune_nothing(capsys):
    assert scored("--scorer", "random") == 0
    words = ["prune", "--scores", "scores", "--size", "64", "--num-classes", "10"]
    assert main([*words, "--model", "resnet18"]) == 2
    assert "scores are of another network (SmallVGG, 6 layers)" in capsys.readouterr().err
    torch.manual_seed(5)
    torch.save(build("vgg-small", 10, in_channels=1).state_dict(), "other.pth")
    words = ["prune", "--model", "vgg-small", "--scores", "scores", "--num-classes", "10", "--output", "new"]
    assert main([*words, "--size", "16", "--checkpoint", "other.pth"]) in (0, 2, 4)
    assert not Path("new").exists() or "scores of other weights" in capsys.readouterr().out


def test_prune_takes_budgets_patterns_and_protection_and_recalibrates(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    assert main(["score", "--model", trained, "--scorer", "l1-filter"]) == 0
    capsys.readouterr()
    words = ["prune", "--model", trained, "--scores", "scores"]
    assert main([*words, "--ratio", "features.[!0]=0.5", "features.0=0.25", "--output", "by-name", "--json"]) == 0
    printed = capsys.readouterr()
    assert "features.0: 4 units, 1 asked, 1 removed, 3 kept" in printed.err
    content = json.loads(printed.out)
    assert content["steps"][0] == {
        "layers": ["features.0"], "units": 4, "asked": 1, "removed": 1, "reason": None
    }  # fmt: skip
    assert content["macs_left"] == content["after"]["macs"] / content["before"]["macs"]
    words += ["--protect", "features.0", "--data", "digits", "--recalibrate", "50", "--target-params", "0.6"]
    assert main([*words, "--output", "protected"]) == 0
    printed = capsys.readouterr().out
    assert "features.0: 4 units, 0 asked, 0 removed, 4 kept (protected)" in printed  # of a budget
    assert "batch norms recalibrated on 50 training images" in printed
    words[words.index("50")] = "5000"
    assert main([*words, "--output", "never"]) == 3
    assert "--recalibrate 5000: there are" in capsys.readouterr().err


def test_scores_of_other_weights_are_refused_unless_they_are_asked_for(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    assert main(["score", "--model", trained, "--scorer", "l1-filter"]) == 0
    other = load(trained)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save(other, "other", {"size": 16})
    words = ["prune", "--model", "./other", "--scores", "scores"]
    message = refused(capsys, 2, *words)
    assert "scores holds scores of other weights than those of ./other; is --checkpoint FILE missing?" in message
    assert main([*words, "--other-weights"]) == 0
    assert "note: scores holds scores of other weights" in capsys.readouterr().out


def test_units_are_scored_again_before_each_round(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    assert main(["score", "--model", trained, "--data", "digits", "--scorer", "apoz", "--samples", "3"]) == 0
    words = ["prune", "--model", trained, "--scores", "scores", "--rounds", "2"]
    assert "--rounds 2 does the same as 1 without --rescore each_round" in refused(capsys, 2, *words)
    words += ["--rescore", "each_round"]
    assert "--rescore each_round: apoz reads images, pass --data PATH" in refused(capsys, 2, *words)
    assert main([*words, "--data", "digits"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("layers again by apoz") == 1
    assert "left (asked for" not in printed
