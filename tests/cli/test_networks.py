"""The network that a command works on."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from prune_fe.cli.app import main
from prune_fe.cli.networks import load
from prune_fe.cli.parameters import DataFlags, ModelFlags
from prune_fe.models.build import build
from prune_fe.models.manifest import read_manifest
from prune_fe.models.saved import load as load_saved
from prune_fe.models.saved import save
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


def _write(path, outputs, channels=3, **content):
    """Write the checkpoint of a network from a wrapped model, beside other entries, and return its state dict."""
    state = build("vgg-small", outputs, in_channels=channels).state_dict()
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3} | content, path)
    return state


def test_outputs_channels_and_classes_are_those_of_the_checkpoint(done, capsys):
    _write("net.pth", 2, channels=1, classes=["dog", "cat"])
    words = ["--model", "vgg-small", "--checkpoint", "net.pth", "--size", "32"]
    assert main(["score", *words, "--scorer", "l1-filter"]) == 0
    printed = capsys.readouterr().out
    assert "note: net.pth: read without 'module.' in its names; ignored are epoch" in printed
    assert "--num-classes" not in printed
    assert main(["prune", *words, "--scores", "scores/l1-filter"]) == 0
    pruned = load_saved("pruned")
    state = pruned.state_dict()
    assert state["features.0.weight"].shape[1] == 1
    assert len(state["classifier.weight"]) == 2
    assert read_manifest("pruned")["about"]["classes"] == ["dog", "cat"]


def test_outputs_are_compared_with_the_classes_of_the_data_by_name(done, photos, capsys):
    first, second = "<script>", "=cmd"
    state = _write("net.pth", 2, classes=[second, first])
    flags = ModelFlags(model="vgg-small", checkpoint=Path("net.pth"), size=16)
    loaded = load(flags, DataFlags(data=str(photos)), "cpu", 0)
    assert torch.equal(loaded.network.state_dict()["classifier.bias"], state["classifier.bias"].flip(0))
    assert "its outputs are re-ordered to the classes of the data" in capsys.readouterr().out
    _write("net.pth", 2, classes=[first, "other"])
    words = ["--model", "vgg-small", "--checkpoint", "net.pth", "--size", "16", "--data", photos]
    message = refused(capsys, 4, "evaluate", *words)
    assert message == "net.pth: its classes are not the 2 of the data: other only in the network; =cmd only in the data"
    assert main([*map(str, ["finetune", *words, "--epochs", "1"])]) == 0
    assert "does not fit classifier, made anew with random weights" in capsys.readouterr().out
    assert read_manifest("finetuned")["about"]["classes"] == [first, second]


def test_classes_of_each_file_of_a_series_are_compared(done, photos, capsys):
    Path("series").mkdir()
    first, second = "<script>", "=cmd"
    _write("series/1.pth", 2, classes=[second, first])
    _write("series/2.pth", 2, classes=[first, "other"])
    words = ["--model", "vgg-small", "--from-checkpoints", "series", "--size", "16", "--data", photos]
    assert "2.pth: its classes are not" in refused(capsys, 4, "score", "--scorer", "l1-filter", *words)


def test_a_saved_model_is_used_on_its_classes_only_unless_it_is_trained(done, photos, capsys):
    save(build("vgg-small", 2, stages=[[4], [4]]), "colour", {"size": 16, "classes": ["=cmd", "a"]})
    words = ["--model", "colour", "--data", photos]
    text = f"{photos}: its classes are not those that colour was trained on (=cmd, a): a only in the network; <script>"
    for command in (["score", "--scorer", "l1-filter"], ["evaluate"]):
        assert text in refused(capsys, 3, *command, *words)
    assert main([*map(str, ["finetune", *words, "--epochs", "1"])]) == 0
    assert "note: " in (printed := capsys.readouterr().out)
    assert "its classes are not those that colour was trained on" in " ".join(printed.split())


def test_the_index_of_several_files_is_a_checkpoint(done, capsys):
    state = build("vgg-small", 7).state_dict()
    save_file(state, "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
    Path("model.safetensors.index.json").write_text(json.dumps(index))
    words = ["--model", "vgg-small", "--checkpoint", "model.safetensors.index.json", "--size", "32"]
    assert main(["score", *words, "--scorer", "l1-filter"]) == 0


def test_a_whole_network_as_a_checkpoint_is_explained_in_one_line(done, capsys):
    torch.save(build("vgg-small", 7), "net.pth")
    message = refused(capsys, 4, "score", "--scorer", "l1-filter", "--model", "vgg-small", "--checkpoint", "net.pth")
    assert "import torch; model = torch.load('net.pth', weights_only=False); torch.save(model.state_dict()" in message
