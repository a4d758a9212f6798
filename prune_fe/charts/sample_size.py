"""The spread of feature entropy, and the agreement of two draws, by the number of images and classes."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from prune_fe.charts.theme import HEIGHT, WIDTH, SeriesStyle, heading

AGREED = (0.9, 0.95, 0.99)
QUANTILES = {"low": 0.025, "lower": 0.25, "median": 0.5, "upper": 0.75, "high": 0.975}


def sample_size(
    spread: pd.DataFrame, agreement: pd.DataFrame, title: str, agreed: tuple[float, ...] = AGREED
) -> alt.HConcatChart:
    """Return how far feature entropy scatters over draws of images, and how alike two draws rank the units.

    Args:
        spread: One row for each class and unit at each sample size. images: images of a class that are drawn;
            spread_nats: standard deviation of the unit's entropy over the draws.
        agreement: One row for each sample size, number of classes and kind of draw, in the columns images, classes
            and draw. rho: Spearman's ρ of the units' ranking by two draws.
        title: Title of the whole.
        agreed: Agreements that a line marks.

    Returns:
        Two panels.
    """
    boxes = spread.groupby("images")["spread_nats"].quantile(list(QUANTILES.values())).unstack()
    boxes = boxes.set_axis(list(QUANTILES), axis=1).reset_index()
    box = alt.Chart(boxes).encode(x=alt.X("images:O", title="images of a class", axis=alt.Axis(labelAngle=0)))
    y: dict[str, Any] = {"title": "spread of a unit's H (nats)", "scale": alt.Scale(zero=True)}
    left = alt.layer(
        box.mark_rule().encode(y=alt.Y("low:Q", **y), y2="high:Q"),
        box.mark_bar(size=22, color="var(--c0)").encode(y=alt.Y("lower:Q", **y), y2="upper:Q"),
        box.mark_tick(size=22, color="var(--surface)", thickness=2).encode(y=alt.Y("median:Q", **y)),
    ).properties(width=WIDTH, height=HEIGHT, title="boxes: half of the units, whiskers: 95 %")
    right = alt.layer(_agreed(agreed), *_agreement(agreement)).properties(
        width=WIDTH, height=HEIGHT, title="agreement of two draws"
    )
    independent: dict[str, Any] = {"color": "independent", "shape": "independent", "strokeDash": "independent"}
    return alt.hconcat(left, right).resolve_scale(**independent).properties(title=heading(title))


def _agreed(values: tuple[float, ...]) -> alt.Chart:
    data = pd.DataFrame({"rho": values})
    return alt.Chart(data).mark_rule(color="var(--quiet)", strokeDash=[1, 3]).encode(y=alt.Y("rho:Q"))


def _agreement(agreement: pd.DataFrame) -> list[alt.Chart]:
    """Return the lines and points of the right panel: a colour a sample size, dashes for the kind of draw."""
    sizes, draws = sorted(agreement["images"].unique()), list(dict.fromkeys(agreement["draw"]))
    counts = sorted(agreement["classes"].unique().tolist())
    style = SeriesStyle("size", [f"{size} images" for size in sizes], columns=4)
    means = agreement.groupby(["images", "classes", "draw"], sort=False)["rho"].mean().reset_index()
    means["size"] = means["images"].astype(str) + " images"
    dashes = alt.Scale(domain=draws, range=[[1, 0], [2, 3], [6, 4], [8, 2, 2, 2]][: len(draws)])
    legend = alt.Legend(title=None, columns=2, labelLimit=300, symbolSize=300)
    base = alt.Chart(means).encode(
        x=alt.X(
            "classes:Q",
            title="number of classes K",
            scale=alt.Scale(type="log", nice=False, padding=12),
            axis=alt.Axis(values=counts, format="d"),
        ),
        y=alt.Y("rho:Q", title="Spearman's ρ of two draws", scale=alt.Scale(zero=False)),
        color=style.color(),
    )
    return [
        base.mark_line().encode(strokeDash=alt.StrokeDash("draw:N", scale=dashes, legend=legend)),
        base.mark_point(filled=True, size=50, opacity=1).encode(shape=style.shape(), detail="draw:N"),
    ]
