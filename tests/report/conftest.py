"""A small comparison whose results are made up: the report is tested without training a network."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prune_fe.experiment.recipe import Recipe, with_controls
from prune_fe.experiment.results import SCRATCH, TUNED, UNPRUNED, Result, Row
from prune_fe.experiment.run_folder import NETWORKS
from prune_fe.report.findings import Findings
from prune_fe.report.loading import load_findings
from prune_fe.scoring.scores import Scores

LAYERS = {"features.0": 8, "features.4": 12, "features.8": 16}
RATIOS, SEEDS, BUDGETS = [0.25, 0.75], [0, 3], [1, 2]
CLASSES, IMAGES = ["cat", "dog", "<owl>", "=SUM(A1)"], 80
RECIPE = Recipe.model_validate(
    {
        "name": "made-up",
        "data": {"source": "digits", "size": 12},
        "model": {"name": "vgg-small"},
        "train": {"lr": 0.05, "schedule": "step", "epochs": 1},
        "scorers": ["feature-entropy", {"name": "apoz", "label": "zeros"}],
        "finetune": {"lr": 0.01, "schedule": "cosine", "epochs": 1},
        "compare": {
            "networks": {"one": {"name": "vgg-small"}, "two": {"name": "vgg-small"}},
            "ratios": RATIOS,
            "scratch": BUDGETS,
        },
        "seeds": SEEDS,
    }
)
SCORERS = [entry.label for entry in with_controls(RECIPE).scorers]


def made_up_result(network: str, scorer: str, seed: int, ratio: float | None, correct: np.ndarray) -> Result:
    accuracy = float(correct.mean())
    is_pruned = ratio is not None and not scorer.startswith(SCRATCH)
    row = Row(
        scorer, seed, accuracy if ratio is None else 0.9, 0.3 if is_pruned else None,
        None if ratio is None else accuracy, 0.5, 1.25, int(50_000 * (1 - (ratio or 0))),
        int(4e6 * (1 - (ratio or 0))), 1000 / (1.5 - (ratio or 0)), 900.0, 1100.0, "batch 64, cpu", 0.5,
    )  # fmt: skip
    removed = {name: list(range(seed, seed + int((ratio or 0) * size))) for name, size in LAYERS.items()}
    environment = {"commit": "abc", "processor": "a processor", "gpu": None}
    goal = None if ratio is None else "ratio"
    return Result(network, row, correct, goal, ratio, removed, seconds=1.5, environment=environment)


def write_comparison(folder: Path, recipe: Recipe = RECIPE) -> None:
    """Write what `prune-fe compare` leaves in a folder."""
    (folder / NETWORKS).mkdir(parents=True)
    draw = np.random.default_rng(0)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    labels = [number % (len(CLASSES) - 1) for number in range(IMAGES)]  # the last class has no image
    (folder / "test.json").write_text(json.dumps({"classes": CLASSES, "labels": labels}))
    (folder / "env.json").write_text(json.dumps({"torch": "2.14", "gpu": None, "list": [{"a": 1}]}))
    for network in recipe.compare.networks:
        for seed in recipe.seeds:
            places: list[tuple[str, float | None]] = [(UNPRUNED, None)]
            for label in (*SCORERS, *(f"{SCRATCH}{budget}" for budget in BUDGETS)):
                places += [(label, ratio) for ratio in RATIOS]
            for scorer, ratio in places:
                chance = 0.9 - 0.6 * (ratio or 0) - 0.05 * (scorer == "random")
                result = made_up_result(network, scorer, seed, ratio, draw.random(IMAGES) < chance)
                ending = "" if ratio is None else f".ratio-{ratio}"
                result.save(folder / "cells" / f"{network}.seed-{seed}.{scorer}{ending}.json")
            # Its own numbers, so that those of the others stay as they are.
            correct = np.random.default_rng([seed, len(network)]).random(IMAGES) < 0.92
            tuned = made_up_result(network, TUNED, seed, None, correct)
            row = dataclasses.replace(tuned.row, accuracy_before=0.9, accuracy_finetuned=tuned.row.accuracy)
            dataclasses.replace(tuned, row=row).save(
                folder / "cells" / f"{network}.seed-{seed}.unpruned-fine-tuned.json"
            )
            for entry in with_controls(recipe).scorers:
                keep = {name: draw.random(units) for name, units in LAYERS.items()}
                raw: dict[str, Any] = {}
                if entry.name == "feature-entropy":
                    raw = {q: {name: draw.random((3, units)) for name, units in LAYERS.items()}
                           for q in ("feature_entropy_nats", "selective_rate", "entropy_per_rate_nats")}  # fmt: skip
                Scores(entry.name, keep, raw, tuple(CLASSES[:3]), 30, 1.0, own_seconds=0.25).save(
                    folder / NETWORKS / network / f"seed-{seed}" / "scores" / entry.label
                )


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison; do not write into it."""
    folder = tmp_path_factory.mktemp("made-up") / "comparison"
    write_comparison(folder)
    return folder


@pytest.fixture(scope="session")
def findings(comparison: Path) -> Findings:
    return load_findings(comparison)
