"""Draw one figure of a run folder: feature entropy by depth, and accuracy by scorer with every seed as a point.

python scripts/plot_run.py RUN_FOLDER FIGURE.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import yaml

from prune_fe import load_scores
from prune_fe.charts import run_overview, save_chart

STAGES = {
    "accuracy_before": "before pruning",
    "accuracy_pruned": "right after pruning",
    "accuracy_finetuned": "after fine-tuning",
}
QUANTITIES = {"feature_entropy_nats": "H (nats)", "selective_rate": "ε"}


def entropy_profile(run: Path) -> pd.DataFrame:
    """Return the means of H and ε over the units and classes of each layer, for each seed."""
    rows = []
    for folder in sorted(run.glob("seed-*/feature-entropy")):
        scores = load_scores(folder)
        for quantity, name in QUANTITIES.items():
            for depth, layer in enumerate(scores.keep, 1):
                value = scores.layer_mean(quantity, layer)
                rows.append({"quantity": name, "seed": folder.parent.name, "depth": depth, "value": value})
    return pd.DataFrame(rows, columns=["quantity", "seed", "depth", "value"])


def stage_accuracies(run: Path) -> pd.DataFrame:
    """Return the accuracy of each scorer and seed at each stage; a stage that was not measured has no row."""
    summary = pd.read_csv(run / "summary.csv")
    summary = summary[summary["scorer"] != "(unpruned)"]
    long = summary.melt(["scorer", "seed"], list(STAGES), var_name="stage", value_name="accuracy").dropna()
    return long.assign(stage=long["stage"].map(STAGES))


def main() -> None:
    """Read the arguments and draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("figure", type=Path)
    arguments = parser.parse_args()
    recipe = yaml.safe_load((arguments.run / "recipe.yaml").read_text(encoding="utf-8"))
    ratio = recipe["prune"]["ratio"]
    removed = f"{ratio:.0%} of every layer" if isinstance(ratio, float) else "a share of each layer"
    chart = run_overview(
        entropy_profile(arguments.run), stage_accuracies(arguments.run), recipe["name"], f"{removed} removed"
    )
    save_chart(chart, arguments.figure)


if __name__ == "__main__":
    main()
