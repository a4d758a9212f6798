"""The report of a run or a comparison: one HTML page, and the same as Markdown, CSV and JSON."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prune_fe.experiment.results import BY_LAYER, SCRATCH, UNPRUNED, Cell
from prune_fe.io import write_csv, write_json, write_text
from prune_fe.measure.statistics import kendall, spearman
from prune_fe.report.findings import CONTROL, FILTER_NORM, Difference, Findings, load_findings
from prune_fe.report.html import (
    Bars,
    Block,
    Checklist,
    Heatmap,
    Histogram,
    Line,
    Lines,
    Point,
    Section,
    Table,
    Text,
    numbers_of,
    page,
)
from prune_fe.scoring.scores import Array

FEATURE_ENTROPY = "feature-entropy"
FEW_POINTS, FEW_SEEDS = 5, 3
MANY_CLASSES = 100
"""From so many classes on a top-5 accuracy is expected."""

SHOWN_CLASSES = 20
DEPTH = "convolution, shallow to deep"
GOALS = {"ratio": "share removed", "target_macs": "multiply-adds left", "target_params": "parameters left",
         BY_LAYER: "a share of its own removed from each layer"}  # fmt: skip


def write_report(folder: Path) -> Path:
    """Write report.html, report.md, report.json, cells.csv, classes.csv and agreement.csv into the folder of a run or a
    comparison, of what is there; returns the path of the page."""
    found = load_findings(folder)
    title, subtitle, sections = f"prune_fe: {found.recipe.name}", subtitle_of(found), list(sections_of(found))
    write_text(folder / "report.html", page(title, subtitle, sections))
    write_text(folder / "report.md", markdown(title, subtitle, sections))
    write_csv(folder / "cells.csv", [_flat(cell) for cell in found.cells])
    for name, rows in (("classes.csv", class_accuracies(found)), ("agreement.csv", agreements(found))):
        if known := list(rows):
            write_csv(folder / name, known)
    write_json(folder / "report.json", {"recipe": found.recipe.model_dump(mode="json"), **numbers(found)})
    return folder / "report.html"


def subtitle_of(found: Findings) -> str:
    n_scorers, n_points = len(found.scorers), len(found.points)
    return (
        f"{_many(n_scorers, 'criterion', 'criteria')}, {_many(n_points, 'operating point')}, "
        f"{_many(len(found.networks), 'network')}, {_many(len(found.seeds), 'seed')}, "
        f"{_many(len(found.labels), 'test image')} of {_many(len(found.classes), 'class', 'classes')}"
    )


def sections_of(found: Findings) -> Iterator[Section]:
    """The whole report, in the order in which a person wants to read it."""
    yield Section("What came out", [Text(text) for text in _verdicts(found)])
    for network in found.networks:
        of = f": {network}" if len(found.networks) > 1 else ""
        yield Section(f"Trade-off{of}", _trade_off(found, network))
        tables = [_accuracy_table(found, network), *(_table_12(found, network, point) for point in found.points)]
        yield Section(f"Accuracy{of}", tables)
        yield Section(f"Which classes pay{of}", _classes(found, network))
        yield Section(f"Layers{of}", _layers(found, network))
        yield Section(f"Scores{of}", _histograms(found, network))
        yield Section(f"Agreement{of}", _agreement(found, network))
        yield Section(f"Cost of each criterion{of}", [_cost(found, network)])
    yield Section("What a comparison must report", [_checklist(found)])
    yield Section("Settings and environment", [_settings(found), _environment(found)])


def _verdicts(found: Findings) -> Iterator[str]:
    """A paragraph for each network and point: nobody is called better unless the interval says so."""
    told = [
        _verdict(found, network, point, best)
        for network in found.networks
        for point in found.points
        if (best := found.best(network, point)) is not None
    ]
    if not told:
        yield "No network has been pruned yet."
        return
    yield from told
    yield (
        "Intervals are of 95 %, by the bootstrap over the test images, which are resampled for all criteria together, "
        "and hold for all pairs of them at a point at once, so that the best may be picked by the same images. They do "
        "not know how other seeds would come out, which the spread over seeds is for. What lacks a seed that others "
        "have is not compared."
    )


def _verdict(found: Findings, network: str, point: float, best: str) -> str:
    to_best, to_random = found.to_best(network, point), found.to_random(network, point)
    even = [s for s, each in to_best.items() if s in found.scorers and each.verdict == "not told apart"]
    seeds, known = found.compared(network, point)
    by = "" if len(seeds) == len(found.seeds) else f", by {_many(len(seeds), 'seed')} of {len(found.seeds)}"
    mean = _mean(found, network, best, point)
    lead = f"{network}, {_point(found, point)}{by}: "
    if any(s in found.scorers for s in to_best):
        apart = f"not told apart from {', '.join(even)}" if even else "told apart from all others"
        said = [f"{lead}{best} has the highest mean accuracy ({mean}), {apart}"]
    else:
        said = [f"{lead}{best} has {mean}, and there is no other criterion to compare it with"]
    by_verdict: dict[str, list[str]] = {"better": [], "worse": []}
    for scorer, each in to_random.items():
        if scorer in found.scorers and each.verdict in by_verdict:
            by_verdict[each.verdict].append(scorer)
    if to_random:
        said.append(f"Better than {CONTROL}: {', '.join(by_verdict['better']) or 'none'}")
        said += [f"Worse: {', '.join(by_verdict['worse'])}"] if by_verdict["worse"] else []
    else:
        said.append(f"No {CONTROL} to compare with")
    if left := [s for s in found.scorers if s not in known and found.at(network, s, point)]:
        said.append(f"Not compared, for lack of seeds: {', '.join(left)}")
    for scorer in found.scratch:
        if found.at(network, scorer, point):
            how = "not compared, for lack of seeds"
            if scorer in to_best:
                verdict = to_best[scorer].verdict
                how = f"{verdict} {'from' if verdict == 'not told apart' else 'than'} {best}"
            said.append(f"{_name(scorer).capitalize()}: {_mean(found, network, scorer, point)}, {how}")
    return ". ".join(said) + "."


def _trade_off(found: Findings, network: str) -> list[Block]:
    blocks: list[Block] = []
    axes: tuple[tuple[str, str, Callable[[Cell], float]], ...] = (
        ("multiply-adds", "multiply-adds of an image", lambda cell: cell.row.macs),
        ("parameters", "parameters", lambda cell: cell.row.parameters),
        ("measured time", "milliseconds an image", lambda cell: 1000 / cell.row.images_per_second),
    )
    timed = ", ".join(dict.fromkeys(cell.row.timed_with for cell in found.cells))
    notes = {
        "multiply-adds": "Points are means over the seeds, whiskers reach from the lowest to the highest seed.",
        "measured time": f"Medians; {timed}. Timings of a busy machine scatter.",
    }
    for title, x, value in axes:
        lines = []
        for scorer in [*found.scorers, *found.scratch]:
            points = []
            for place in [None, *found.points] if scorer in found.scorers else found.points:
                cells = found.at(network, UNPRUNED if place is None else scorer, place)
                if cells:
                    accuracies = [cell.row.accuracy for cell in cells]
                    said = "unpruned" if place is None else _point(found, place)
                    said += _of_seeds(found, len(cells))
                    at = statistics.mean(value(cell) for cell in cells)
                    points.append(Point(at, statistics.mean(accuracies), min(accuracies), max(accuracies), said))
            lines.append(Line(_name(scorer), points, dashed=_is_control(found, scorer)))
        text = f"Accuracy against {title}"
        blocks.append(Lines(text, x, "test accuracy", lines, notes.get(title, ""), log_x=True, percent_y=True))
    return blocks


def _accuracy_table(found: Findings, network: str) -> Table:
    """A line a scorer, a column an operating point."""
    signs = {"better": " ▲", "worse": " ▼", "not told apart": ""}
    to_random = {point: found.to_random(network, point) for point in found.points}
    rows = [[UNPRUNED, *(_mean(found, network, UNPRUNED, None) for _ in found.points)]]
    for scorer in [*found.scorers, *found.scratch]:
        cells = []
        for point in found.points:
            against = to_random[point].get(scorer)
            cells.append(_mean(found, network, scorer, point) + (signs[against.verdict] if against else ""))
        rows.append([_name(scorer), *cells])
    controls = [n for n, s in enumerate([UNPRUNED, *found.scorers, *found.scratch]) if _is_control(found, s)]
    note = (
        f"Test accuracy, mean ± standard deviation over the seeds. ▲ better, ▼ worse than {CONTROL} by the interval. "
        f"{_scratch_note(found)}"
    )
    return Table(
        f"Accuracy by {GOALS[found.goal]}",
        ["criterion", *(f"{point:g}" for point in found.points)],
        rows,
        note,
        controls,
    )


def _table_12(found: Findings, network: str, point: float) -> Table:
    """The columns of the paper's table 12, with what its numbers can bear."""
    to_best, to_random = found.to_best(network, point), found.to_random(network, point)
    rows = []
    for scorer in [*found.scorers, *found.scratch]:
        cells = found.at(network, scorer, point)
        if not cells:
            rows.append([_name(scorer), "missing", *[""] * 8])
            continue
        row = cells[0].row
        after = [cell.row.accuracy_pruned for cell in cells if cell.row.accuracy_pruned is not None]
        drop = found.drop(network, scorer, point)
        rows.append(
            [
                _name(scorer), _mean(found, network, scorer, point),
                " ".join(f"{100 * value:.2f}" for value in found.accuracies(network, scorer, point)),
                "" if drop is None else f"{100 * drop:+.2f}",
                _percent(_average(after)), _number(row.parameters), _number(row.macs),
                f"{statistics.mean(cell.row.images_per_second for cell in cells):,.0f}",
                _said(to_best.get(scorer)), _said(to_random.get(scorer)),
            ]
        )  # fmt: skip
    columns = [
        "criterion", "accuracy", "each seed", "drop, points", "right after pruning", "parameters", "multiply-adds",
        "images/s", "less the best", f"less {CONTROL}",
    ]  # fmt: skip
    controls = [n for n, s in enumerate([*found.scorers, *found.scratch]) if _is_control(found, s)]
    note = (
        "Percent. The last two columns: difference in points, paired over the test images, with intervals of 95 % for "
        "all at once."
    )
    return Table(f"At {_point(found, point)}", columns, rows, note, controls)


