"""The charts: what is drawn, the same bytes each time, and nothing that only a browser knows."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest

from prune_fe.charts import (
    ablation_curves,
    accuracy_against,
    accuracy_bars,
    birth_times,
    class_scatter,
    confusion_matrix,
    criterion_bars,
    histogram,
    layer_profile,
    layer_status,
    rank_correlation,
    run_overview,
    sample_size,
    save_chart,
    sensitivity_map,
    specification,
    trade_off,
    training_course,
)
from prune_fe.charts.theme import COLOURS, SERIES, SHAPES, SeriesStyle, spread_labels

SCORERS = ["feature-entropy", "l1-filter", "hrank", "random"]


def curves() -> pd.DataFrame:
    rows = [
        {"scorer": scorer, "order": order, "removed": step, "quantity": quantity, "mean": value, "low": value - 0.01,
         "high": value + 0.01}
        for scorer in SCORERS
        for order in ("ascending", "descending")
        for quantity in ("accuracy", "loss")
        for step in range(20)
        for value in [1 / (1 + step)]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def points(**extra: object) -> pd.DataFrame:
    rows = [
        {"criterion": scorer, "x": 10.0**x, "accuracy": 0.1 * x, "low": 0.1 * x - 0.05, "high": 0.1 * x + 0.05,
         "detail": "</script>"}
        for scorer in SCORERS
        for x in (1, 3, 5)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**extra)


def layers() -> pd.DataFrame:
    rows = [
        {"criterion": name, "depth": d, "layer": f"conv{d}", "value": d / 7, "low": d / 8, "high": d / 6}
        for name in SCORERS
        for d in (1, 2, 3)
    ]
    return pd.DataFrame(rows)


def statuses() -> pd.DataFrame:
    rows = [
        {"panel": panel, "quantity": quantity, "network": network, "layer": layer, "value": depth / 3,
         "low": depth / 3 - width, "high": depth / 3 + width}
        for panel in ("class cat", "all 10 classes")
        for quantity in ("entropy", "rate")
        for network, width in (("trained", 0.0), ("random", 0.1))
        for depth, layer in enumerate(("stem", "block.conv", "a"))
    ]  # fmt: skip
    return pd.DataFrame(rows)


CONFUSION = pd.DataFrame(
    [
        {"true": one, "predicted": other, "images": 8 if one == other else 1, "share": 0.8 if one == other else 0.1}
        for one in ("cat", "dog", "<owl>")
        for other in ("cat", "dog", "<owl>")
    ]
)

CHARTS: dict[str, Callable[[], Any]] = {
    "confusion_matrix": lambda: confusion_matrix(CONFUSION, "Which class is taken for which"),
    "ablation_curves": lambda: ablation_curves(
        curves(), {(o, s): 0.5 for o in ("ascending", "descending") for s in SCORERS}, "Ablation of conv"
    ),
    "sample_size": lambda: sample_size(
        pd.DataFrame({"images": [10] * 5 + [20] * 5, "spread_nats": np.arange(10.0)}),
        pd.DataFrame({"images": [10, 10, 20, 20], "classes": [1, 10, 1, 10], "draw": ["anew"] * 4, "rho": [0.1] * 4}),
        "Samples of conv",
    ),
    "accuracy_against": lambda: accuracy_against(
        pd.DataFrame(
            [(s, x, stage, x / 20) for s in SCORERS for x in (1, 2, 10) for stage in ("right after", "fine-tuned")],
            columns=["scorer", "x", "stage", "accuracy"],
        ),
        0.875,
        "number of classes K",
        "Accuracy and K",
        log_x=True,
    ),
    "trade_off": lambda: trade_off(points(), "multiply-adds", "Trade-off", ["random"], SCORERS),
    "accuracy_bars": lambda: accuracy_bars(
        pd.DataFrame(
            [("a", 0.5, 0.4, 0.6, 0.1, ""), ("b", 0.75, 0.75, 0.75, np.nan, "")],
            columns=["criterion", "accuracy", "low", "high", "pruned", "detail"],
        ),
        "Accuracy",
    ),
    "layer_profile": lambda: layer_profile(layers(), "H, nats", "H by depth", ["random"]),
    "rank_correlation": lambda: rank_correlation(
        pd.DataFrame(
            [(score, layer, 0.5, 0.4, 0.6) for layer in ("stem", "a") for score in ("H/ε", "ε")],
            columns=["score", "layer", "value", "low", "high"],
        ),
        "Scores and the loss",
    ),
    "layer_status": lambda: layer_status(statuses(), "Layers of a network", "random"),
    "class_scatter": lambda: class_scatter(
        pd.DataFrame({"panel": ["seed 0", "seed 0", "seed 1"], "network": ["AA", "AB", "AA"], "class": ["cat"] * 3,
                      "entropy": [2.0, 3.0, 2.5], "rate": [0.9, 0.1, 0.5]}),
        "Set A",
    ),
    "training_course": lambda: training_course(
        pd.DataFrame(
            [(panel, series, epoch, value, value, value + 0.1 * (panel == "rate"))
             for panel, series in (("loss", "train"), ("accuracy", "train"), ("entropy", "cat"), ("rate", "cat"))
             for epoch, value in ((0, 0.5), (1, 0.25))],
            columns=["panel", "series", "epoch", "value", "low", "high"],
        ),
        "Training",
    ),
    "criterion_bars": lambda: criterion_bars(
        pd.DataFrame({"criterion": ["a", "a", "b"], "quantity": ["x", "y", "x"], "value": [1.0, -2.0, 0.0]}),
        "points",
        "Unevenness",
    ),
    "histogram": lambda: histogram(
        pd.DataFrame({"start": [0.0, 1.0], "end": [1.0, 2.0], "count": [3, 4]}), "score", "Scores"
    ),
    "run_overview": lambda: run_overview(
        pd.DataFrame({"quantity": ["H (nats)"] * 4, "seed": [0, 0, 1, 1], "depth": [1, 2] * 2, "value": [1.0] * 4}),
        pd.DataFrame(
            {"scorer": ["a", "a"], "stage": ["before pruning", "right after"], "seed": [0, 0], "accuracy": [0.9, 0.5]}
        ),
        "A run",
        "50% of every layer removed",
    ),
    "sensitivity_map": lambda: sensitivity_map(
        pd.DataFrame({"group": [1, 1, 2], "layers": ["a, b", "a, b", "c"], "units": [8, 8, 4], "ratio": [0.1, 0.9, 0.1],
                      "removed": [0, 7, 0], "accuracy": [0.5, 0.1, 0.5], "loss_increase": [0.0, 1.25, -0.1]}),
        0.5,
        "Groups",
    ),
    "birth_times": lambda: birth_times(
        pd.DataFrame({"program": ["a", "a", "b"], "maps": ["ReLU", "random", "ReLU"], "size": [8, 8, 16],
                      "microseconds": [1.5, 2.0, 300.0]}),
        "Births",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_drawn_with_the_same_bytes_each_time(name, tmp_path):
    for number in range(2):
        save_chart(CHARTS[name](), tmp_path / f"{number}.svg")
    first, second = ((tmp_path / f"{number}.svg").read_bytes() for number in range(2))
    assert first == second
    text = first.decode()
    assert ET.fromstring(text).tag.endswith("svg")
    assert not re.search(r"var\(|NaN|http(?!://www.w3.org)", text)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_refers_to_colours_that_both_modes_have(name):
    text = json.dumps(specification(CHARTS[name]()))
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert used
    assert used <= set(COLOURS["light"])
    assert set(COLOURS["light"]) == set(COLOURS["dark"])
    assert not re.search(r"#[0-9a-f]{6}", text)


def test_a_png_and_a_dark_svg_can_be_written_and_nothing_else(tmp_path):
    chart = CHARTS["trade_off"]()
    save_chart(chart, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    save_chart(chart, tmp_path / "a.svg", "dark")
    assert COLOURS["dark"]["c0"] in (tmp_path / "a.svg").read_text()
    with pytest.raises(ValueError, match="saved as .svg or .png"):
        save_chart(chart, tmp_path / "a.pdf")


def shapes_of(style: SeriesStyle) -> list[str]:
    channel: Any = style.shape().to_dict()
    return channel["scale"]["range"]


def test_series_differ_by_colour_and_by_marker():
    names = [str(number) for number in range(14)]
    style = SeriesStyle("f", names)
    assert len(set(style.colours)) == 14
    assert len(set(shapes_of(style))) == 14 == len(SHAPES)
    assert all(len(set(SERIES[mode])) == 14 for mode in SERIES)


def test_controls_are_grey_and_dashed_and_feature_entropy_is_thicker():
    style = SeriesStyle("f", SCORERS, ["random"])
    assert style.colours == ["var(--c0)", "var(--c1)", "var(--c2)", "var(--control)"]
    dash = style.dash()
    assert dash["condition"][0]["test"]["oneOf"] == ["random"]
    width = style.width()["condition"][0]
    assert width["test"]["oneOf"] == ["feature-entropy"]
    assert width["value"] > 1.6


def test_a_criterion_has_its_colour_where_others_are_missing():
    whole, part = SeriesStyle("f", SCORERS), SeriesStyle("f", SCORERS[1:], palette=SCORERS)
    assert part.colours == whole.colours[1:]
    assert shapes_of(part) == shapes_of(whole)[1:]


def test_curves_have_as_many_rows_as_they_need_and_some_markers():
    long = pd.concat([curves().assign(removed=curves()["removed"] + 20 * n) for n in range(16)])
    areas = {(o, s): 0.5 for o in ("ascending", "descending") for s in SCORERS}
    content = specification(ablation_curves(long, areas, "t"))
    values = [row for rows in content["datasets"].values() for row in rows]
    assert len(values) == len(long) > 5000
    marked = sum(row["marked"] for row in values)
    assert 0 < marked < len(values) / 10


def test_the_legend_of_the_curves_tells_the_area(tmp_path):
    save_chart(CHARTS["ablation_curves"](), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.count("feature-entropy  0.500") >= 2
    for words in ("best units first", "worst units first", "units removed", "test loss (nats)", "Ablation of conv"):
        assert words in text


def test_the_unpruned_accuracy_is_marked(tmp_path):
    save_chart(CHARTS["accuracy_against"](), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for words in ("unpruned", "right after", "fine-tuned", "number of classes K", "Accuracy and K"):
        assert words in text


def test_few_lines_have_bands_and_many_whiskers():
    def intervals(frame: pd.DataFrame) -> set[str]:
        layers = layer_profile(frame, "x", "t").to_dict()["layer"]
        return {layer["mark"]["type"] for layer in layers} & {"area", "rule"}

    wide = layers().assign(low=0, high=1)
    many = pd.concat([wide.assign(criterion=str(number)) for number in range(5)])
    assert (intervals(wide), intervals(many)) == ({"area"}, {"rule"})


def test_lines_are_named_at_their_ends_and_the_others_are_pale(tmp_path):
    frame = pd.concat([points(criterion=name) for name in ("a", "b", "c", "random")])
    chart = trade_off(frame, "x", "t", ["random"], named=["b"])
    save_chart(chart, tmp_path / "a.svg")
    written = re.findall(r">([a-z]+)</text>", (tmp_path / "a.svg").read_text())
    assert [name for name in written if name in ("a", "b", "c", "random")] == ["b", "random"]
    style = SeriesStyle("criterion", ["a", "b", "c", "random"], ["random"], named=["b", "random"])
    assert style.colours == ["var(--control)", "var(--c1)", "var(--control)", "var(--control)"]
    assert style.opacity()["condition"][0]["test"]["oneOf"] == ["a", "c"]


def test_names_beside_lines_do_not_overlap():
    places = spread_labels([0.99, 0.2, 1.0, 0.98], (0, 1), 140)
    gaps = np.diff(sorted(places))
    assert gaps.min() >= 0.1 - 1e-12
    assert max(places) <= 1
    assert np.argsort(places).tolist() == np.argsort([0.99, 0.2, 1.0, 0.98]).tolist()


def test_the_layers_of_a_profile_are_named():
    chart = layer_profile(layers(), "x", "t").to_dict()["layer"][0]
    assert chart["encoding"]["x"]["sort"] == list(dict.fromkeys(layers()["layer"]))


def test_bars_are_ordered_by_accuracy(tmp_path):
    chart = CHARTS["accuracy_bars"]().to_dict()
    assert chart["layer"][0]["encoding"]["y"]["sort"] == ["b", "a"]
    save_chart(CHARTS["accuracy_bars"](), tmp_path / "a.svg")
    assert "75.0%" in (tmp_path / "a.svg").read_text()


def test_the_measured_time_has_no_prefix():
    def axis(frame: pd.DataFrame) -> str:
        return trade_off(frame, "x", "t").to_dict()["layer"][1]["encoding"]["x"]["axis"]["format"]

    assert (axis(points()), axis(points(x=0.02))) == ("~s", "~g")


def test_values_that_are_not_finite_are_left_out(tmp_path):
    frame = layers()
    frame.loc[0, "value"] = np.inf
    frame.loc[1, "low"] = np.nan
    chart = layer_profile(frame, "y", "t")
    assert isinstance(chart, alt.LayerChart)
    save_chart(chart, tmp_path / "a.svg")
    assert "NaN" not in (tmp_path / "a.svg").read_text()


def test_the_layers_stand_in_their_order_and_both_quantities_have_a_row_of_panels(tmp_path):
    content = specification(CHARTS["layer_status"]())
    assert [len(row["hconcat"]) for row in content["vconcat"]] == [2, 2]
    save_chart(CHARTS["layer_status"](), tmp_path / "a.svg")
    labels = re.findall(r">(stem|block\.conv|a|class cat|all 10 classes|feature entropy H \(nats\)|selective rate ε)<",
                        (tmp_path / "a.svg").read_text())  # fmt: skip
    assert [label for label in labels if label in ("stem", "block.conv", "a")] == ["stem", "block.conv", "a"] * 4
    assert {"class cat", "all 10 classes", "feature entropy H (nats)", "selective rate ε"} <= set(labels)


def test_a_map_of_the_groups_has_a_row_for_each_and_the_numbers(tmp_path):
    save_chart(CHARTS["sensitivity_map"](), tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    for words in ("1  a + 1  (8)", "2  c  (4)", "accuracy (50.0% of the whole network)", "1.25", "90%", "10%"):
        assert words in text, words
