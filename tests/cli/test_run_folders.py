"""The recipe and the run folder of a command."""

import shutil
from pathlib import Path

import yaml

import prune_fe.experiment.run
from prune_fe.cli.app import main
from prune_fe.cli.run_folders import latest_run
from prune_fe.experiment.run_folder import RunFolder
from tests.cli.helpers import names, refused


def test_a_second_run_gets_a_folder_of_its_own(recipe, monkeypatch):
    monkeypatch.setattr(prune_fe.experiment.run, "run", lambda *_: [])
    monkeypatch.setattr("prune_fe.cli.run.results_table", lambda rows: "")
    assert [main(["run", str(recipe)]) for _ in range(2)] == [0, 0]
    assert names("runs") == ["tiny-1", "tiny-2"]


def test_options_and_set_reach_the_recipe(recipe, monkeypatch):
    monkeypatch.setattr(prune_fe.experiment.run, "run", lambda *_: [])
    monkeypatch.setattr("prune_fe.cli.run.results_table", lambda rows: "")
    words = "--seed 3 4 --threads 1 -j 1 --set train.lr=1e-3 --set prune.ratio=0.25 --output-dir out"
    assert main(["run", "-c", str(recipe), *words.split()]) == 0
    found = yaml.safe_load(Path("out/tiny-1/recipe.yaml").read_text())
    assert (found["seeds"], found["threads"], found["workers"]) == ([3, 4], 1, 1)
    assert (found["train"]["lr"], found["prune"]["ratio"]) == (1e-3, 0.25)


def test_resuming_needs_the_same_recipe_and_a_run(recipe, capsys, done):
    assert "runs: no run of 'tiny' to resume" in refused(capsys, 2, "run", recipe, "--resume", "auto")
    assert "none: there is no run to resume" in refused(capsys, 2, "run", recipe, "--resume", "none")
    shutil.copytree(done[1], "runs/tiny-1")
    message = refused(capsys, 2, "run", recipe, "--resume", "auto", "--set", "train.lr=1")
    assert "begun with another recipe (different: train)" in message


def test_a_run_folder_in_use_is_refused(recipe, capsys, done):
    shutil.copytree(done[1], "runs/tiny-1")
    held = RunFolder.resume(Path("runs/tiny-1"), yaml.safe_load(Path("runs/tiny-1/recipe.yaml").read_text()))
    assert "runs/tiny-1 is in use by another run" in refused(capsys, 5, "run", recipe, "--resume", "auto")
    held.close()


def test_a_run_without_results_does_not_stand_before_one_with_results(recipe, done):
    shutil.copytree(done[1], "runs/tiny-1")
    for number in (2, 3):
        Path(f"runs/tiny-{number}").mkdir()
    shutil.copy("runs/tiny-1/recipe.yaml", "runs/tiny-2")  # as a kill after its first step leaves it
    assert latest_run(Path("runs"), "tiny", comparison=False) == Path("runs/tiny-1")
    shutil.rmtree("runs/tiny-1")
    assert latest_run(Path("runs"), "tiny", comparison=False) == Path("runs/tiny-2")