def _classes(found: Findings, network: str) -> list[Block]:
    """How each class's accuracy changes at the middle point."""
    if not found.points:
        return [Text("No network has been pruned.")]
    point = found.points[len(found.points) // 2]
    known = {s: both for s in found.scorers if (both := found.class_accuracies(network, s, point)) is not None}
    if not known:
        return [Text(f"No network has been pruned at {_point(found, point)}.")]
    changes = {scorer: 100 * (after - before) for scorer, (before, after) in known.items()}
    before = np.mean([before for before, _ in known.values()], axis=0)
    mean = np.mean(list(changes.values()), axis=0)
    order = [number for number in np.argsort(mean, kind="stable").tolist() if np.isfinite(mean[number])]
    shown = order if len(order) <= SHOWN_CLASSES else [*order[: SHOWN_CLASSES // 2], *order[-SHOWN_CLASSES // 2 :]]
    rows = [
        [found.classes[number], f"{100 * before[number]:.0f}", f"{mean[number]:+.1f}",
         *(f"{change[number]:+.1f}" for change in changes.values())]
        for number in shown
    ]  # fmt: skip
    left_out = "" if shown == order else f" The {SHOWN_CLASSES // 2} that lose most and least of {len(order)}."
    table = Table(
        f"Change of each class's accuracy at {_point(found, point)}",
        ["class", "before, %", "mean change, points", *changes],
        rows,
        f"Points, mean over the seeds.{left_out} A few test images a class make these numbers coarse.",
    )
    spread = {scorer: float(np.nanstd(change)) for scorer, change in changes.items()}
    worst = {scorer: float(np.nanmin(change)) for scorer, change in changes.items()}
    bars = Bars(
        f"How unevenly the classes pay at {_point(found, point)}", "points", list(changes),
        {"standard deviation over the classes": list(spread.values()), "largest loss": [-w for w in worst.values()]},
    )  # fmt: skip
    return [bars, table]


def _layers(found: Findings, network: str) -> list[Block]:
    """H, ε and H/ε by depth, and the removed share by layer."""
    blocks: list[Block] = []
    quantities = {"feature_entropy_nats": "H, nats", "selective_rate": "ε", "entropy_per_rate_nats": "H/ε, nats"}
    ranked = found.ranked(network)
    entropies = {
        label: list(by_seed.values())
        for label, by_seed in ranked.items()
        if all("selective_rate" in scores.raw for scores in by_seed.values())
    }
    for quantity, text in quantities.items():
        lines = []
        for label, each in entropies.items():
            layers = [layer for layer in each[0].keep if layer in each[0].raw.get(quantity, {})]
            points = []
            for depth, layer in enumerate(layers, 1):
                values = [scores.layer_mean(quantity, layer) for scores in each]
                points.append(Point(depth, statistics.mean(values), min(values), max(values), layer))
            lines.append(Line(label, points))
        if lines:
            note = "Means over the units, classes and seeds; the band reaches from the lowest to the highest seed."
            blocks.append(Lines(f"{text} by depth", DEPTH, text, lines, note))
    if not entropies:
        blocks.append(Text(f"{FEATURE_ENTROPY} is not among the criteria: there is no profile of H and ε."))
    for point in found.points[len(found.points) // 2 :][:1]:
        lines = []
        for scorer in found.scorers:
            cells = found.at(network, scorer, point)
            if not cells or scorer not in ranked:
                continue
            units = {layer: len(keep) for layer, keep in next(iter(ranked[scorer].values())).keep.items()}
            points = [
                Point(depth, statistics.mean(len(cell.removed.get(layer, ())) / count for cell in cells), text=layer)
                for depth, (layer, count) in enumerate(units.items(), 1)
            ]
            lines.append(Line(scorer, points))
        title = f"Removed share of each layer at {_point(found, point)}"
        blocks.append(Lines(title, DEPTH, "share of the units", lines, percent_y=True))
    left = sorted({f"{layers}: {why}" for cell in found.cells for layers, why in cell.left.items()})
    if left:
        blocks.append(Text("Fewer units went than were asked for: " + "; ".join(left)))
    return blocks


def _histograms(found: Findings, network: str) -> list[Block]:
    groups = {label: _standardised(next(iter(each.values())).keep) for label, each in found.ranked(network).items()}
    note = "Of the first seed; each layer's scores less their mean, over their standard deviation; higher = keep."
    return [Histogram("Distribution of the scores", "standardised score", groups, note)]


def _standardised(keep: Mapping[str, Array]) -> list[float]:
    values: list[float] = []
    for scores in keep.values():
        spread = scores.std()
        values += ((scores - scores.mean()) / (spread or 1)).tolist()
    return values


def _agreement(found: Findings, network: str) -> list[Block]:
    """Of each pair of criteria, and of one with all others by layer; every pair by layer is in agreement.csv."""
    names = list(found.ranked(network))
    if len(names) < 2 or not found.points:
        return [Text("There is nothing to agree with.")]
    middle = found.points[len(found.points) // 2]
    by_layer: dict[str, Callable[[str, str], Mapping[str, float]]] = {
        "Spearman's ρ of the scores": lambda one, other: found.agreement(network, one, other, spearman),
        "Kendall's τ of the scores": lambda one, other: found.agreement(network, one, other, kendall),
        f"Jaccard index of what is removed at {_point(found, middle)}":
            lambda one, other: found.overlap(network, middle, one, other),
    }  # fmt: skip
    reference = FEATURE_ENTROPY if FEATURE_ENTROPY in names else names[0]
    blocks: list[Block] = []
    for title, of in by_layer.items():
        least = 0 if title.startswith("Jaccard") else -1
        note = "Mean over the layers and seeds."
        if least == 0:
            note += " Units that both remove, over units that at least one of them removes."
        blocks.append(Heatmap(title, names, found.matrix(names, of), least, 1, note))
        lines = []
        for other in names:
            if other != reference:
                values = enumerate(of(reference, other).items(), 1)
                lines.append(Line(other, [Point(depth, value, text=layer) for depth, (layer, value) in values]))
        blocks.append(Lines(f"{title}: {reference} and others, by layer", DEPTH, title.partition(" of")[0], lines))
    return blocks


def agreements(found: Findings) -> Iterator[dict[str, Any]]:
    """A line a pair of criteria and a layer."""
    for network in found.networks:
        names = list(found.ranked(network))
        for number, one in enumerate(names):
            for other in names[number + 1 :]:
                rho, tau = (found.agreement(network, one, other, of) for of in (spearman, kendall))
                overlaps = {point: found.overlap(network, point, one, other) for point in found.points}
                for layer in rho:
                    row: dict[str, Any] = {"network": network, "layer": layer, "one": one, "other": other}
                    row |= {"spearman": rho[layer], "kendall": tau[layer]}
                    yield row | {f"jaccard_{found.goal}_{p:g}": overlaps[p].get(layer) for p in found.points}


def class_accuracies(found: Findings) -> Iterator[dict[str, Any]]:
    """A line a network, scorer, point and class: accuracy before and after, means over the scorer's seeds."""
    for network in found.networks:
        for point in found.points:
            for scorer in [*found.scorers, *found.scratch]:
                if (both := found.class_accuracies(network, scorer, point)) is None:
                    continue
                for name, before, after in zip(found.classes, *both, strict=True):
                    yield {
                        "network": network, "scorer": scorer, found.goal: point, "class": name,
                        "before": float(before), "after": float(after),
                    }  # fmt: skip


def _cost(found: Findings, network: str) -> Table:
    rows = []
    for label, by_seed in found.ranked(network).items():
        each = list(by_seed.values())
        peaks = [scores.peak_bytes for scores in each if scores.peak_bytes is not None]
        rows.append(
            [
                label, str(each[0].images), f"{statistics.mean(scores.seconds for scores in each):.2f}",
                f"{statistics.mean(scores.own_seconds for scores in each):.2f}",
                f"{max(peaks) / 2**20:,.0f}" if peaks else "not known",
            ]
        )  # fmt: skip
    note = "Seconds: with the images' way through the network, which all criteria share, and of the criterion alone."
    columns = ["criterion", "images", "seconds", "its own seconds", "its own memory, MiB"]
    return Table("What it costs to score", columns, rows, note)


def _checklist(found: Findings) -> Checklist:
    """Blalock et al. 2020, Liu et al. 2019, Wang et al. 2023: filled in from what is there."""
    recipe, cells = found.recipe, found.cells
    pruned = [cell for cell in cells if cell.goal is not None]
    counts = {p: [len(found.at(n, s, p)) for n in found.networks for s in found.scorers] for p in found.points}
    seeds = min((count for of_point in counts.values() for count in of_point), default=0)
    points = [point for point, of_point in counts.items() if all(of_point)]
    complete = bool(pruned) and all(found.covers(scorer) for scorer in found.scorers)
    commits = sorted({str(cell.environment.get("commit")) for cell in cells})
    clean = all(commit != "None" and not commit.endswith("+changes") for commit in commits)
    timed = {(str(c.environment.get("processor")), c.environment.get("gpu"), c.row.timed_with) for c in cells}
    pretrained = recipe.train is None
    chosen = recipe.train is not None or recipe.finetune is not None
    same = found.covers(found.control(CONTROL) or "") and found.same_cost()
    budget = "of fine-tuning alone: the networks were trained elsewhere" if pretrained else ""
    entries: list[tuple[str, bool | None, str]] = [
        ("Architecture, data and metric", True,
         f"{', '.join(found.networks)}; {recipe.data.source}, {recipe.data.size}×{recipe.data.size}; top-1 accuracy"),
        ("Raw accuracy before and after", found.covers(UNPRUNED) and complete, "in the tables, every seed"),
        ("Top-5 where there are many classes", False if len(found.classes) >= MANY_CLASSES else None,
         f"{len(found.classes)} classes"),
        ("Parameters, multiply-adds and measured time, on one machine", len(timed) == 1,
         "; ".join(_few([f"{gpu or processor}, {how}" for processor, gpu, how in sorted(timed, key=str)]))),
        (f"At least {FEW_POINTS} operating points, with every criterion", len(points) >= FEW_POINTS,
         ", ".join(f"{point:g}" for point in points)),
        ("Into the region of collapse", _collapses(found), "a criterion loses half of its accuracy at the last point"),
        (f"At least {FEW_SEEDS} seeds of every cell", seeds >= FEW_SEEDS, f"the cell with the fewest has {seeds}"),
        ("The same cost for every criterion", complete and found.same_cost(), "parameters and multiply-adds"),
        ("The same data, budget and settings for every criterion", len(commits) == 1,
         "one recipe for all" + ("" if len(commits) == 1 else f", but the source of {len(commits)} commits")),
        ("Random units of the same widths, in every cell", same, ""),
        ("Filter L1, in every cell", found.covers(found.control(FILTER_NORM) or ""), ""),
        ("The pruned architecture from scratch, same budget, in every cell", _from_scratch(found, 1), budget),
        ("The same with twice the budget", _from_scratch(found, 2), budget),
        ("The epoch chosen on validation data", chosen if chosen else None,
         f"{recipe.data.validation:.0%} of the training images are held out"),
        ("Hardware and versions", bool(found.environment), "below"),
        ("The code that made it", clean, ", ".join(_few(commits))),
        ("Everything that was asked for", not found.missing, "; ".join(_few(found.missing))),
        *((f"Failed: {task}", False, why) for task, why in found.failed.items()),
    ]  # fmt: skip
    return Checklist("Checklist, filled in from the data", entries)


def _from_scratch(found: Findings, budget: int) -> bool:
    label = f"{SCRATCH}{budget}"
    return label in found.scratch and found.covers(label)


def _collapses(found: Findings) -> bool:
    if not found.points:
        return False
    for network in found.networks:
        before = _average(found.accuracies(network, UNPRUNED))
        after = [_average(found.accuracies(network, scorer, found.points[-1])) for scorer in found.scorers]
        if before is None or not any(value is not None and value < before / 2 for value in after):
            return False
    return True


def _settings(found: Findings) -> Table:
    rows = [[key, value] for key, value in _leaves(found.recipe.model_dump(mode="json"))]
    return Table("The recipe, every key", ["key", "value"], rows)


def _environment(found: Findings) -> Table:
    versions = {str(cell.environment.get("commit")) for cell in found.cells}
    machines = {
        f"{cell.environment.get('processor')}, {cell.environment.get('gpu') or 'no GPU'}" for cell in found.cells
    }
    rows = [[key, value] for key, value in _leaves(found.environment)]
    note = f"Commits of the cells: {', '.join(sorted(versions))}. Measured on: {'; '.join(sorted(machines))}."
    return Table("Where it was measured", ["", ""], rows, note)


def _leaves(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(content, list) and content and isinstance(content[0], Mapping):
        for number, value in enumerate(content):
            yield from _leaves(value, f"{path}[{number}]")
    else:
        yield path, str(content)


def numbers(found: Findings) -> dict[str, Any]:
    """The means and differences, for programs."""
    entries = []
    for network in found.networks:
        for point in found.points:
            to_best, to_random = found.to_best(network, point), found.to_random(network, point)
            for scorer in [*found.scorers, *found.scratch]:
                values = found.accuracies(network, scorer, point)
                known = {"difference_to_best": to_best.get(scorer), "difference_to_random": to_random.get(scorer)}
                entries.append(
                    {
                        "network": network, "scorer": scorer, found.goal: point, "accuracies": values,
                        "mean": _average(values),
                    }
                    | {name: each and dataclasses.asdict(each.estimate) for name, each in known.items()}
                )  # fmt: skip
    unpruned = {network: found.accuracies(network, UNPRUNED) for network in found.networks}
    return {"environment": dict(found.environment), "unpruned": unpruned, "cells": entries, "missing": found.missing}


def markdown(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as text, of its charts the numbers."""
    lines = [f"# {title}", "", subtitle, ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            if isinstance(block, Text):
                lines += [_cell(block.text), ""]
            elif isinstance(block, Checklist):
                words = {True: "yes", False: "**missing**", None: "does not apply"}
                lines += [
                    f"- {words[there]}: {what}{f' ({_cell(more)})' if more else ''}"
                    for what, there, more in block.entries
                ]
                lines.append("")
            else:
                table = block if isinstance(block, Table) else numbers_of(block)
                rows = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
                lines += [f"### {_cell(table.title)}", "", *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]
                lines += [_cell(table.note), ""] if table.note else []
    return "\n".join(lines)


def _cell(text: str) -> str:
    """As Markdown that shows it as it is."""
    return "".join(f"\\{c}" if c in "\\|<>`*_[]#" else c for c in text).replace("\n", " ")


def _flat(cell: Cell) -> dict[str, Any]:
    """A line of cells.csv."""
    plain = {"network": cell.network, "goal": cell.goal, "point": cell.point}
    return plain | dataclasses.asdict(cell.row) | {"seconds": cell.seconds, "commit": cell.environment.get("commit")}


def _name(scorer: str) -> str:
    budget = scorer.removeprefix(SCRATCH)
    return f"from scratch, {budget}× budget" if scorer.startswith(SCRATCH) else scorer


def _scratch_note(found: Findings) -> str:
    if not found.scratch:
        return ""
    said = (
        "From scratch: the architecture that is left, of a new network, trained for as many epochs as the pruned "
        "networks in all (training and fine-tuning), or a multiple of it."
    )
    settings = found.recipe.train or found.recipe.finetune
    if settings is not None and settings.schedule == "step":
        said += (
            " Its learning rate falls as a cosine, since the recipe's schedule, a step an epoch, ends before such a "
            "budget does."
        )
    return said


def _is_control(found: Findings, scorer: str) -> bool:
    return scorer in (found.control(CONTROL), found.control(FILTER_NORM)) or scorer.startswith(SCRATCH)


def _point(found: Findings, point: float) -> str:
    return GOALS[found.goal] if found.goal == BY_LAYER else f"{GOALS[found.goal]} {point:g}"


def _mean(found: Findings, network: str, scorer: str, point: float | None) -> str:
    values = [100 * value for value in found.accuracies(network, scorer, point)]
    if not values:
        return "missing"
    spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread} %{_of_seeds(found, len(values))}"


def _of_seeds(found: Findings, there: int) -> str:
    """How many seeds something is of, if that is not all."""
    return f" ({there} of {len(found.seeds)} seeds)" if there < len(found.seeds) else ""


def _said(difference: Difference | None) -> str:
    if difference is None:
        return ""
    each = difference.estimate
    return f"{100 * each.mean:+.2f} [{100 * each.low:+.2f}, {100 * each.high:+.2f}]"


def _average(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _number(value: float) -> str:
    for size, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.2f}{name}"
    return f"{value:.0f}"


def _many(count: int, what: str, plural: str = "") -> str:
    return f"{count:,} {what if count == 1 else plural or what + 's'}"


def _few(texts: Sequence[str], most: int = 6) -> list[str]:
    return [*texts[:most], *([f"and {len(texts) - most} more"] if len(texts) > most else [])]
