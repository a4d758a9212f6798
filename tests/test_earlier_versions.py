"""What version 0.1.0, before the packages, left on the disk can still be read and continued.

`tests/fixtures/v0.1.0` holds a run and a comparison of a tiny network on digits, as that version wrote them.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import prune_fe
from prune_fe.cli.app import main
from prune_fe.report.loading import load_findings
from prune_fe.scoring.fingerprint import hash_architecture

SAVED = Path(__file__).parent / "fixtures" / "v0.1.0"
RECIPE = """
name: small
data: {source: digits, size: 12, validation: 0.2}
model: {name: vgg-small, arguments: {stages: [[4], [6]]}}
train: {lr: 0.05, schedule: cosine, epochs: 2, batch_size: 64}
score: {samples: 10}
scorers: [feature-entropy, random]
prune: {ratio: 0.5}
finetune: {lr: 0.02, schedule: cosine, epochs: 1, batch_size: 64}
ablate: {every: 3, control_seeds: 1}
compare: {ratios: [0.3, 0.5], scratch: [1]}
seeds: [0]
"""


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture, in an empty working folder with the recipe; training anything fails the test."""
    shutil.copytree(SAVED, tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE)

    def refuse(*arguments: object, **keywords: object) -> None:
        pytest.fail("something was trained again")

    monkeypatch.setattr("prune_fe.experiment.steps.finetune", refuse)
    return tmp_path / "saved"


def test_a_saved_network_gives_the_accuracy_that_was_measured() -> None:
    folder = SAVED / "run/seed-0/feature-entropy/pruned"
    network = prune_fe.load(folder)
    row = json.loads((SAVED / "run/cells/seed-0.feature-entropy.json").read_text())["row"]
    assert sum(weight.numel() for weight in network.parameters()) == row["parameters"]
    result = prune_fe.evaluate(network, prune_fe.digits(12, validation=0.2).test)
    assert result.accuracy == pytest.approx(row["accuracy_finetuned"], abs=1 / 360)
    assert network(torch.zeros(1, 1, 12, 12)).shape == (1, 10)


def test_saved_scores_are_read_to_the_bit() -> None:
    scores = prune_fe.load_scores(SAVED / "run/seed-0/feature-entropy")
    with (SAVED / "run/seed-0/feature-entropy/scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["keep"]) for row in rows] == np.concatenate(list(scores.keep.values())).tolist()
    assert {"feature_entropy_nats", "selective_rate", "entropy_per_rate_nats"} <= scores.raw.keys()
    assert scores.images == 100
    assert len(scores.classes) == 10


def test_a_finished_run_is_continued_without_work(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = read_numbers(saved / "run/summary.csv")
    assert main(["run", "small.yaml", "--resume", str(saved / "run")]) == 0
    printed = capsys.readouterr().out
    assert "feature-entropy" in printed
    assert "goes on without it; a new run has it" in " ".join(printed.split())
    assert read_numbers(saved / "run/summary.csv") == summary
    assert (saved / "run/report.html").is_file()


def test_a_finished_comparison_is_continued_without_work(saved: Path) -> None:
    cells = {path.name: path.read_bytes() for path in (saved / "comparison/cells").iterdir()}
    assert main(["compare", "small.yaml", "--resume", str(saved / "comparison")]) == 0
    assert {path.name: path.read_bytes() for path in (saved / "comparison/cells").iterdir()} == cells
    assert (saved / "comparison/report.md").is_file()


def architecture_differs() -> bool:
    """Whether this torch prints modules in other words than the one that the scores were made with."""
    network = prune_fe.load(SAVED / "run/seed-0/trained")
    scores = prune_fe.load_scores(SAVED / "run/seed-0/feature-entropy")
    return hash_architecture(network) != scores.provenance["architecture_sha256"]


@pytest.mark.skipif(architecture_differs(), reason="this torch prints modules in other words: scores have another key")
def test_a_finished_ablation_is_read_and_not_computed_again(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files have the losses of the halves only, from which that of all images follows but for the last digits."""
    for method in ("run", "run_single_units"):
        monkeypatch.setattr(f"prune_fe.ablation.trial.Trial.{method}", lambda *_, **__: pytest.fail("computed again"))
    names = ("ablation-features.4.csv", "ablation-features.4-curves.csv")
    before = [read_numbers(saved / "run" / name) for name in names]
    assert main(["ablate", "small.yaml", "--resume", str(saved / "run")]) == 0
    for name, rows in zip(names, before, strict=True):
        assert read_numbers(saved / "run" / name) == rows


def read_numbers(path: Path) -> list[list[str]]:
    """Return the lines of a CSV file, numbers with nine digits: earlier versions wrote more."""

    def shorten(text: str) -> str:
        try:
            return f"{float(text):.9g}"
        except ValueError:
            return text

    with path.open(newline="") as file:
        return [[shorten(text) for text in row] for row in csv.reader(file)]


def test_a_finished_study_is_continued_without_work(saved: Path) -> None:
    table = read_numbers(saved / "run/study-ratio-seed-0.csv")
    assert main(["study", "ratio", "small.yaml", "--ratio", "0.3", "--resume", str(saved / "run")]) == 0
    assert read_numbers(saved / "run/study-ratio-seed-0.csv") == table


@pytest.mark.parametrize(("folder", "rows"), [("run", 3), ("comparison", 9)])
def test_its_findings_are_read(folder: str, rows: int) -> None:
    assert len(load_findings(SAVED / folder).results) == rows
    assert len(prune_fe.load_results(SAVED / folder)) == rows
