"""The glossary of the columns of all tables that commands write, for recipes/README.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prune_fe.experiment.recipe_table import escape_cell, option_helps
from prune_fe.experiment.results import Row
from prune_fe.pruning.loss_curves import CurvePoint
from prune_fe.training.custom import Epoch

BEGIN, END = "<!-- columns: begin -->", "<!-- columns: end -->"
"""The lines of recipes/README.md between which the glossary stands."""

CLASS = {"class": "name of the class"}
LAYER = {"layer": "name of the module", "unit": "number of the unit in its layer, from 0, before pruning"}
NETWORK = {
    "network": "label of the network",
    "goal": "the option that sets how much is removed, such as `target_macs`",
    "point": "its value: the operating point",
}

QUANTITIES = {
    "feature_entropy_nats": "H, the entropy of the births of the first hole over the images of a class, in nats; the "
    "mean of the classes",
    "selective_rate": "ε, the share of the images whose map has a hole",
    "entropy_per_rate_nats": "H/ε, the score of feature-entropy",
    "classes_without_birth": "number of the classes in which no image's map has a hole",
    "zero_share": "share of activations that are zero (apoz)",
    "mean_activation": "mean of the unit's map over all images",
    "class_selectivity": "selectivity of the class that activates the unit most, from 0 to 1",
    "map_rank": "mean rank of the unit's map as a matrix (hrank)",
    "taylor_importance": "squared change of the loss that removing the unit causes, to first order",
    "nisp_score": "importance that NISP passes back from the last hidden layer",
    "l1_activation": "mean absolute value of the unit's map",
    "l1_filter": "sum of the absolute weights of the unit's filter; `l2_filter` is its Euclidean length",
    "bn_scale": "absolute scale of the unit in the batch norm behind it",
    "fpgm_distance": "sum of the distances of the unit's filter to all others of its layer",
}
"""Quantity that scores are computed from -> what it is. The unit of measure stands at the end of its name."""


@dataclass(frozen=True)
class TableFile:
    """Tables with the same columns.

    Attributes:
        names: Their file names.
        rows: What writes them, and what a row is.
        columns: Column -> what it means.
    """

    names: tuple[str, ...]
    rows: str
    columns: Mapping[str, str]


def table_files() -> Iterator[TableFile]:
    """Yield the tables that the commands write."""
    results, epochs, points = (_meanings(cls) for cls in (Row, Epoch, CurvePoint))
    results["scorer"] = "label of the criterion, `(unpruned)`, `(unpruned, fine-tuned)` or `scratch#BUDGET`"
    more = {"seconds": "duration of the whole result", "commit": "commit of the source"}
    yield TableFile(
        ("cells.csv", "summary.csv"),
        "`run`, `compare`, `compress`, `load_results`: a network; `summary.csv` is the table of a run without "
        "`network`, `goal`, `point`, `seconds` and `commit`",
        NETWORK | results | more,
    )
    yield TableFile(
        ("scores.csv", "classes.csv", "layers.csv"),
        "`score`, each criterion's folder of a run: a unit; a unit and class; a layer, with the means of its units",
        LAYER
        | {"units": "number of units of the layer"}
        | CLASS
        | {"scorer": "scorer of the layer, where there are several", "keep": "the score: higher = keep"}
        | QUANTITIES,
    )
    yield TableFile(("images.csv",), "`score`: an image that was scored on", {"image": "its name"} | CLASS)
    yield TableFile(("epochs.csv",), "`finetune`: an epoch", epochs)
    yield TableFile(
        ("agreement.csv",),
        "`compare`, `report`: a pair of criteria and a layer",
        {
            "network": NETWORK["network"],
            "layer": LAYER["layer"],
            "one": "a criterion",
            "other": "another criterion",
            "spearman": "Spearman's ρ of the scores of the layer's units",
            "kendall": "Kendall's τ of the same",
            "jaccard_…": "units that both remove divided by those that either removes, at an operating point",
        },
    )
    yield TableFile(
        ("classes.csv (in a run folder)",),
        "`run`, `compare`: a class, and a criterion at an operating point",
        {
            "network": NETWORK["network"],
            "scorer": results["scorer"],
            "ratio, target_macs, target_params": "the operating point; a table has one of these columns",
            **CLASS,
            "before": "share of the class's test images that the unpruned network classifies correctly, mean of seeds",
            "after": "the same of the pruned network",
        },
    )
    yield TableFile(
        ("sensitivity.csv",),
        "`sensitivity`: a group of tied layers that loses units alone, and a ratio",
        {
            "group": "number of the group, from 1",
            "layers": "its layers",
            "units": "number of its units",
            **points,
            "loss_increase": "`loss` minus that of the whole network, in nats",
            "reason": "why the group can lose no units",
        },
    )
    yield TableFile(
        ("ablation-LAYER.csv",),
        "`ablate`: a class, a criterion, and an order of removal",
        {
            "seed": results["seed"],
            "scorer": "the criterion that orders the units; `random` is the control",
            "order": "`ascending`: best units first; `descending`: worst units first",
            **CLASS,
            "area": "mean accuracy over the share of removed units (figure 12)",
            "accuracy": "share of the class's test images that is classified correctly, before anything is removed",
            "peak_accuracy": "highest accuracy of the curve",
            "peak_after": "number of removed units at which it is first reached",
            "units_until_chance": "number of removed units after which the accuracy is that of guessing",
            "balanced_accuracy": "mean of the recalls of the class and of all others, before anything is removed",
            "best_balanced_accuracy": "the highest one of the curve (table 11)",
            "best_after": "number of removed units at which it is first reached",
            "best_balanced_accuracy_held_out": "the same, chosen on one half of the images and measured on the other",
            "loss": "mean cross-entropy of the class's images in nats, before anything is removed",
            "spearman_single_unit": "Spearman's ρ between the units' scores and the losses with each unit masked alone",
        },
    )
    yield TableFile(
        ("ablation-LAYER-curves.csv",),
        "`ablate`: a number of removed units; means of the classes",
        {"removed": "number of masked units", "accuracy, balanced_accuracy, loss": "with these units masked"},
    )
    yield TableFile(
        ("classes.csv, confusion.csv (of `evaluate --output`)",),
        "`evaluate`: a class; a true and a predicted class",
        {
            **CLASS,
            "images": "number of its images",
            "correct": "number of those that are classified correctly",
            "recall": "share of its images that are classified correctly",
            "precision": "share of the images taken for this class that belong to it",
            "confused_with": "the class that its wrongly classified images are most often taken for",
            "confused": "number of these images",
            "true, predicted, share": "class of the images; class they are taken for; share of the true class's images",
        },
    )
    yield TableFile(
        ("the table of `inspect --output`",),
        "`inspect`: a module",
        {
            "layer, type": "its name and its class",
            "units": "number of its units; missing for norms and others that have none",
            "map_height, map_width": "size of the maps of its units in pixels",
            "groups, tied_to": "numbers of its units' groups, and the other layers in them: tied units go together",
            "removable": "the largest number of units that can be removed",
            "step": "the smallest number of units that go together",
            "reason": "why units have to stay",
            "parameters, macs": "of the module alone",
        },
    )


def _meanings(cls: Any) -> dict[str, str]:
    """Return attribute -> its line in the docstring of a class, without the capital letter of a sentence."""
    helps = option_helps(cls)
    return {entry.name: helps[entry.name][:1].lower() + helps[entry.name][1:] for entry in dataclasses.fields(cls)}


def columns_markdown() -> str:
    """Return the glossary as Markdown, with the lines around it; a column is explained once."""
    lines = [
        BEGIN,
        "",
        "Numbers have at most nine digits; a JSON or npz file beside a table has all of them. A column with the same",
        "meaning in several tables is listed with the first of them only.",
    ]
    known = set[tuple[str, str]]()
    for table in table_files():
        names = ", ".join(name if " " in name else f"`{name}`" for name in table.names)
        lines += ["", f"**{names}**. {table.rows}.", "", "| column | meaning |", "|---|---|"]
        for column, meaning in table.columns.items():
            if (column, meaning) not in known:
                shown = ", ".join(f"`{name}`" for name in column.split(", "))
                lines.append(f"| {shown} | {escape_cell(meaning).rstrip('.')} |")
            known.add((column, meaning))
        if lines[-1] == "|---|---|":
            lines[-3:] = ["", "All columns are explained above."]
    return "\n".join([*lines, "", END])
