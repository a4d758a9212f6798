"""Load the findings of a run or a comparison from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from prune_fe.errors import CheckpointError, InputError
from prune_fe.experiment.recipe import Recipe, as_begun, with_controls
from prune_fe.experiment.result_schema import EnvironmentFile, LabelsFile, check_content
from prune_fe.experiment.results import load_result
from prune_fe.experiment.run_folder import LATENCY, NETWORKS, failed_tasks, is_comparison
from prune_fe.file_types import require_path
from prune_fe.records import damaged, read_record, read_yaml
from prune_fe.report.findings import Findings
from prune_fe.scoring.scores import load_scores


def load_results(folder: Path | str) -> pd.DataFrame:
    """Load the results of a run or a comparison, finished or not, as a data frame.

    Args:
        folder: The folder that `prune-fe run` or `prune-fe compare` has written.

    Returns:
        One row for each measured network:

        - network: its label; scorer: label of the criterion, "(unpruned)", "(unpruned, fine-tuned)" or
          "scratch#BUDGET"; seed.
        - goal, point: the operating point, such as "ratio" and 0.5; None and NaN for an unpruned network.
        - accuracy: on the test images (a share), of the final network; accuracy_before, accuracy_pruned and
          accuracy_finetuned: before pruning, right after it and after fine-tuning; balanced_accuracy; loss (nats).
        - parameters, macs (multiply-adds of an image), images_per_second with its quartiles
          images_per_second_low and images_per_second_high, timed_with (the setting of that measurement),
          processor_share (the share of its time with a processor, less than 0.9 on a machine busy with other work).
        - scoring_seconds: for the scores; seconds: for all of the result; commit: of the source.

        What was not measured is NaN or None.

    Raises:
        InputError: The folder holds no run or comparison, or nothing has been measured yet.
        CheckpointError: A file is damaged.
    """
    return load_findings(require_path(folder, "folder")).frame


def _read_checked(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """Return the content of a file whose values have the types of `kind`."""
    content = read_record(path)
    try:
        check_content(kind, content)
    except ValueError as error:
        raise damaged(path, error) from error
    return content


def load_findings(folder: Path) -> Findings:
    """Load the results and scores of a run or a comparison, finished or not.

    Raises:
        InputError: The folder holds no run or comparison, or nothing has been measured yet.
        CheckpointError: A file is damaged.
    """
    for name in ("recipe.yaml", "test.json", "env.json"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: nothing of `prune-fe run` or `prune-fe compare` to report ({folder / name} is missing)"
            )
    try:
        content = read_yaml(folder / "recipe.yaml")
        recipe = as_begun(Recipe.model_validate(content), content)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{folder}: damaged ({error})") from error
    test = _read_checked(folder / "test.json", LabelsFile)
    environment = _read_checked(folder / "env.json", EnvironmentFile)
    comparison = is_comparison(folder)
    if comparison:
        recipe = with_controls(recipe)
    # A file whose name begins with a dot was being written when its process ended.
    paths = sorted((folder / "cells").glob("[!.]*.json"))
    results = [load_result(path) for path in paths]
    if not results:
        raise InputError(f"{folder}: no network has been measured yet")
    for path, result in zip(paths, results, strict=True):
        if len(result.correct) != len(test["labels"]):
            raise CheckpointError(f"{path}: has {len(result.correct)} test images, test.json has {len(test['labels'])}")
    scores = {}
    for network in recipe.compare.networks if comparison else [recipe.model.name]:
        for seed in recipe.seeds:
            scores_folder = folder / (f"{NETWORKS}/{network}/seed-{seed}/scores" if comparison else f"seed-{seed}")
            for entry in recipe.scorers:
                if (scores_folder / entry.label / "scores.npz").exists():
                    scores[network, seed, entry.label] = load_scores(scores_folder / entry.label)
    labels, failed = np.array(test["labels"]), failed_tasks(folder)
    latency = _first_latency(folder / LATENCY)
    return Findings(recipe, results, scores, test["classes"], labels, environment, comparison, failed, latency)


def _first_latency(path: Path) -> Mapping[str, Any] | None:
    """Return the first setting in which both networks could be timed."""
    if not path.exists():
        return None
    timed: list[dict[str, Any]] = read_record(path)["settings"]
    return next((each for each in timed if "ratio" in each), None)
