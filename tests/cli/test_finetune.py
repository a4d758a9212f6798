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


def test_a_network_learns_from_a_teacher(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    words = ["finetune", "--model", trained, "--data", "digits", "--epochs", "1", "-b", "64", "--only", "classifier*"]
    assert main([*words, "--teacher", trained, "--distill-weight", "0.9", "--lr-by-layer", "classifier=0.5"]) == 0
    assert "epoch 1: lr 0.001" in capsys.readouterr().out
    assert names(".") == ["finetuned"]


def test_distillation_without_a_teacher_is_refused(capsys):
    printed = refused(capsys, 2, "finetune", "--model", "vgg-small", "--data", "digits", "--distill-temperature", "2")
    assert "--distill-weight and --distill-temperature need --teacher" in printed


def test_a_part_that_does_not_exist_is_refused(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    printed = refused(capsys, 2, "finetune", "--model", trained, "--data", "digits", "--only", "head.*")
    assert "only: no module or parameter is called 'head.*'" in printed
    printed = refused(capsys, 2, "finetune", "--model", trained, "--data", "digits", "--lr-by-layer", "classifier")
    assert "write NAME=FACTOR, such as features.*=0.1" in printed
