"""The report of a run or a comparison: an HTML page, and the same numbers as Markdown, CSV and JSON."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from prune_fe.experiment.results import TUNED, UNPRUNED
from prune_fe.io import write_json, write_text
from prune_fe.measure.statistics import kendall, spearman
from prune_fe.report.findings import COLUMNS, Findings
from prune_fe.report.loading import load_findings
from prune_fe.report.numbers import counted
from prune_fe.report.page import Block, Charts, Checklist, Figures, Fold, Row, Section, Text, render_page
from prune_fe.report.sections import report_sections
from prune_fe.report.tables import escape_markdown, markdown_table, write_frame


def write_report(folder: Path) -> Path:
    """Write the report of a run or a comparison, finished or not.

    Args:
        folder: Folder of a run or a comparison. report.html, report.md, report.json, cells.csv, classes.csv and
            agreement.csv are written into it.

    Returns:
        Path of the HTML page.

    Raises:
        InputError: The folder holds no run or comparison, or nothing has been measured yet.
        CheckpointError: A file is damaged.
    """
    findings = load_findings(folder)
    title, subtitle = f"prune_fe: {findings.recipe.name}", report_subtitle(findings)
    sections = list(report_sections(findings))
    write_text(folder / "report.html", render_page(title, subtitle, sections))
    write_text(folder / "report.md", report_markdown(title, subtitle, sections))
    write_frame(folder / "cells.csv", findings.frame[COLUMNS])
    for name, frame in (("classes.csv", class_frame(findings)), ("agreement.csv", agreement_frame(findings))):
        if not frame.empty:
            write_frame(folder / name, frame)
    write_json(folder / "report.json", {"recipe": findings.recipe.model_dump(mode="json"), **report_numbers(findings)})
    return folder / "report.html"


def report_subtitle(findings: Findings) -> str:
    """Return the extent of what was measured, in words."""
    counts = [
        counted(len(findings.scorers), "criterion", "criteria"),
        counted(len(findings.points), "operating point"),
        counted(len(findings.networks), "network"),
        counted(len(findings.seeds), "seed"),
        f"{counted(len(findings.labels), 'test image')} of {counted(len(findings.classes), 'class', 'classes')}",
    ]
    return ", ".join(counts)


def class_frame(findings: Findings) -> pd.DataFrame:
    """Return a row for each network, operating point, scorer and class: accuracy before and after pruning.

    The accuracies are means over the scorer's seeds.
    """
    frames = []
    for network in findings.networks:
        for point in findings.points:
            for scorer in [*findings.scorers, *findings.scratch]:
                table = findings.class_accuracies(network, scorer, point)
                if table is not None:
                    keys = {"network": network, "scorer": scorer, findings.goal: point}
                    frames.append(table.assign(**keys)[[*keys, *table.columns]])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def agreement_frame(findings: Findings) -> pd.DataFrame:
    """Return a row for each network, pair of criteria and layer: rank correlations, and overlap at each point."""
    return pd.DataFrame(list(_agreement_rows(findings)))


def _agreement_rows(findings: Findings) -> Iterator[dict[str, Any]]:
    for network in findings.networks:
        names = list(findings.scores_of(network))
        for number, one in enumerate(names):
            for other in names[number + 1 :]:
                rho, tau = (findings.agreement(network, one, other, f) for f in (spearman, kendall))
                overlaps = {point: findings.overlap(network, point, one, other) for point in findings.points}
                for layer in rho:
                    row: dict[str, Any] = {"network": network, "layer": layer, "one": one, "other": other}
                    row |= {"spearman": rho[layer], "kendall": tau[layer]}
                    yield row | {f"jaccard_{findings.goal}_{p:g}": overlaps[p].get(layer) for p in findings.points}


def report_numbers(findings: Findings) -> dict[str, Any]:
    """Return the means and differences, for programs."""
    entries = []
    for network in findings.networks:
        for point in findings.points:
            differences = {
                "difference_to_best": findings.differences_to_best(network, point),
                "difference_to_random": findings.differences_to_random(network, point),
            }
            for scorer in [*findings.scorers, *findings.scratch]:
                values = findings.accuracies(network, scorer, point)
                entry: dict[str, Any] = {"network": network, "scorer": scorer, findings.goal: point}
                entry |= {"accuracies": values, "mean": statistics.mean(values) if values else None}
                for name, by_scorer in differences.items():
                    known = by_scorer.get(scorer)
                    entry[name] = None if known is None else dataclasses.asdict(known.estimate)
                entries.append(entry)
    unpruned = {network: findings.accuracies(network, UNPRUNED) for network in findings.networks}
    tuned = {network: findings.accuracies(network, TUNED) for network in findings.networks} if findings.tuned else {}
    return {
        "environment": dict(findings.environment),
        "unpruned": unpruned,
        "unpruned_finetuned": tuned,
        "cells": entries,
        "missing": findings.missing,
    }


def report_markdown(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the report as Markdown, with the numbers of its charts."""
    lines = [f"# {title}", "", subtitle, ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += _block_lines(block)
    return "\n".join(lines)


def _block_lines(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [escape_markdown(block.text), ""]
    if isinstance(block, Checklist):
        return [*map(_checklist_line, block.entries), ""]
    if isinstance(block, Figures):
        figures = [f"- **{escape_markdown(number)}** {escape_markdown(what)}" for number, what in block.figures]
        return [f"### {escape_markdown(block.title)}", "", *figures, ""]
    if isinstance(block, Fold | Row):
        return [line for inner in block.blocks for line in _block_lines(inner)]
    table = block.numbers if isinstance(block, Charts) else block
    columns, *rows = ([escape_markdown(cell) for cell in row] for row in (table.columns, *table.rows))
    lines = [f"### {escape_markdown(table.title)}", "", markdown_table(columns, rows), ""]
    return [*lines, escape_markdown(table.note), ""] if table.note else lines


def _checklist_line(entry: tuple[str, bool | None, str]) -> str:
    requirement, is_met, detail = entry
    word = {True: "yes", False: "**missing**", None: "does not apply"}[is_met]
    return f"- {word}: {requirement}" + (f" ({escape_markdown(detail)})" if detail else "")
