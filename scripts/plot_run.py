"""One figure of a run folder: feature entropy by depth, and accuracy by scorer with every seed as a point.

python scripts/plot_run.py RUN_FOLDER FIGURE.svg
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prune_fe import load_scores

STAGES = (("accuracy_before", "before pruning", "o"), ("accuracy_pruned", "right after", "x"),
          ("accuracy_finetuned", "after fine-tuning", "s"))  # fmt: skip


def by_depth(axes: Axes, run: Path) -> None:
    """Mean H over the units and classes of each layer, and mean ε, one line a seed."""
    for folder in sorted(run.glob("seed-*/feature-entropy")):
        scores = load_scores(folder)
        layers = list(scores.keep)
        for quantity, colour in (("feature_entropy_nats", "tab:blue"), ("selective_rate", "tab:orange")):
            values = [scores.layer_mean(quantity, layer) for layer in layers]
            label = f"{'H (nats)' if quantity.startswith('f') else 'ε'}, {folder.parent.name}"
            axes.plot(range(1, len(layers) + 1), values, "o-", color=colour, alpha=0.7, markersize=4, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("convolution, shallow to deep")
    axes.set_title("mean over units and classes")
    handles, labels = axes.get_legend_handles_labels()
    first = [i for i, text in enumerate(labels) if text.endswith(labels[0].rsplit(", ", 1)[1])]
    axes.legend([handles[i] for i in first], [labels[i].split(",")[0] for i in first], frameon=False)


def by_scorer(axes: Axes, rows: list[dict[str, Any]], ratio: float | dict[str, float]) -> None:
    """Every seed a point, the mean a bar."""
    scorers = list(dict.fromkeys(row["scorer"] for row in rows if row["scorer"] != "(unpruned)"))
    for number, (column, label, marker) in enumerate(STAGES):
        for place, scorer in enumerate(scorers):
            values = [100 * float(row[column]) for row in rows if row["scorer"] == scorer and row[column]]
            if not values:  # right after pruning, when each layer was fine-tuned at once
                continue
            x = place + 0.25 * (number - 1)
            named = label if place == 0 else None
            axes.bar(x, np.mean(values), width=0.22, color=f"C{number}", alpha=0.35, label=named)
            axes.plot([x] * len(values), values, marker, color=f"C{number}", markersize=5)
    axes.set_xticks(range(len(scorers)), scorers)
    axes.set_ylabel("test accuracy (%)")
    share = f"{ratio:.0%} of every layer" if isinstance(ratio, float) else "a share of each layer"
    axes.set_title(f"{share} removed; points are seeds")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("figure", type=Path)
    arguments = parser.parse_args()
    with (arguments.run / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1.3)})
    by_depth(left, arguments.run)
    by_scorer(right, rows, yaml.safe_load((arguments.run / "recipe.yaml").read_text())["prune"]["ratio"])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.figure, metadata={"Date": None} if arguments.figure.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
