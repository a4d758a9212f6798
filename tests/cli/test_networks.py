"""The network that a command works on."""

import shutil
from pathlib import Path

import torch

from prune_fe.cli.app import main
from prune_fe.models.build import build
from tests.cli.helpers import refused


def test_a_state_dict_is_read_and_named_again_in_the_next_step(done, capsys):
    network = build("vgg-small", 10, in_channels=3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, "my net.pth")
    words = ["--checkpoint", "my net.pth", "--num-classes", "10", "--size", "32"]
    assert main(["score", "--model", "vgg-small", "--scorer", "l1-filter", *words]) == 0
    printed = capsys.readouterr().out
    assert "random weights" not in printed
    assert "--checkpoint 'my net.pth' --num-classes 10 --size 32" in printed


def test_a_model_that_is_a_file_a_run_folder_or_damaged_is_explained(done, capsys, tmp_path):
    (tmp_path / "net.pth").touch()
    common = ("--scorer", "l1-filter")
    assert "net.pth is a file: say which network" in refused(capsys, 2, "score", "--model", "net.pth", *common)
    assert "no manifest.json there" in refused(capsys, 4, "score", "--model", done[1], *common)
    shutil.copytree(done[1] / "seed-0" / "trained", "broken")
    with Path("broken/model.safetensors").open("ab") as file:
        file.write(b"x")
    assert "broken is damaged" in refused(capsys, 4, "score", "--model", "broken", *common)
    assert "--num-classes is for" in refused(capsys, 2, "score", "--model", "broken", "--num-classes", 3, *common)


def test_only_finetune_makes_a_new_classifier(done, capsys):
    torch.save(build("vgg-small", 99, in_channels=1).state_dict(), "backbone.pth")
    words = ["--model", "vgg-small", "--checkpoint", "backbone.pth", "--data", "digits"]
    printed = refused(capsys, 4, "evaluate", *words)
    assert "training gives it a new classifier (prune-fe finetune, or train: in a recipe)" in printed
    assert main(["finetune", *words, "--epochs", "1"]) == 0
    assert "does not fit classifier, made anew with random weights" in capsys.readouterr().out


def test_pretrained_is_for_a_model_built_by_name(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    printed = refused(capsys, 2, "score", "--model", trained, "--scorer", "l1-filter", "--pretrained")
    assert "--pretrained is for a model built by name" in printed
    printed = refused(capsys, 2, "score", "--model", "vgg-small", "--scorer", "l1-filter", "--pretrained")
    assert "model 'vgg-small' has no pretrained weights" in printed
