"""prune-fe run."""

import csv
import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml

import prune_fe.experiment.run
from prune_fe.cli.app import main
from prune_fe.experiment.results import TIMED
from prune_fe.models.saved import load
from tests.cli.helpers import FOLDER, names, refused


def test_a_run_leaves_a_folder_with_everything(done):
    _, folder = done
    assert {"recipe.yaml", "log.jsonl", "summary.csv", "seed-0"} <= set(names(folder))
    assert names(folder / "seed-0") == ["feature-entropy", "l1-filter", "trained"]
    assert names(folder / "seed-0" / "l1-filter") == ["layers.csv", "pruned", "scores.csv", "scores.npz"]
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert set(events) == {"environment", "epoch", "row", "prune"}
    rows = list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))
    assert [row["scorer"] for row in rows] == ["(unpruned)", "(unpruned, fine-tuned)", "l1-filter", "feature-entropy"]
    assert int(rows[2]["parameters"]) < int(rows[1]["parameters"]) == int(rows[0]["parameters"])


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
    model = load(done[1] / "seed-0" / "feature-entropy" / "pruned")
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def cut_after_the_first_scorer(monkeypatch):
    """The labels that are compressed from now on; the second one is interrupted once."""
    whole, seen = prune_fe.experiment.run.compress, []

    def compress(experiment, entry, *arguments):
        seen.append(entry.label)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return whole(experiment, entry, *arguments)

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
        return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]

    assert results(Path("runs/tiny-1")) == results(done[1])


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (2, "--set trian.lr=1", "trian: unknown key; did you mean 'train'?"),
        (2, "--set train.lr=-1", "train.lr: input should be greater than 0 (got -1)"),
        (2, "--set train.lr", "--set train.lr: write KEY=VALUE"),
        (2, "--set prune.ratio=[", "line 1: "),
        (2, "--device tpu", "Allowed are auto, cpu, cuda, cuda:N and mps."),
        (2, "--set device=tpu", "device: string should match pattern"),
        (2, "--seed -1", "seeds.0: input should be greater than or equal to 0"),
        (2, "--data .", "source digits needs no path"),
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
    assert message == f"{photos}/train/=cmd/3.png: not an image that can be read; it is empty"
    assert names("runs") == []


def test_an_unreadable_image_is_skipped_and_listed_where_that_is_asked_for(tmp_path, photos, capsys):
    (tmp_path / "f.yaml").write_text(FOLDER)
    (photos / "train" / "=cmd" / "3.png").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the command prints it
        assert main(["run", "f.yaml", "--data", str(photos), "--skip-bad", "1", "--set", "score.samples=4"]) == 0
    assert "1 images cannot be read and are left out: train/=cmd/3.png" in capsys.readouterr().err
    run = next(Path("runs").iterdir())
    assert (run / "skipped_images.csv").read_text().splitlines() == ["image", "train/=cmd/3.png"]
    (photos / "train" / "=cmd" / "4.png").write_bytes(b"")
    assert "2 images cannot be read, 1 may be skipped" in refused(
        capsys, 3, "run", "f.yaml", "--data", photos, "--skip-bad", 1
    )


def test_a_class_with_too_few_images_is_named(photos, capsys):
    words = ("score", "--model", "vgg-small", "--size", 16, "--data", photos, "--samples", 9)
    assert "class '<script>': 5 images, 9 asked for" in refused(capsys, 3, *words)
    assert not Path("scores").exists()
