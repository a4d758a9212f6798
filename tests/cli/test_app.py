"""The command line, used as a new user would: what it makes, what it says, and its exit code."""

import csv
import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from torch._utils import ExceptionWrapper

import prune_fe.experiment.run
from prune_fe.cli.app import main
from prune_fe.errors import DataError
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.measure.cost import speed
from prune_fe.models import networks as models
from prune_fe.report.console import ConsoleReporter, WideTable, results_table
from prune_fe.scoring.scores import load_scores

TINY = """
name: tiny
data: {source: digits, size: 16}
model: {name: vgg-small, arguments: {stages: [[4], [4]]}}
train: {lr: 0.05, schedule: cosine, epochs: 1, batch_size: 64}
score: {samples: 5}
scorers: [l1-filter, feature-entropy]
finetune: {lr: 0.01, schedule: cosine, epochs: 1, batch_size: 64}
device: cpu
"""
FOLDER = TINY.replace("source: digits", "source: folder")
COMMANDS = ("run", "score", "study", "prune", "finetune", "evaluate", "export")


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    """In an empty folder, with short timings of images/s."""
    quick = functools.partial(speed, seconds=0.01)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prune_fe.measure.cost.speed", quick)
    monkeypatch.setattr("prune_fe.experiment.run.speed", quick)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(what was printed, the run folder) of a whole tiny run."""
    place = tmp_path_factory.mktemp("done")
    (place / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        out = io.StringIO()
        patch.setattr(sys, "stdout", out)
        assert main(["run", "tiny.yaml"]) == 0
    return out.getvalue(), place / "runs" / "tiny-1"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def photos(tmp_path):
    """Two classes of red and blue images."""
    for part, count in (("train", 6), ("val", 2)):
        for name, color in (("<script>", (255, 0, 0)), ("=cmd", (0, 0, 255))):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 20), color).save(tmp_path / "photos" / part / name / f"{number}.png")
    return tmp_path / "photos"


def refused(capsys, code, *words):
    """The one line on stderr with which the command ends."""
    assert main([*map(str, words)]) == code
    line, *rest = capsys.readouterr().err.splitlines()
    assert rest == []
    assert line.startswith("prune-fe: ")
    return line.removeprefix("prune-fe: ")


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# The main job


def test_a_run_leaves_a_folder_with_everything(done):
    _, folder = done
    assert {"recipe.yaml", "log.jsonl", "summary.csv", "seed-0"} <= set(names(folder))
    assert names(folder / "seed-0") == ["feature-entropy", "l1-filter", "trained"]
    assert names(folder / "seed-0" / "l1-filter") == ["layers.csv", "pruned", "scores.csv", "scores.npz"]
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert set(events) == {"environment", "epoch", "row", "prune"}
    rows = list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))
    assert [row["scorer"] for row in rows] == ["(unpruned)", "l1-filter", "feature-entropy"]
    assert int(rows[1]["parameters"]) < int(rows[0]["parameters"])


def test_a_run_prints_its_table_and_where_everything_is(done):
    printed, _ = done
    for text in ("run folder: runs/tiny-1", "feature-entropy", "para-", "runs/tiny-1/summary.csv"):
        assert text in printed
    assert "next: prune-fe evaluate --model runs/tiny-1/seed-0/l1-filter/pruned --data digits" in printed
    assert "…" not in printed


def test_the_recipe_in_the_run_folder_is_the_resolved_one(done):
    resolved = yaml.safe_load((done[1] / "recipe.yaml").read_text())
    assert resolved["train"]["momentum"] == 0.9
    assert resolved["scorers"] == [{"name": n, "label": n} for n in ("l1-filter", "feature-entropy")]


def test_the_pruned_model_of_a_run_can_be_loaded(done):
    model = models.load(done[1] / "seed-0" / "feature-entropy" / "pruned")
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_a_second_run_gets_a_folder_of_its_own(recipe, monkeypatch):
    monkeypatch.setattr(prune_fe.experiment.run, "run", lambda *_: [])
    monkeypatch.setattr("prune_fe.cli.app.results_table", lambda rows: "")
    assert [main(["run", str(recipe)]) for _ in range(2)] == [0, 0]
    assert names("runs") == ["tiny-1", "tiny-2"]


def test_options_and_set_reach_the_recipe(recipe, monkeypatch):
    monkeypatch.setattr(prune_fe.experiment.run, "run", lambda *_: [])
    monkeypatch.setattr("prune_fe.cli.app.results_table", lambda rows: "")
    words = "--seed 3 4 --threads 1 -j 1 --set train.lr=1e-3 --set prune.ratio=0.25 --output-dir out"
    assert main(["run", "-c", str(recipe), *words.split()]) == 0
    found = yaml.safe_load(Path("out/tiny-1/recipe.yaml").read_text())
    assert (found["seeds"], found["threads"], found["workers"]) == ([3, 4], 1, 1)
    assert (found["train"]["lr"], found["prune"]["ratio"]) == (1e-3, 0.25)


def cut_after_the_first_scorer(monkeypatch):
    """The labels that are compressed from now on; the second one is interrupted once."""
    whole, seen = prune_fe.experiment.run.compress, []

    def compress(recipe, entry, *rest):
        seen.append(entry.label)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return whole(recipe, entry, *rest)

    monkeypatch.setattr(prune_fe.experiment.run, "compress", compress)
    return seen


def test_a_run_that_was_cut_goes_on_behind_its_last_finished_row(recipe, capsys, monkeypatch, done):
    seen = cut_after_the_first_scorer(monkeypatch)
    assert main(["run", str(recipe)]) == 130
    assert "--resume auto" in capsys.readouterr().err
    with Path("runs/tiny-1/log.jsonl").open("a") as log:
        log.write('{"event": "row", "row": {"sco')
    trained = Path("runs/tiny-1/seed-0/trained/model.safetensors").stat().st_mtime_ns
    assert main(["run", str(recipe), "--resume", "auto"]) == 0
    assert seen == ["l1-filter", "feature-entropy", "feature-entropy"]
    assert Path("runs/tiny-1/seed-0/trained/model.safetensors").stat().st_mtime_ns == trained

    def results(folder):
        rows = csv.DictReader((folder / "summary.csv").read_text().splitlines())
        return [{k: v for k, v in row.items() if "second" not in k} for row in rows]

    assert results(Path("runs/tiny-1")) == results(done[1])


def test_resuming_needs_the_same_recipe_and_a_run(recipe, capsys, done):
    assert "runs: no run of 'tiny' to resume" in refused(capsys, 2, "run", recipe, "--resume", "auto")
    assert "none: no run to resume there" in refused(capsys, 2, "run", recipe, "--resume", "none")
    shutil.copytree(done[1], "runs/tiny-1")
    message = refused(capsys, 2, "run", recipe, "--resume", "auto", "--set", "train.lr=1")
    assert "begun with another recipe (not the same: train)" in message


def test_a_run_folder_in_use_is_refused(recipe, capsys, done):
    shutil.copytree(done[1], "runs/tiny-1")
    held = RunFolder.resume(Path("runs/tiny-1"), yaml.safe_load(Path("runs/tiny-1/recipe.yaml").read_text()))
    assert "runs/tiny-1 is in use by another run" in refused(capsys, 5, "run", recipe, "--resume", "auto")
    held.close()


# Bad input to run: one line, the right code, and nothing half-written


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (2, "--set trian.lr=1", "trian: unknown key; did you mean 'train'?"),
        (2, "--set train.lr=-1", "train.lr: input should be greater than 0 (got -1)"),
        (2, "--set train.lr", "--set train.lr: write KEY=VALUE"),
        (2, "--set prune.ratio=[", "line 1: "),
        (2, "--device tpu", "device: string should match pattern"),
        (2, "--seed -1", "seeds.0: input should be greater than or equal to 0"),
        (2, "--data .", "source digits reads no folder"),
        (2, "--set scorers=[{name: feature-entropy, ranks: edges}]", "has no setting 'ranks'; it has rank"),
        (2, "--set scorers=[{name: feature-entropy, rank: edgs}]", "rank is 'edgs', allowed are elements, edges"),
        (2, "--set model.name=vgg-smal", "unknown model 'vgg-smal'; did you mean vgg-small?"),
        (2, "--set score.layers=[features.9]", "layer 'features.9': the model has no such module"),
        (3, "--set score.samples=500", "asked for"),
        (4, "--set model.checkpoint=none.pth", "none.pth: no such file"),
    ],
)
def test_a_wrong_run_is_refused_in_one_line_and_leaves_no_run(recipe, capsys, code, words, message):
    flag, value = words.split(" ", 1)
    if "samples" not in value:
        assert message in refused(capsys, code, "run", recipe, flag, value)
        assert not Path("runs").exists() or names("runs") == []
    else:
        assert message in refused(capsys, code, "run", recipe, flag, value, "--set", "train=null")


def test_a_folder_recipe_asks_for_data_and_says_what_is_wrong_with_it(tmp_path, capsys):
    (tmp_path / "f.yaml").write_text(FOLDER)
    assert "pass --data PATH" in refused(capsys, 2, "run", "f.yaml")
    assert "none: no such folder or tar file" in refused(capsys, 3, "run", "f.yaml", "--data-dir", "none")
    (tmp_path / "empty").mkdir()
    assert "empty/train: no such folder; expected" in refused(capsys, 3, "run", "f.yaml", "--data-path", "empty")
    assert not Path("runs").exists() or names("runs") == []


def test_a_corrupt_image_is_named_and_leaves_no_run(tmp_path, photos, capsys):
    (tmp_path / "f.yaml").write_text(FOLDER)
    (photos / "train" / "=cmd" / "3.png").write_bytes(b"")
    message = refused(capsys, 3, "run", "f.yaml", "--data", photos)
    assert message == f"{photos}/train/=cmd/3.png: not an image that can be read"
    assert names("runs") == []


def test_a_class_with_too_few_images_is_named(photos, capsys):
    words = ("score", "--model", "vgg-small", "--size", 16, "--data", photos, "--samples", 9)
    assert "class '<script>': 5 images, 9 asked for" in refused(capsys, 3, *words)
    assert not Path("scores").exists()


# Words that are wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], 'Unknown command "rum". Did you mean "run"?'),
        (["run"], 'Command "run" parameter --recipe requires an argument.'),
        (["run", "a.yaml", "--deivce", "cpu"], "Unknown option: --deivce. Did you mean --device?"),
        (["run", "a.yaml", "--threads", "x"], 'Invalid value for --threads: unable to convert "x" into int.'),
        (["run", "none.yaml"], "none.yaml: No such file or directory"),
        (["score"], "--model"),
        (
            ["score", "--model", "m", "--scorer", "l1-filtr"],
            "--scorer l1-filtr: did you mean 'l1-filter' or 'l2-filter'?",
        ),
        (["score", "--model", "m", "--scorer", "random", "random"], "--scorer random: stands twice"),
        (["score", "--model", "m", "--checkpoint", "a", "--from-checkpoints", "b"], "give one of them"),
        (["study", "rescalin", "a.yaml"], 'Did you mean "rescaling"?'),
        (["study", "rescaling", "none.yaml"], "none.yaml: No such file or directory"),
        (["score", "--model", "m", "--samples", "0"], 'Invalid value "0" for --samples. Must be >= 1.'),
        (["score", "--model", "m", "--batch-size", "0"], 'Invalid value "0" for --batch-size. Must be >= 1.'),
        (["score", "--model", "m", "--workers", "-1"], 'Invalid value "-1" for --workers. Must be >= 0.'),
        (["score", "--model", "m", "--size", "0"], 'Invalid value "0" for --size. Must be >= 1.'),
        (["score", "--model", "m", "--device", "tpu"], "Allowed are auto, cpu, cuda, cuda:N and mps."),
        (["score", "--model", "m"], "scorer 'feature-entropy' needs images: pass --data PATH"),
        (["prune", "--model", "m", "--scores", "s", "--ratio", "1"], "--ratio 1: the share removed must be in [0, 1)"),
        (["prune", "--model", "m", "--scores", "s", "--ratio", "nan"], "--ratio nan: the share removed must be in"),
        (["prune", "--model", "m", "--scores", "s", "--ratio", "x=y"], "--ratio x=y: write a share such as 0.5, or"),
        (
            ["prune", "--model", "m", "--scores", "s", "--ratio", "0.5", "a=0.1"],
            "--ratio: one share for all layers, or",
        ),
        (["prune", "--model", "m", "--scores", "s", "--target-macs", "0"], "for --target-macs. Must be > 0."),
        (["prune", "--model", "m", "--scores", "s", "--round-to", "0"], "for --round-to. Must be >= 1."),
        (["prune", "--model", "m", "--scores", "s", "--scope", "iner"], 'Did you mean "inner"?'),
        (["prune", "--model", "m", "--scores", "s", "--recalibrate", "9"], "--recalibrate needs training images: pass"),
        (["prune", "--model", "m", "--scores", "s", "--ratio", ".5", "--target-macs", ".5"], "--ratio, --target-macs"),
        (["finetune", "--model", "m", "--data", "digits", "--epochs", "0"], 'Invalid value "0" for --epochs.'),
        (["finetune", "--model", "m", "--data", "digits", "--lr", "nan"], 'Invalid value "nan" for --lr.'),
        (["finetune", "--model", "m", "--data", "digits", "--schedule", "cosine"], "cosine schedule needs --epochs"),
        (["evaluate", "--model", "m"], "pass --data PATH, or --latency for the time alone"),
        (["evaluate", "--model", "m", "--data", "digits", "--threads", "2"], "and --seconds need --latency"),
        (["evaluate", "--model", "vgg-small", "--latency"], "vgg-small is no saved model; say with --against what"),
        (["evaluate", "--model", "m", "--latency", "--batch-sizes", "1", "0"], "for --batch-sizes. Must be >= 1."),
        (["evaluate", "--model", "m", "--latency", "--dtype", "int8"], 'Invalid value "int8" for --dtype.'),
        (["evaluate", "--model", "m", "--latency", "--seconds", "0"], "for --seconds. Must be > 0."),
        (["evaluate", "--model", "nomodel", "--data", "digits"], "unknown model 'nomodel'"),
        (["evaluate", "--model", "vgg-small", "--data", "digits", "--size", "2"], "does not run on images of 1×2×2"),
    ],
)
def test_a_wrong_word_is_refused_in_one_line_with_a_hint(capsys, tmp_path, words, message):
    assert message in refused(capsys, 2, *words)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [["--help"], *[[name, "--help"] for name in COMMANDS], ["rum"], ["run", "bad.yaml"], ["score", "--modl", "x"]],
)
def test_help_a_typo_and_a_bad_recipe_do_not_load_torch(tmp_path, words):
    (tmp_path / "bad.yaml").write_text(TINY + "prune: {ratio: 2}\n")
    code = f"import sys; from prune_fe.cli.app import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_every_customary_flag_is_there(capsys):
    expected = {
        "run": "--config -c --data --data-dir --data-path --output --output-dir --resume --seed --device --workers -j",
        "score": "--model --data --data-dir --output --batch-size -b --workers -j --device --seed --set",
        "prune": "--model --ratio --pruning-ratio --output --output-dir --device",
        "finetune": "--model --data --epochs --lr --momentum --weight-decay --wd --batch-size -b --workers -j --device "
        "--amp --seed --output --output-dir",
        "evaluate": "--model --data --data-dir --data-path --batch-size -b --workers -j --device --latency --against "
        "--batch-sizes --threads --dtype --memory-format --seconds",
    }
    for command, flags in expected.items():
        assert main([command, "--help"]) == 0
        printed = capsys.readouterr().out.replace("│", " ").split()
        assert set(flags.split()) <= set(printed), command


def test_underscores_in_an_option_are_understood(capsys):
    assert 'Invalid value "0" for --batch_size' in refused(capsys, 2, "score", "--model", "m", "--batch_size", "0")


# The commands alone


def test_a_scorer_of_weights_needs_no_data(capsys):
    assert main(["score", "--model", "vgg-small", "--scorer", "l1-filter", "--size", "32"]) == 0
    printed = capsys.readouterr().out
    assert "vgg-small starts with random weights" in printed
    assert "next: prune-fe prune --model vgg-small --size 32 --scores scores/l1-filter --ratio 0.5" in printed


def scored(*words):
    base = ["score", "--model", "vgg-small", "--data", "digits", "--size", "16", "-b", "7"]
    return main([*base, *([] if "--samples" in words else ["--samples", "2"]), *map(str, words)])


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
    assert "scores/apoz is there already" in capsys.readouterr().out
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
    for pattern, message in (("x*", "--except x*: no layer is called like that"), ("*", "no layer is left")):
        assert scored("--scorer", "apoz", "--except", pattern, "--output", "other") == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', ""])
def test_a_damaged_account_of_the_scores_is_named(capsys, text):
    assert scored("--scorer", "random") == 0
    Path("scores/score.json").write_text(text)
    assert scored("--scorer", "random") == 4
    assert "scores/score.json: damaged" in capsys.readouterr().err


def test_scores_of_another_network_prune_nothing(capsys):
    assert scored("--scorer", "random") == 0
    words = ["prune", "--scores", "scores", "--size", "64", "--num-classes", "10"]
    assert main([*words, "--model", "resnet18"]) == 2
    assert "scores are of another network (SmallVGG, 6 layers)" in capsys.readouterr().err
    torch.manual_seed(5)
    torch.save(models.build("vgg-small", 10, in_channels=1).state_dict(), "other.pth")
    words = ["prune", "--model", "vgg-small", "--scores", "scores", "--num-classes", "10", "--output", "new"]
    assert main([*words, "--size", "16", "--checkpoint", "other.pth"]) in (0, 2, 4)
    assert not Path("new").exists() or "scores of other weights" in capsys.readouterr().out


def test_settings_that_fail_at_the_end_cost_nobody_else_their_scores(capsys):
    words = ("--scorer", "l1-activation", "nisp", "--set")
    assert scored(*words, "nisp.r=1000") == 2
    assert "nisp: r is 1000; the sum over all paths only exists below" in capsys.readouterr().err
    assert {".lock", ".unfinished-0", "l1-activation", "score.json"} == set(names("scores"))
    assert scored(*words, "nisp.r=1e-9") == 0
    assert "scores/l1-activation is there already" in capsys.readouterr().out
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
    assert "have no say" in refused(capsys, 2, *base, "--images", "list.csv", "--samples", "3")


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


def test_a_study_prints_its_tables_and_uses_the_trained_network_of_a_run(done, recipe, capsys):
    shutil.copytree(done[1], "runs/tiny-1")
    words = ["study", "rescaling", "tiny.yaml", "--resume", "auto", "--layer", "features.0", "--unit", "1"]
    assert main([*words, "--class", "3"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "epochs" not in printed
    for text in ("studying unit 1 of 'features.0'", "class '3', 5 training images", "APoZ", "FPGM", "half scale"):
        assert text in printed
    name = "runs/tiny-1/study-rescaling-seed-0-features.0-unit-1-class-3-samples-5"
    assert "| ×, × |" in Path(f"{name}.md").read_text()
    rows = list(csv.DictReader(Path(f"{name}.csv").read_text().splitlines()))
    assert {row["row"] for row in rows if "tables 9" in row["table"]} == {
        "×, ×",
        "half scale, ×",
        "×, half scale",
        "half scale, half scale",
    }
    wrong = {
        ("--layer", "nope"): "no such module",
        ("--unit", "4"): "no unit 4, it has 4",
        ("--class", "x"): "no such class",
        ("--seed", "5"): "seed 5: the recipe has 0",
        ("--samples", "9999"): "the smallest class has",
    }
    for more, message in wrong.items():
        assert main([*words[:5], *more]) in (2, 3)
        assert message in capsys.readouterr().err


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
    about = models.read_manifest("pruned")["about"]
    assert (about["prune"]["ratio"], about["size"], len(about["classes"])) == (0.5, 16, 10)
    assert about["preprocessing"]["mean"] == [0.5]
    origin = load_scores("scores").provenance
    assert about["scores"]["scorer"] == "feature-entropy"
    assert about["scores"]["key"] == origin["key"]
    assert about["scores"]["model_sha256"] == origin["model_sha256"]


def test_prune_takes_budgets_patterns_and_protection_and_recalibrates(done, capsys):
    trained = str(done[1] / "seed-0" / "trained")
    assert main(["score", "--model", trained, "--scorer", "l1-filter"]) == 0
    words = ["prune", "--model", trained, "--scores", "scores"]
    assert main([*words, "--ratio", "features.[!0]=0.5", "features.0=0.25", "--output", "by-name"]) == 0
    assert "features.0: 4 units, 1 asked, 1 removed, 3 kept" in capsys.readouterr().out
    words += ["--protect", "features.0", "--data", "digits", "--recalibrate", "50", "--target-params", "0.6"]
    assert main([*words, "--output", "protected"]) == 0
    printed = capsys.readouterr().out
    assert "features.0: 4 units, 0 asked, 0 removed, 4 kept (protected)" in printed  # of a budget
    assert "batch norms recalibrated on 50 training images" in printed
    words[words.index("50")] = "5000"
    assert main([*words, "--output", "never"]) == 3
    assert "--recalibrate 5000: there are" in capsys.readouterr().err


def test_a_state_dict_is_read_and_named_again_in_the_next_step(done, capsys):
    network = models.build("vgg-small", 10, in_channels=3)
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


@pytest.mark.parametrize(
    ("code", "output", "message"),
    [(2, "there", "there exists already; choose another --output"), (5, "file/x", "is no folder that can be written")],
)
@pytest.mark.parametrize(
    "words", [["score", "--data", "digits"], ["prune", "--scores", "s"], ["finetune", "--data", "digits"]]
)
def test_an_output_that_cannot_be_is_refused_before_any_work(monkeypatch, capsys, words, code, output, message):
    monkeypatch.setattr("prune_fe.cli.app._network_and_data", lambda *_: pytest.fail("work was begun"))
    Path("there").mkdir()
    Path("there/mine").touch()
    Path("file").touch()
    assert message in refused(capsys, code, *words, "--model", "vgg-small", "--output", output)


def test_a_model_of_other_classes_is_not_evaluated(done, photos, capsys):
    colour = models.build("vgg-small", 2, stages=[[4], [4]])
    models.save(colour, "colour", {"size": 16, "classes": ["a", "b"]})
    message = refused(capsys, 3, "evaluate", "--model", "colour", "--data", photos)
    assert "its classes are not those that colour was trained on (a, b)" in message
    grey = done[1] / "seed-0" / "trained"
    assert "does not run on images of 3×16×16" in refused(capsys, 2, "evaluate", "--model", grey, "--data", photos)


LATENCY = ["--latency", "--batch-sizes", "1", "2", "--threads", "1", "--seconds", "0.001"]


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


# Faults


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_130_and_keeps_the_run(recipe, capsys, monkeypatch, number):
    monkeypatch.setattr(prune_fe.experiment.run, "run", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(signal.SIGTERM)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs ignore
    message = refused(capsys, 130, "run", recipe)
    signal.signal(signal.SIGINT, inherited)
    assert message == "interrupted; `prune-fe run ... --resume auto` goes on behind the last finished step"
    assert names("runs") == ["tiny-1"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_score_that_a_signal_ended_goes_on_to_the_same_bits(capsys, monkeypatch):
    def killing(task):
        return lambda done, total: os.kill(os.getpid(), signal.SIGTERM) if done == 14 else None

    words = ("--scorer", "feature-entropy", "l1-activation", "nisp")
    with monkeypatch.context() as patch:
        patch.setattr("prune_fe.cli.app.reporter.progress", killing)
        assert scored(*words) == 130
    assert "interrupted; the same command goes on where it stopped" in capsys.readouterr().err
    assert ".unfinished-0" in names("scores")
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr("prune_fe.cli.app.reporter.progress", lambda task: lambda done, total: seen.append((done, total)))
        assert scored(*words) == 0
    assert seen == [(20, 20)]
    assert ".unfinished-0" not in names("scores")
    assert scored(*words, "--output", "whole") == 0
    for name in ("feature-entropy", "l1-activation", "nisp"):
        one, other = load_scores(f"scores/{name}"), load_scores(f"whole/{name}")
        assert all((one.keep[layer] == other.keep[layer]).all() for layer in other.keep)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device", "x/y"), 5, "x/y: No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried …"), 5, "out of memory; use a smaller batch size"),
        (MemoryError(), 5, "out of memory; use a smaller batch size"),
        (ZeroDivisionError("a\nb"), 1, "ZeroDivisionError: a b (unexpected; --debug shows where)"),
        (DataError("class '\x1b[31m'\nx\u202e"), 3, r"class '\x1b[31m' x\u202e"),
    ],
)
def test_every_fault_is_one_line_and_a_traceback_with_debug_only(recipe, capsys, monkeypatch, error, code, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(prune_fe.experiment.run, "run", fail)
    assert message in refused(capsys, code, "run", recipe)
    assert main(["run", str(recipe), "--debug"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_fault_in_a_process_that_reads_images_is_one_line_too(recipe, capsys, monkeypatch):
    def fail(*_):
        try:
            raise DataError("photos/a: b.png: not an image")
        except DataError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    monkeypatch.setattr(prune_fe.experiment.run, "run", fail)
    assert refused(capsys, 3, "run", recipe) == "photos/a: b.png: not an image"


def test_a_character_that_cannot_be_printed_does_not_end_a_run(recipe):
    code = "import sys; from prune_fe.cli.app import main, reporter; main(['--version']); reporter.say('16×16 ± …')"
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=ascii_only, capture_output=True, text=True, check=True)
    assert r"16\xd716" in done.stdout


# The table


def row(**fields):
    known: dict[str, Any] = dict.fromkeys(
        (field.name for field in dataclasses.fields(prune_fe.experiment.run.Row)), 0.5
    )
    return prune_fe.experiment.run.Row(
        **known | {"scorer": "a-scorer", "seed": 0, "parameters": 1234, "macs": 5e9, "timed_with": ""} | fields
    )


def printed(rows, width=100):
    out = io.StringIO()
    Console(file=out, width=width).print(results_table(rows))
    return out.getvalue()


def test_the_table_shows_the_spread_over_seeds_and_their_number():
    text = printed([row(seed=0, accuracy_finetuned=0.9), row(seed=1, accuracy_finetuned=0.8)])
    assert "over 2 seeds" in text
    assert "85.00 ±7.07%" in text
    assert "one seed" in printed([row(accuracy_finetuned=None)])


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_wide_table_is_printed_in_parts_and_never_cut(width):
    out = io.StringIO()
    columns = {f"class selectivity {i}, index": ["2.081e-05", "-1.1", "0.5 (0.2)"] for i in range(7)}
    rows = ["×, ×", "half scale, half scale", "a" * 40]
    Console(file=out, width=width).print(WideTable("title", "caption", rows, columns))
    printed = out.getvalue()
    assert printed.count("2.081e-05") == printed.count("0.5 (0.2)") == 7
    assert (printed.count("title"), printed.count("caption"), printed.count("…")) == (1, 1, 0)
    assert max(map(len, printed.splitlines())) <= width


def test_the_table_fits_into_80_columns_without_a_word_lost():
    text = printed([row(scorer="class-selectivity", images_per_second=123456.0)], width=80)
    assert "…" not in text
    for word in ("class-selectivity", "123,456", "1.23k", "5.00G", "50.00%"):
        assert word in text


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    tick = ConsoleReporter(Console(file=out, width=80)).progress("scoring")
    for step in range(60):
        now[0] += 1.0
        tick(step + 1, 60)
    assert out.getvalue().splitlines() == [f"  scoring: {n} of 60" for n in (15, 30, 45, 60)]
