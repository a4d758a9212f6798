"""prune-fe finetune, and the steps one after the other."""

from prune_fe.cli.app import main
from prune_fe.models.manifest import read_manifest
from prune_fe.scoring.scores import load_scores
from tests.cli.helpers import names, refused


def test_score_prune_finetune_and_evaluate_follow_each_other(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    for words in (
        ["score", "--model", trained, "--data", "digits", "--samples", "3", "--set", "rank=edges", "--set", "p=1e-1"],
        ["prune", "--model", trained, "--scores", "scores", "--pruning-ratio", "0.5"],
        ["finetune", "--model", "pruned", "--data", "digits", "--epochs", "1", "--wd", "1e-4", "-b", "64", "-j", "0"],
        ["evaluate", "--model", "finetuned", "--data", "digits"],
    ):
        assert main(words) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert names(".") == ["finetuned", "pruned", "scores"]
    assert "features.0: 4 units, 2 asked, 2 removed, 2 kept" in printed
    assert "accuracy " in printed
    assert "an image of 16×16" in printed
    about = read_manifest("pruned")["about"]
    assert (about["prune"]["ratio"], about["size"], len(about["classes"])) == (0.5, 16, 10)
    assert about["preprocessing"]["mean"] == [0.5]
    origin = load_scores("scores").provenance
    assert about["scores"]["scorer"] == "feature-entropy"
    assert about["scores"]["key"] == origin["key"]
    assert about["scores"]["model_sha256"] == origin["model_sha256"]


def test_an_infinite_learning_rate_is_refused_before_the_network_is_built(capsys):
    printed = refused(capsys, 2, "finetune", "--model", "no-such-network", "--data", "digits", "--lr", "inf")
    assert "--lr: input should be a finite number (got inf)" in printed
