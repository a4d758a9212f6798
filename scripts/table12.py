"""Print table 12 from the results of a comparison, finished or not: accuracy right after pruning and after fine-tuning.

python scripts/table12.py runs/vgg16-imagenet-gpu-1
"""

import sys
from pathlib import Path

import pandas as pd

import prune_fe


def percent(values: pd.Series) -> str:
    """Return the mean of some shares in percent, with the standard deviation where there are several."""
    known = values.dropna().astype(float) * 100
    if known.empty:
        return "–"
    return f"{known.mean():.1f}" + (f" ± {known.std():.1f}" if len(known) > 1 else "")


def table(frame: pd.DataFrame) -> str:
    """Return a Markdown table with a line for each criterion and ratio.

    Args:
        frame: What `prune_fe.load_results` returns.
    """
    lines = [
        "| removed | criterion | seeds | right after pruning, % | after fine-tuning, % | parameters | multiply-adds |",
        "|---|---|---|---|---|---|---|",
    ]
    order = dict.fromkeys(zip(frame.point.fillna(0.0), frame.scorer, strict=True))
    for point, scorer in order:
        rows = frame[(frame.point.fillna(0.0) == point) & (frame.scorer == scorer)]
        pruned = rows.accuracy_pruned if rows.accuracy_pruned.notna().any() else rows.accuracy_before
        lines.append(
            f"| {point:.0%} | {scorer} | {len(rows)} | {percent(pruned)} | {percent(rows.accuracy_finetuned)} "
            f"| {rows.parameters.mean() / 1e6:.2f} M | {rows.macs.mean() / 1e9:.2f} G |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table of the folder that the command line names."""
    frame = prune_fe.load_results(Path(sys.argv[1]))
    print(
        f"Accuracy on the test images, mean ± standard deviation over seeds ({', '.join(map(str, set(frame.seed)))})."
    )
    print("A row of 0 % is the unpruned network.\n")
    print(table(frame))


if __name__ == "__main__":
    main()
