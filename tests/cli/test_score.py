"""prune-fe score."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from prune_fe.cli.app import main
from prune_fe.scoring.scores import load_scores
from tests.cli.helpers import TINY, names, refused, scored
from tests.scorers.installed import POINTS, install


def test_a_scorer_of_weights_needs_no_data(capsys):
    assert main(["score", "--model", "vgg-small", "--scorer", "l1-filter", "--size", "32", "--json"]) == 0
    printed = capsys.readouterr()
    assert "vgg-small starts with random weights" in printed.err
    assert "next: prune-fe prune --model vgg-small --size 32 --scores scores/l1-filter --ratio 0.5" in printed.err
    found = json.loads(printed.out)["scorers"]["l1-filter"]
    assert found["folder"] == "scores/l1-filter"
    assert found["layers"]["features.0"].keys() == {"units", "l1_filter"}


def test_several_scorers_share_a_pass_and_leave_a_folder_each(capsys):
    assert scored("--scorer", "apoz", "fpgm", "--classes", "3", "--layers", "features.0", "features.7") == 0
    printed = capsys.readouterr().out
    for text in ("apoz on 6 images of 3 classes", "zero share", "for the scorer alone", "load_scores('scores/fpgm')"):
        assert text in printed
    assert names("scores") == [".lock", "apoz", "fpgm", "images.csv", "score.json"]
    images = list(csv.DictReader(Path("scores/images.csv").read_text().splitlines()))
    assert len(images) == 6
    assert len({row["class"] for row in images}) == 3
    asked = json.loads(Path("scores/score.json").read_text())
    assert asked["asked"]["samples"] == 2
    assert list(asked["scorers"]) == ["apoz", "fpgm"]
    assert asked["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
    scores = load_scores("scores/apoz")
    assert list(scores.keep) == ["features.0", "features.7"]
    assert len(scores.provenance["model_sha256"]) == 64
    assert scores.provenance["images"] == [[row["image"], row["class"]] for row in images]


def test_the_same_score_command_reuses_what_is_finished_and_adds_what_is_not(capsys):
    assert scored("--scorer", "apoz") == 0
    before = Path("scores/apoz/scores.npz").read_bytes()
    assert scored("--scorer", "apoz", "l1-activation") == 0
    assert "scores/apoz exists already" in capsys.readouterr().out
    assert Path("scores/apoz/scores.npz").read_bytes() == before
    assert Path("scores/l1-activation/scores.csv").exists()
    for more, message in {
        ("--scorer", "apoz", "--seed", 1): "scores was begun with another choice of seed",
        ("--scorer", "apoz", "--set", "x=1"): "scorer 'apoz' has no setting 'x'",
        ("--scorer", "hrank", "--samples", 3): "another choice of samples",
    }.items():
        assert scored(*more) == 2
        assert message in capsys.readouterr().err
    about = json.loads(Path("scores/score.json").read_text())
    assert (about["asked"]["samples"], list(about["scorers"])) == (2, ["apoz", "l1-activation"])


def test_layers_are_left_out_by_pattern(capsys):
    assert scored("--scorer", "apoz", "--except", "features.1*", "features.3") == 0
    assert list(load_scores("scores/apoz").keep) == ["features.0", "features.7"]
    for pattern, message in (("x*", "--except x*: no layer has such a name"), ("*", "no layer is left")):
        assert scored("--scorer", "apoz", "--except", pattern, "--output", "other") == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', ""])
def test_a_damaged_account_of_the_scores_is_named(capsys, text):
    assert scored("--scorer", "random") == 0
    Path("scores/score.json").write_text(text)
    assert scored("--scorer", "random") == 4
    assert "scores/score.json: damaged" in capsys.readouterr().err


def test_settings_that_fail_at_the_end_cost_nobody_else_their_scores(capsys):
    words = ("--scorer", "l1-activation", "nisp", "--set")
    assert scored(*words, "nisp.r=1000") == 2
    assert "nisp: r is 1000; the sum over all paths only exists below" in capsys.readouterr().err
    assert {".lock", ".unfinished-0", "l1-activation", "score.json"} == set(names("scores"))
    assert scored(*words, "nisp.r=1e-9") == 0
    assert "scores/l1-activation exists already" in capsys.readouterr().out
    assert ".unfinished-0" not in names("scores")


def test_classes_can_be_named_and_settings_go_to_one_of_several_scorers(capsys):
    words = ("--classes", "3", "7", "--scorer", "feature-entropy", "apoz", "--set", "feature-entropy.rank=edges")
    assert scored(*words) == 0
    scores = load_scores("scores/feature-entropy")
    assert scores.classes == ("3", "7")
    assert scores.settings["rank"] == "edges"
    assert Path("scores/feature-entropy/classes.csv").read_text().splitlines()[1].startswith("features.0,0,3,")
    for word, message in (("rank=edges", "write SCORER.rank=VALUE"), ("fpgm.p=1", "'fpgm' is not among the scorers")):
        assert message in refused(capsys, 2, "score", "--model", "m", *words[3:6], "--set", word)
    assert scored("--classes", "3", "x", "--output", "other") == 2
    assert "--classes x: no such class" in capsys.readouterr().err


def test_the_images_of_an_earlier_score_can_be_scored_again(capsys):
    assert scored("--scorer", "apoz", "--classes", "2") == 0
    base = ["score", "--model", "vgg-small", "--data", "digits", "--size", "16", "--scorer", "apoz"]
    assert main([*base, "--images", "scores/images.csv", "--output", "again"]) == 0
    one, other = load_scores("scores/apoz"), load_scores("again/apoz")
    assert one.provenance["images"] == other.provenance["images"]
    assert all((one.keep[layer] == other.keep[layer]).all() for layer in one.keep)
    for text, message in (("image\nx.png\n", "image 'x.png': not among"), ("a,b\n1,2\n", "has a column 'image'")):
        Path("list.csv").write_text(text)
        assert message in refused(capsys, 3, *base, "--images", "list.csv", "--output", "other")
    assert "cannot be used with it" in refused(capsys, 2, *base, "--images", "list.csv", "--samples", "3")


def test_a_series_of_checkpoints_is_scored_in_their_order(capsys):
    words = ["--model", "vgg-small", "--data", "digits", "--size", "16", "--epochs", "2", "-b", "64"]
    assert main(["finetune", *words, "--checkpoints", "epochs"]) == 0
    assert names("epochs") == ["epoch-000.pth", "epoch-001.pth", "epoch-002.pth"]
    Path("epochs/epoch-002.pth").rename("epochs/epoch-10.pth")
    assert scored("--scorer", "apoz", "l1-filter", "--from-checkpoints", "epochs") == 0
    assert "layer features.17 at every checkpoint" in capsys.readouterr().out
    rows = list(csv.DictReader(Path("scores/training.csv").read_text().splitlines()))
    assert list(dict.fromkeys(row["checkpoint"] for row in rows)) == ["epoch-000", "epoch-001", "epoch-10"]
    assert len(rows) == 3 * 2 * 6
    assert scored("--scorer", "l1-filter", "--from-checkpoints", "epochs") == 0  # which takes nothing from the others
    rows = list(csv.DictReader(Path("scores/training.csv").read_text().splitlines()))
    assert sorted({row["scorer"] for row in rows}) == ["apoz", "l1-filter"]
    assert len(Path("scores/images.csv").read_text().splitlines()) == 21
    first, last = load_scores("scores/epoch-000/apoz"), load_scores("scores/epoch-10/apoz")
    assert first.provenance["model_sha256"] != last.provenance["model_sha256"]
    Path("none").mkdir()
    nothing = ("score", "--model", "m", "--data", "digits", "--from-checkpoints", "none", "--output", "other")
    assert "none: no .pth, .pt or .safetensors file" in refused(capsys, 4, *nothing)


def test_a_score_that_a_signal_ended_goes_on_to_the_same_bits(capsys, monkeypatch):
    def killing(task):
        return lambda done, total: os.kill(os.getpid(), signal.SIGTERM) if done == 14 else None

    words = ("--scorer", "feature-entropy", "l1-activation", "nisp")
    with monkeypatch.context() as patch:
        patch.setattr("prune_fe.cli.output.reporter.progress", killing)
        assert scored(*words) == 130
    assert "interrupted; the same command continues where it stopped" in capsys.readouterr().err
    assert ".unfinished-0" in names("scores")
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "prune_fe.cli.output.reporter.progress", lambda task: lambda done, total: seen.append((done, total))
        )
        assert scored(*words) == 0
    assert seen == [(20, 20)]
    assert ".unfinished-0" not in names("scores")
    assert scored(*words, "--output", "whole") == 0
    for name in ("feature-entropy", "l1-activation", "nisp"):
        one, other = load_scores(f"scores/{name}"), load_scores(f"whole/{name}")
        assert all((one.keep[layer] == other.keep[layer]).all() for layer in other.keep)


def test_scorers_of_installed_packages_are_known_to_score_prune_and_recipes(capsys, monkeypatch, tmp_path):
    install(monkeypatch, tmp_path / "packages", POINTS)
    assert "did you mean 'largest'?" in refused(capsys, 2, "score", "--model", "vgg-small", "--scorer", "largst")
    words = ["--model", "vgg-small", "--size", "16"]
    assert main(["score", *words, "--scorer", "largest", "smallest", "--set", "largest.power=2"]) == 0
    scores = load_scores("scores/largest")
    assert (scores.scorer, scores.settings) == ("largest", {"power": 2})
    assert scores.provenance["scorer_code"]["name"] == "my_criteria.largest"
    assert load_scores("scores/smallest").scorer == "smallest"
    assert main(["prune", *words, "--scores", "scores/largest"]) == 0
    (tmp_path / "own.yaml").write_text(TINY.replace("l1-filter, feature-entropy", "smallest"))
    assert main(["run", "own.yaml"]) == 0
    assert "smallest" in capsys.readouterr().out


def test_linear_layers_are_scored_by_a_scorer_of_their_own(capsys):
    linear = ("--linear", "--linear-scorer", "taylor")
    assert scored("--scorer", "hrank", *linear) == 0
    assert load_scores("scores/hrank").other_scorers == {"classifier": "taylor"}
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("scorer", "taylor", "importance"))
    assert Path("scores/hrank/layers.csv").read_text().splitlines()[-1].startswith("classifier,10,taylor,,")
    pruning = ("prune", "--model", "vgg-small", "--num-classes", "10", "--size", "16", "--scores", "scores")
    assert main([*pruning, "--data", "digits"]) == 0  # the classifier computes the outputs
    capsys.readouterr()
    base = ("score", "--model", "vgg-small", "--data", "digits", "--size", "16", "--samples", "2", "--scorer", "hrank")
    for words, message in {
        (): "scores was begun with another choice of linear True, now None, linear_scorer 'taylor', now None; choose",
        ("--linear-scorer", "taylor"): "--linear-scorer taylor scores linear layers, pass --linear too",
        ("--linear", "--linear-scorer", "tailor"): "--linear-scorer tailor: did you mean 'taylor'",
    }.items():
        assert message in refused(capsys, 2, *base, *words)
    without_data = ("score", "--model", "vgg-small", "--scorer", "bn-scale", *linear, "--output", "other")
    assert "scorer 'taylor' needs images: pass --data PATH" in refused(capsys, 2, *without_data)
