"""The sections of a report, in the order in which they appear."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from prune_fe.charts import criterion_bars, histogram, layer_profile
from prune_fe.measure.latency import describe_processor, medians_agree
from prune_fe.measure.proportion import describe_change, describe_remainder, describe_speed_up, percent
from prune_fe.measure.statistics import spearman
from prune_fe.report.accuracies import accuracy_table, point_table
from prune_fe.report.checklist import comparison_checklist
from prune_fe.report.class_names import readable_class_names
from prune_fe.report.findings import FEATURE_ENTROPY, Findings
from prune_fe.report.headline import Headline, headline
from prune_fe.report.numbers import MISSING, format_count, format_number
from prune_fe.report.page import Block, Charts, Figures, Fold, PageTable, Row, Section, Text
from prune_fe.report.trade_offs import trade_offs
from prune_fe.report.verdicts import INTERVALS, verdict_table
from prune_fe.report.wording import controls_of, describe_point
from prune_fe.scoring.scores import Scores, histogram_bins, standardised

SHOWN_CLASSES = 20
QUANTITIES = {"feature_entropy_nats": "H, nats", "selective_rate": "ε", "entropy_per_rate_nats": "H/ε, nats"}


def report_sections(findings: Findings) -> Iterator[Section]:
    """Yield the whole report."""
    yield Section("What came out", list(_outcome(findings)))
    for network in findings.networks:
        suffix = f": {network}" if len(findings.networks) > 1 else ""
        at_points = [point_table(findings, network, point) for point in findings.points]
        yield Section(f"Trade-off{suffix}", list(trade_offs(findings, network)))
        by_point = [accuracy_table(findings, network)] if len(findings.points) != 1 else []
        yield Section(f"Accuracy{suffix}", [*by_point, *at_points])
        yield Section(f"Which classes pay{suffix}", _classes(findings, network))
        yield Section(f"Layers{suffix}", _layers(findings, network))
        yield Section(f"Scores{suffix}", [_score_histograms(findings, network)])
        if len(findings.scorers) != 1:
            yield Section(f"Agreement{suffix}", _agreement(findings, network))
        yield Section(f"Cost of each criterion{suffix}", [_scoring_cost(findings, network)])
    is_comparison = len(findings.scorers) > 1
    title = "What a comparison must report" if is_comparison else "What must be reported"
    yield Section(title, [comparison_checklist(findings)])
    settings = [_settings(findings), _environment(findings)]
    yield Section("Settings and environment", [Fold("Every key of the recipe, and the machine", settings)])


def _outcome(findings: Findings) -> Iterator[Block]:
    """Yield the numbers that are read first, and what the intervals say."""
    for network in findings.networks:
        if (best := headline(findings, network)) is not None:
            yield _figures(findings, best)
    table = verdict_table(findings)
    if table.is_empty:
        yield Text("No network has been pruned yet.")
        return
    if len(findings.scorers) > 1:  # one criterion is compared with nothing
        yield table
        yield Fold("How the intervals are made", [Text(INTERVALS)])


def _figures(findings: Findings, best: Headline) -> Figures:
    """Return cost, measured time and accuracy of the best criterion's network."""
    of = f", the best of {len(findings.scorers)} criteria" if len(findings.scorers) > 1 else ""
    title = f"{best.network}, {describe_point(findings, best.point)}: {best.scorer}{of}"
    macs, parameters = (f"{format_count(a)} to {format_count(b)}" for a, b in (best.macs, best.parameters))
    seeds = f", {len(findings.seeds)} seeds" if len(findings.seeds) > 1 else ""
    before, after = (percent(value, best.change.n) for value in best.accuracy)
    figures = [
        (
            describe_remainder(best.macs[1] / best.macs[0]),
            f"of the multiply-adds left ({macs}; parameters {parameters})",
        ),
        _time_figure(findings, best),
        (
            f"{before} → {after} %",
            f"test accuracy: {describe_change(best.change)} points (95 % over {best.change.n:,} test images{seeds})",
        ),
    ]
    return Figures(title, figures)


