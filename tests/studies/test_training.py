"""The study of training: the scores are those of the epochs, and a killed study goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prune_fe.data.digits import digits
from prune_fe.errors import InputError
from prune_fe.experiment.experiment import Experiment
from prune_fe.measure.statistics import spearman
from prune_fe.models.build import build
from prune_fe.models.saved import load
from prune_fe.scoring.score import score
from prune_fe.studies import training as studied
from prune_fe.studies.options import TrainingStudyOptions
from prune_fe.studies.training import training_study
from prune_fe.training.loop import finetune

TRAIN = {"lr": 0.05, "schedule": "cosine", "epochs": 3, "batch_size": 64, "keep": "last"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, run_study: Any, recipe_with: Any) -> tuple[Path, list[Any]]:
    """A finished study: its folder and its tables."""
    folder = tmp_path_factory.mktemp("training")
    options = TrainingStudyOptions(class_name="3")
    return folder, run_study(training_study, folder, recipe_with(train=TRAIN), options=options)[0]


def test_the_scores_are_those_of_the_network_after_each_epoch(done: Any, read_rows: Any) -> None:
    folder, tables = done
    splits, expected = digits(12, seed=1), []
    torch.manual_seed(1)
    network = build("vgg-small", 10, in_channels=1, stages=[[6], [8]]).to(memory_format=torch.channels_last)

    def keep_scores(epoch: Any, steps: int, total: int) -> None:
        if epoch is not None:
            scores = score(network, splits.train, samples=20, seed=1)
            expected.append([scores.raw[name]["features.4"] for name in ("feature_entropy_nats", "selective_rate")])

    history = finetune(network, splits.train, splits.validation, TRAIN, seed=1, progress=keep_scores)
    (path,) = folder.glob("study-training-*.csv")
    rows = read_rows(path)
    assert len(rows) == 4 * (1 + 10)
    every = [row for row in rows if row["scope"] == "all classes"]
    assert [row["number"] for row in every] == ["0", "1", "2", "3"]
    for row, epoch, (entropy, rate) in zip(every[1:], history[1:], expected, strict=True):
        assert float(row["train_loss"]) == pytest.approx(epoch.train_loss, rel=1e-5)
        assert float(row["train_accuracy"]) == pytest.approx(epoch.train_accuracy)
        assert float(row["entropy_nats"]) == pytest.approx(entropy.mean())
        assert float(row["selective_rate"]) == pytest.approx(rate.mean())
        mine = [each for each in rows if each["number"] == row["number"] and each["class"] == "3"]
        assert float(mine[0]["entropy_nats"]) == pytest.approx(entropy[3].mean())
    assert tables[0].rows["2"]["H, 3"] == pytest.approx([expected[1][0][3].mean()])
    entropies, losses = [float(entropy.mean()) for entropy, _ in expected], [epoch.train_loss for epoch in history[1:]]
    assert tables[1].rows["H, mean of the classes"]["ρ with the loss"] == [
        spearman(np.array(entropies), np.array(losses))
    ]
    figure = path.with_suffix(".svg").read_text()
    assert all(words in figure for words in ("training loss", "mean of 10 classes", "class 3", "validation images"))


def test_the_trained_network_is_saved_and_no_epoch_is(done: Any) -> None:
    folder, _ = done
    assert load(folder / "seed-1/trained")
    assert not [path for path in folder.rglob("*") if path.name.endswith(".unfinished")]


def test_a_killed_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_study: Any, recipe_with: Any,
                                done: Any) -> None:  # fmt: skip
    recipe, options = recipe_with(train=TRAIN), TrainingStudyOptions(class_name="3")
    write, written = studied.WatchedTraining._write, list[int]()

    def killed(watched: Any, network: Any, epoch: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(epoch.number)
        write(watched, network, epoch)

    monkeypatch.setattr(studied.WatchedTraining, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(training_study, tmp_path, recipe, options=options)
    assert written == [0, 1, 2]
    monkeypatch.setattr(studied.WatchedTraining, "_write", write)
    tables, _ = run_study(training_study, tmp_path, recipe, options=options)
    assert [table.markdown() for table in tables] == [table.markdown() for table in done[1]]
    monkeypatch.setattr(studied, "fit", lambda *given, **named: pytest.fail("trained again"))
    again, _ = run_study(training_study, tmp_path, recipe, options=options)
    assert [table.markdown() for table in again] == [table.markdown() for table in tables]


@pytest.mark.parametrize(
    ("sections", "options", "match"),
    [
        ({"train": None}, {}, "the recipe has no section train"),
        ({}, {"class_name": "cat"}, "class 'cat': not among the 10 scored classes"),
        ({}, {"layer": "features.9"}, "'features.9': the model has no such module"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(
    sections: dict[str, Any],
    options: dict[str, Any],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_study: Any,
    recipe_with: Any,
) -> None:
    monkeypatch.setattr(Experiment, "network", property(lambda _: pytest.fail("trained")))
    monkeypatch.setattr(studied, "fit", lambda *given, **named: pytest.fail("trained"))
    with pytest.raises(InputError, match=match):
        run_study(training_study, tmp_path, recipe_with(**sections), options=TrainingStudyOptions(**options))
