"""prune-fe finetune, and the steps one after the other."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import prune_fe.models.checkpoints
from prune_fe.cli.app import main
from prune_fe.io import claimed
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
    assert "epoch 1: lr 0.0002 to" in capsys.readouterr().out
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


WORDS = ["finetune", "--model", "vgg-small", "--data", "digits", "--size", "12", "--epochs", "3", "-b", "64"]


def contents(folder):
    files = {path.name: path.read_bytes() for path in Path(folder).glob("*.pth")}
    return files | {"network": load_file("finetuned/model.safetensors")["features.0.weight"].tolist()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_a_signal_ended_goes_on_to_the_same_bits(capsys, monkeypatch, number):
    words = [*WORDS, "--schedule", "cosine", "--checkpoints", "epochs"]
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs ignore
    assert main(words) == 0
    expected = contents("epochs")
    for name in ("finetuned", "epochs"):
        Path(name).rename(f"whole-{name}")

    def killing(task):
        return lambda done, total: os.kill(os.getpid(), number) if done == total * 2 // 3 + 2 else None

    with monkeypatch.context() as patch:
        patch.setattr("prune_fe.cli.output.reporter.progress", killing)
        printed = refused(capsys, 130, *words)
    assert printed == "interrupted; the same command continues after the last finished epoch"
    assert names(".") == ["epochs", "finetuned.unfinished", "whole-epochs", "whole-finetuned"]
    assert "finetuned.unfinished wrote none there" in refused(capsys, 2, *words[:-1], "others")
    assert "unfinished training of other weights, images, options" in refused(capsys, 2, *words, "--lr", "0.5")
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "holds an unfinished training" in printed
    assert "epoch 3: " in printed
    assert "epoch 1: " not in printed
    assert contents("epochs") == expected
    assert names("epochs") == sorted(expected.keys() - {"network"})
    assert names(".") == ["epochs", "finetuned", "whole-epochs", "whole-finetuned"]
    signal.signal(signal.SIGINT, inherited)


def test_a_full_disk_leaves_nothing_that_is_in_the_way(capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    words = [*WORDS, "--schedule", "cosine", "--checkpoints", "epochs"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "no space left" in refused(capsys, 5, *words)
    assert names(".") == []
    real = prune_fe.models.checkpoints.save_weights

    def full_later(network, path):
        return full() if path.name == "epoch-002.pth" else real(network, path)

    with monkeypatch.context() as patch:
        patch.setattr("prune_fe.models.checkpoints.save_weights", full_later)
        assert "no space left" in refused(capsys, 5, *words)
    assert main(words) == 0
    assert names("epochs") == [f"epoch-{number:03}.pth" for number in range(4)]


def test_an_output_that_another_process_will_write_is_refused_before_any_work(capsys, monkeypatch):
    monkeypatch.setattr("prune_fe.cli.finetune.load", lambda *_, **__: pytest.fail("work was begun"))
    for name in ("finetuned", "epochs"):
        with claimed(Path(name)):
            printed = refused(capsys, 5, *WORDS, "--checkpoints", "epochs")
        assert printed == f"{name} is in use by another run (process {os.getpid()})"
    assert names(".") == []


def test_what_the_defaults_come_to_and_the_epochs_are_said_and_written(capsys, monkeypatch):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([*WORDS[:-4], "--epochs", "2", "-b", "300", "--log", "tensorboard", "--warmup", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "2 epochs, each of 5 steps of 300 images; sgd, learning rate 0.09375 (cosine, warm-up 50%)" in printed
    assert "note: training takes 10 steps in all, which change a network little" in printed
    assert "epoch 1: lr 0.00094 to 0.075, training loss" in printed
    rows = Path("finetuned/epochs.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["number", "0", "1", "2"]
    assert len(list(Path("finetuned.tensorboard").iterdir())) == 1


def test_torchrun_trains_in_two_processes_as_in_one(capsys):
    import socket
    import subprocess
    import sys

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    words = [*WORDS[:-4], "--epochs", "1", "-b", "300", "--lr", "0.001", "--schedule", "step", "--sync-batchnorm"]
    completed = subprocess.run(
        [sys.executable, "-m", *launcher, f"--rdzv-endpoint=localhost:{port}", "-m", "prune_fe", *words],
        capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("epoch 1: ") == 1  # process 1 prints nothing
    together = load_file("finetuned/model.safetensors")
    assert main([*words, "--output", "alone"]) == 0
    for name, value in load_file("alone/model.safetensors").items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-4)