def _time_figure(findings: Findings, best: Headline) -> tuple[str, str]:
    """Return the measured time: of both networks in turn where the folder has that, else of each on its own."""
    if (timed := findings.latency) is not None:
        setting = timed["setting"]
        times = " to ".join(f"{timed[name]['median_ms']:.3g}" for name in ("original", "pruned"))
        measured = f"{times} ms, medians" if medians_agree(timed) else "median of pairs, on a machine with other work"
        where = f"{measured}; batch {setting['batch_size']}, {describe_processor(setting)}"
        if not timed["steady"]:
            return MISSING, f"times not comparable: the machine did other work too ({where})"
        return describe_speed_up(timed["ratio"]), f"as fast, both networks measured in turn ({where})"
    timed_with = ", ".join(dict.fromkeys(findings.frame["timed_with"]))
    images = " to ".join(f"{value:,.0f}" for value in best.images_per_second)
    if best.is_disturbed:
        return MISSING, f"times not comparable: the machine did other work too ({images} images/s; {timed_with})"
    return describe_speed_up(best.speed_up), f"as fast, measured ({images} images/s; {timed_with})"


def _classes(findings: Findings, network: str) -> list[Block]:
    """Return how the accuracy of each class changes at the middle operating point."""
    if not findings.points:
        return [Text("No network has been pruned.")]
    point = findings.points[len(findings.points) // 2]
    tables = {s: findings.class_accuracies(network, s, point) for s in findings.scorers}
    known = {scorer: table for scorer, table in tables.items() if table is not None}
    if not known:
        return [Text(f"No network has been pruned at {describe_point(findings, point)}.")]
    # Rows are numbered: two classes may have the same name.
    changes = pd.DataFrame({scorer: 100 * (table["after"] - table["before"]) for scorer, table in known.items()})
    before = 100 * pd.DataFrame({scorer: table["before"] for scorer, table in known.items()}).mean(axis=1)
    return [_class_bars(findings, changes, point), _class_table(findings, changes, before, point)]


def _class_bars(findings: Findings, changes: pd.DataFrame, point: float) -> Block:
    unevenness = pd.DataFrame(
        {"standard deviation over the classes": changes.std(ddof=0), "largest loss": -changes.min()}
    )
    title = f"How unevenly the classes pay at {describe_point(findings, point)}"
    rows = [
        [str(name), *(f"{value:.1f}" for value in values)]
        for name, values in zip(unevenness.index, unevenness.to_numpy(), strict=True)
    ]
    long = unevenness.rename_axis("criterion").reset_index().melt("criterion", var_name="quantity")
    return Charts(
        PageTable(title, ["criterion", *unevenness], rows, "Points of accuracy."),
        {"": criterion_bars(long, "points", title)},
    )


def _class_table(findings: Findings, changes: pd.DataFrame, before: pd.Series, point: float) -> PageTable:
    mean = changes.mean(axis=1)
    order = mean.dropna().sort_values(kind="stable").index.tolist()
    half = SHOWN_CLASSES // 2
    shown = order if len(order) <= SHOWN_CLASSES else [*order[:half], *order[-half:]]
    names = readable_class_names(findings.classes)
    rows = [
        [
            names[number],
            f"{before[number]:.0f}",
            f"{mean[number]:+.1f}",
            *(f"{change:+.1f}" for change in changes.loc[number]),
        ]
        for number in shown
    ]
    omitted = "" if shown == order else f" Shown are the {half} that lose most and the {half} that lose least."
    return PageTable(
        f"Change of each class's accuracy at {describe_point(findings, point)}",
        ["class", "before, %", "mean change, points", *changes],
        rows,
        f"Points, mean over the seeds.{omitted} With few test images a class, these numbers are coarse.",
    )


def _layers(findings: Findings, network: str) -> list[Block]:
    """Return H, ε and H/ε by depth, and the removed share of each layer."""
    blocks: list[Block] = []
    entropies = {
        label: list(by_seed.values())
        for label, by_seed in findings.scores_of(network).items()
        if all("selective_rate" in scores.raw for scores in by_seed.values())
    }
    profiles = []
    for quantity, name in QUANTITIES.items():
        rows = [row for label, scores in entropies.items() for row in _profile(label, scores, quantity)]
        if rows:
            profiles.append(_profile_chart(findings, pd.DataFrame(rows), f"{name} by depth", name))
    if profiles:
        ends = "; the intervals reach from the lowest to the highest seed" if len(findings.seeds) > 1 else ""
        blocks += [Row(profiles), Text(f"Means over the units, classes and seeds{ends}.")]
    if not entropies:
        has_scores = bool(findings.scores_of(network))
        reason = f"{FEATURE_ENTROPY} is not among the criteria" if has_scores else "the folder holds no scores"
        blocks.append(Text(f"There is no profile of H and ε: {reason}."))
    for point in findings.points[len(findings.points) // 2 :][:1]:
        removed = [row for scorer in findings.scorers for row in _removed_shares(findings, network, scorer, point)]
        title = f"Removed share of each layer at {describe_point(findings, point)}"
        shares = {row["value"] for row in removed}
        if len(shares) == 1:
            blocks.append(Text(f"Every criterion removes {shares.pop():.0%} of the units of each layer."))
        else:
            blocks.append(_profile_chart(findings, pd.DataFrame(removed), title, "share of the units", percent=True))
    reasons = sorted({f"{layers}: {why}" for result in findings.results for layers, why in result.left.items()})
    if reasons:
        blocks.append(Text("Fewer units were removed than requested: " + "; ".join(reasons)))
    return blocks


def _profile(label: str, scores: list[Scores], quantity: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each layer with the mean of a quantity over its units and the seeds."""
    layers = [layer for layer in scores[0].keep if layer in scores[0].raw.get(quantity, {})]
    for depth, layer in enumerate(layers, 1):
        values = [each.layer_mean(quantity, layer) for each in scores]
        yield {
            "criterion": label,
            "depth": depth,
            "layer": layer,
            "value": statistics.mean(values),
            "low": min(values),
            "high": max(values),
        }


def _removed_shares(findings: Findings, network: str, scorer: str, point: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each layer with the share of its units that a scorer removes, the mean over the seeds."""
    results, scores = findings.select(network, scorer, point), findings.scores_of(network).get(scorer)
    if not results or scores is None:
        return
    for depth, (layer, keep) in enumerate(next(iter(scores.values())).keep.items(), 1):
        share = statistics.mean(len(result.removed.get(layer, ())) / len(keep) for result in results)
        yield {
            "criterion": scorer,
            "depth": depth,
            "layer": layer,
            "value": share,
            "low": share,
            "high": share,
        }


def _profile_chart(findings: Findings, points: pd.DataFrame, title: str, y_title: str, percent: bool = False) -> Charts:
    """Return a chart by layer with its numbers."""
    if points.empty:
        return Charts(PageTable(title, [], []))
    ends = ["value", "low", "high"] if (points["low"] < points["high"]).any() else ["value"]
    rows = [
        [row["criterion"], str(row["depth"]), row["layer"], *(format_number(row[end], percent) for end in ends)]
        for row in points.to_dict("records")
    ]
    columns = ["criterion", "depth", "layer", *(y_title if end == "value" else f"{end}est seed" for end in ends)]
    form = ".2%" if percent else ".4~g"
    chart = layer_profile(points, y_title, title, controls_of(findings), findings.scorers, form)
    return Charts(PageTable(title, columns, rows), {"": chart})


def _score_histograms(findings: Findings, network: str) -> Block:
    """Return a histogram of each criterion's scores, with the same number of bins for all."""
    groups = {label: standardised(next(iter(each.values()))) for label, each in findings.scores_of(network).items()}
    finite = {label: values[np.isfinite(values)] for label, values in groups.items()}
    most = max(map(len, finite.values()), default=0)
    bins = histogram_bins(most)
    title, x_title = "Distribution of the scores", "standardised score"
    charts, rows = {}, []
    for label, values in finite.items():
        if len(values) == 0:
            continue
        counts, edges = np.histogram(values, bins)
        omitted = len(groups[label]) - len(values)
        caption = f"{label}: {len(values)} units" + (f", {omitted} not finite" if omitted else "")
        frame = pd.DataFrame({"start": edges[:-1], "end": edges[1:], "count": counts})
        charts[caption] = histogram(frame, x_title, f"{title}: {label}")
        ends = [format_number(edge) for edge in (edges[0], edges[-1])]
        rows.append([label, str(len(values)), str(omitted), *ends, *map(str, counts)])
    note = (
        "Scores of the first seed, standardised within each layer: minus the layer's mean, divided by its standard "
        "deviation. Units with higher scores are kept."
    )
    columns = ["criterion", "units", "not finite", "from", "to", *(f"bin {number}" for number in range(1, bins + 1))]
    return Charts(PageTable(title, columns, rows, note), charts)


def _agreement(findings: Findings, network: str) -> list[Block]:
    """Return the agreement of each pair of criteria, and of one with all others by layer.

    Every pair by layer is in agreement.csv, with other coefficients.
    """
    names = list(findings.scores_of(network))
    if len(names) < 2:
        return [Text("There are no two criteria whose agreement could be measured.")]
    reference = FEATURE_ENTROPY if FEATURE_ENTROPY in names else names[0]

    def by_layer(one: str, other: str) -> dict[str, float]:
        return findings.agreement(network, one, other, spearman)

    title = "Spearman's ρ of the scores"
    rows = [
        {"criterion": other, "depth": depth, "layer": layer, "value": value, "low": value, "high": value}
        for other in names
        if other != reference
        for depth, (layer, value) in enumerate(by_layer(reference, other).items(), 1)
    ]
    note = "Mean over the layers and seeds. Other coefficients are in agreement.csv."
    by_layer_title = f"{title}: {reference} and others, by layer"
    return [
        _heatmap(title, findings.matrix(names, by_layer), note),
        _profile_chart(findings, pd.DataFrame(rows), by_layer_title, "Spearman's ρ"),
    ]


def _heatmap(title: str, values: pd.DataFrame, note: str) -> PageTable:
    """Return a table whose cells are shaded by their values."""
    rows = [
        [str(name), *("–" if np.isnan(value) else f"{value:.2f}" for value in row)] for name, row in values.iterrows()
    ]
    shades = [[None if np.isnan(value) else float(value) for value in row] for row in values.to_numpy()]
    return PageTable(title, ["", *values.columns], rows, note, shades=shades)


def _scoring_cost(findings: Findings, network: str) -> PageTable:
    rows = []
    for label, by_seed in findings.scores_of(network).items():
        scores = list(by_seed.values())
        peaks = [each.peak_bytes for each in scores if each.peak_bytes is not None]
        rows.append(
            [
                label,
                str(scores[0].images),
                f"{statistics.mean(each.seconds for each in scores):.2f}",
                f"{statistics.mean(each.own_seconds for each in scores):.2f}",
                f"{max(peaks) / 2**20:,.0f}" if peaks else "not known",
            ]
        )
    note = (
        "Seconds: with the passes of the images through the network, which all criteria share. Its own seconds and "
        "memory: of the criterion alone."
    )
    columns = ["criterion", "images", "seconds", "its own seconds", "its own memory, MiB"]
    return PageTable("What scoring costs", columns, rows, note)


def _settings(findings: Findings) -> PageTable:
    rows = [[key, value] for key, value in _flatten(findings.recipe.model_dump(mode="json"))]
    return PageTable("The recipe, every key", ["key", "value"], rows)


def _environment(findings: Findings) -> PageTable:
    commits = sorted({str(commit) for commit in findings.frame["commit"]})
    machines = {
        f"{result.environment.get('processor')}, {result.environment.get('gpu') or 'no GPU'}"
        for result in findings.results
    }
    rows = [[key, value] for key, value in _flatten(findings.environment)]
    note = f"Commits of the results: {', '.join(commits)}. Measured on: {'; '.join(sorted(machines))}."
    return PageTable("Where it was measured", ["key", "value"], rows, note)


def _flatten(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each value in nested mappings and lists of mappings."""
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from _flatten(value, f"{path}.{key}" if path else str(key))
    elif isinstance(content, list) and content and isinstance(content[0], Mapping):
        for number, value in enumerate(content):
            yield from _flatten(value, f"{path}[{number}]")
    else:
        yield path, str(content)
