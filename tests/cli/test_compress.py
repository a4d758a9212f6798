"""prune-fe compress."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from prune_fe.cli.app import main
from prune_fe.data.digits import digits
from prune_fe.experiment import compression as steps
from prune_fe.models.build import build
from prune_fe.models.saved import load, save
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.training.loop import finetune
from tests.cli.helpers import names, refused

WORDS = ("compress", "--data", "digits", "--device", "cpu", "--epochs", "1", "--samples", "5", "--scorer", "l1-filter")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small trained network."""
    torch.manual_seed(0)
    network, data = SmallVGG(10, 1, stages=[[8], [16]]), digits(12, 0.5)
    finetune(network, data.train, data.validation, lr=0.05, schedule="cosine", epochs=2, batch_size=32)
    return save(network, tmp_path_factory.mktemp("net") / "trained", data.about)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    whole = steps.compare_latency
    monkeypatch.setattr(steps, "compare_latency", lambda *a, **b: whole(*a, **b, seconds=0.01))


def test_it_ends_with_three_lines_and_goes_on_from_what_is_finished(trained, capsys):
    words = [*WORDS, "--model", str(trained), "--target-macs", "0.6", "--threads", "1"]
    assert main(words) == 0
    *_, network, following, cost, time, accuracy = capsys.readouterr().out.splitlines()
    assert "prune_fe.load('compressed/model')" in network
    assert following == "next: prune-fe evaluate --model compressed/model --data digits --latency"
    assert " % of the multiply-adds" in cost
    assert "(batch 1, 1 thread;" in time
    assert accuracy.startswith("accuracy ")
    assert load("compressed/model")(torch.zeros(2, 1, 12, 12)).shape == (2, 10)
    assert {"report.html", "latency.json", "summary.csv", "model"} <= set(names("compressed"))
    recipe = yaml.safe_load(Path("compressed/recipe.yaml").read_text())
    assert (recipe["model"]["name"], recipe["prune"]["target_macs"]) == (str(trained), 0.6)
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    assert "compressed: what is finished there is used again" in printed.err
    assert printed.err.splitlines()[-3:] == [cost, time, accuracy]
    content = json.loads(printed.out)
    assert (content["model"], content["report"]) == ("compressed/model", "compressed/report.html")
    assert content["asked"] == {"target_macs": 0.6}
    change = content["accuracy_after"] - content["accuracy_before"]
    assert content["accuracy_change"]["mean"] == pytest.approx(change)
    assert "was begun with another recipe (different: prune)" in refused(
        capsys, 2, *words, "--set", "prune.target_macs=0.5"
    )


def test_a_network_that_nobody_has_trained_is_refused(capsys):
    assert "vgg-small has no trained weights: pass --checkpoint FILE" in refused(
        capsys, 2, *WORDS, "--model", "vgg-small"
    )
    assert names(".") == []


def test_several_scorers_and_other_classes_are_refused(trained, capsys):
    words = [*WORDS, "--model", trained]
    line = refused(capsys, 2, *words, "--set", "scorers=[l1-filter, apoz]")
    assert "compress takes one scorer and one seed" in line
    assert "prune.ratoi: unknown key; did you mean 'ratio'?" in refused(capsys, 2, *words, "--set", "prune.ratoi=1")
    assert names(".") == []


def test_a_key_that_stands_in_the_place_of_another_is_named(trained, capsys):
    assert main([*WORDS, "--model", str(trained), "--target-macs", "0.6", "--set", "prune.ratio=0.3"]) == 0
    printed = capsys.readouterr().out
    assert "note: prune.target_macs: 0.6 of compress has no effect, prune.ratio stands in its place" in printed


def test_a_checkpoint_is_pruned_without_fine_tuning_and_other_weights_are_refused_in_its_folder(capsys):
    torch.manual_seed(0)
    torch.save(build("vgg-small", 10, in_channels=1).state_dict(), "a.pth")
    words = ["compress", "--model", "vgg-small", "--checkpoint", "a.pth", "--data", "digits", "--size", "8"]
    words += ["--scorer", "l1-filter", "--epochs", "0", "--ratio", "0.5", "--device", "cpu", "--output", "out"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "that is no better than chance: are the weights, the size of the images and the classes its own?" in printed
    assert "batch norms recalibrated on 500 images" in printed
    torch.save(build("vgg-small", 10, in_channels=1).state_dict(), "a.pth")
    assert "out was begun with other weights of the network; choose another --output" in refused(capsys, 2, *words)


def test_a_file_of_weights_is_no_model(capsys):
    Path("my.pth").touch()
    message = refused(capsys, 2, *WORDS, "--model", "my.pth")
    assert message == "my.pth is a file: say which network it is of with --model, and --checkpoint my.pth"
