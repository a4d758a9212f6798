"""Compare ways to spread one budget over the layers of trained networks: by sensitivity, uniformly, by one ranking.

    python scripts/sensitivity_evidence.py RECIPE --data PATH --network RUN/seed-0/trained --output FOLDER

RECIPE says which images; RUN is the run folder in which it trained the network. The curves are measured on images that
were held out of the training images, after a recalibration of the batch norms unless --raw-curves is given; the
comparison is made on the test images, before and after a recalibration. Nothing is fine-tuned. FOLDER gets a folder for
each scorer with the curves, the networks' accuracies, the differences with their intervals, and the environment.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from prune_fe.charts import save_chart, sensitivity_map
from prune_fe.data.labels import image_labels
from prune_fe.data.registry import load_data
from prune_fe.data.splits import Splits, split_by_class
from prune_fe.experiment.recipe import load_recipe
from prune_fe.experiment.run_folder import environment
from prune_fe.io import write_csv, write_text
from prune_fe.measure.evaluate import evaluate
from prune_fe.measure.statistics import Estimate, simultaneous
from prune_fe.models.build import build
from prune_fe.models.manifest import read_manifest
from prune_fe.models.saved import load
from prune_fe.pruning.loss_curves import Sensitivity
from prune_fe.pruning.prune import prune
from prune_fe.pruning.sensitivity import sensitivity
from prune_fe.records import write_record
from prune_fe.report.tables import Table
from prune_fe.scoring.score import score
from prune_fe.scoring.scores import Scores
from prune_fe.training.recalibration import recalibrate, recalibrating

WAYS: dict[str, dict[str, Any]] = {"uniform": {}, "global ranking": {"ranking": "global"}, "auto": {"ratio": "auto"}}
TARGETS = (0.5, 0.3)
BATCH = 100


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="the recipe that the network was trained with")
    parser.add_argument("--data", required=True, help="folder or archive of the images, or digits")
    parser.add_argument("--network", required=True, help="folder of the trained network")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--scorers", nargs="+", default=["l1-filter"], help="names of scorers")
    parser.add_argument("--samples", type=int, default=20, help="training images of each class for scoring")
    parser.add_argument("--held-out", type=int, default=1000, help="held-out images for the curves, about this number")
    parser.add_argument("--test", type=int, help="test images, about this number; default: all")
    parser.add_argument("--recalibrate", type=int, default=500, help="training images for the norms' statistics")
    parser.add_argument("--raw-curves", action="store_true", help="measure the curves without recalibration")
    given = parser.parse_args()
    recipe = load_recipe(given.recipe, {"data.path": given.data} if given.data != "digits" else {})
    splits = load_data(recipe.data, seed=0)
    splits = dataclasses.replace(
        splits, validation=_draw(splits.validation, given.held_out), test=_draw(splits.test, given.test)
    )
    model, manifest = recipe.model, read_manifest(given.network)
    # A network of timm has no factory in the manifest, but the recipe can build it.
    built = build(model.name, len(splits.classes), in_channels=splits.channels, **model.arguments)
    network = load(given.network, None if manifest["factory"] else built).eval()
    for name in given.scorers:
        folder = given.output / (f"{name}-raw-curves" if given.raw_curves else name)
        scores = score(network, splits.train, name, samples=given.samples, example=splits.test[0][0][None])
        recovery = None if given.raw_curves else recalibrating(splits.train, given.recalibrate)
        curves = sensitivity(network, scores, splits.validation, folder=folder, batch_size=BATCH, recovery=recovery)
        write_csv(folder / "sensitivity.csv", curves.rows())
        points = curves.table().dropna(subset="ratio")
        title = f"Each group of layers alone: {recipe.name}, {name}, {curves.images} held-out images"
        save_chart(sensitivity_map(points, curves.accuracy, title), folder / "sensitivity.svg")
        _compare(network, scores, curves, splits, folder, given.recalibrate)
        settings = {key: value for key, value in vars(given).items() if key not in ("data", "network", "output")}
        write_record(folder / "env.json", environment() | {"settings": settings, "scores": scores.about})


def _draw(data: Dataset[Any], count: int | None) -> Dataset[Any]:
    """Return about this number of images, the same share of each class."""
    labels = image_labels(data)
    if count is None or count >= len(labels):
        return data
    return Subset(data, split_by_class(labels, count / len(labels), seed=0)[1])


def _compare(
    network: nn.Module, scores: Scores, curves: Sensitivity, splits: Splits, folder: Path, n_recalibrated: int
) -> None:
    """Prune to each target in each way, and write the accuracies and their differences."""
    whole = evaluate(network, splits.test, batch_size=BATCH)
    rows: list[dict[str, Any]] = []
    tables = []
    for target in TARGETS:
        correct: dict[tuple[str, str], torch.Tensor] = {}
        for way, options in WAYS.items():
            example, measured = splits.test[0][0][None], curves if way == "auto" else None
            pruned = prune(
                network, scores, example=example, sensitivity=measured, options=options | {"target_macs": target}
            )
            for stage in ("pruned", "recalibrated"):
                if stage == "recalibrated":
                    recalibrate(pruned.model, splits.train, samples=n_recalibrated)
                test, held = (
                    evaluate(pruned.model, part, batch_size=BATCH) for part in (splits.test, splits.validation)
                )
                correct[stage, way] = test.correct
                row = {"target_macs": target, "way": way, "stage": stage, "macs": pruned.macs}
                row |= {"parameters": pruned.parameters, "accuracy": test.accuracy, "loss": test.loss}
                rows.append(row | {"held_out_loss": held.loss, "images": test.images, "notes": "; ".join(pruned.notes)})
                print(row, flush=True)
        tables.append(_table(target, correct, whole.accuracy))
    write_csv(folder / "comparison.csv", rows)
    heading = f"## {scores.scorer}: {whole.images} test images, nothing fine-tuned\n\n"
    write_text(folder / "comparison.md", heading + "\n".join(table.markdown() for table in tables))


def _table(target: float, correct: dict[tuple[str, str], torch.Tensor], accuracy: float) -> Table:
    """Return the accuracies at one target, and the differences to the same share of every layer."""
    keys = list(correct)
    values = np.stack([correct[key].numpy() for key in keys], axis=1) * 100.0
    pairs = [(number, keys.index((stage, "uniform"))) for number, (stage, way) in enumerate(keys) if way != "uniform"]
    differences = dict(zip((keys[number] for number, _ in pairs), simultaneous(values, pairs), strict=True))
    cells: dict[str, dict[str, Estimate | list[float]]] = {way: {} for way in WAYS}
    for number, (stage, way) in enumerate(keys):
        cells[way][stage] = [float(values[:, number].mean())]
        if (stage, way) in differences:
            cells[way][f"{stage}, minus uniform"] = differences[stage, way]
    forms = {f"{stage}{more}": ".1f" for stage in ("pruned", "recalibrated") for more in ("", ", minus uniform")}
    note = (
        f"Accuracy in percent, {100 * accuracy:.1f} before pruning; pruned: right after it, recalibrated: with new "
        "statistics of the batch norms. Differences are paired over the test images, with intervals of 95 % that hold "
        "for all of a table at once."
    )
    return Table(f"{target:.0%} of the multiply-adds left", forms, cells, note)


if __name__ == "__main__":
    main()
