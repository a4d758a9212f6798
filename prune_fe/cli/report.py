"""prune-fe report: write the report of a run folder again."""

from __future__ import annotations

from pathlib import Path

from prune_fe.cli.output import reporter


def report(folder: Path) -> None:
    """Write report.html with the results that a run or a comparison has so far; missing ones are marked as missing.

    Args:
        folder: A run folder of `prune-fe run` or `prune-fe compare`.
    """
    from prune_fe.report.report import write_report

    reporter.say(f"report: {write_report(folder)}   (report.md, report.json and cells.csv beside it)")
