"""The tables of cumulative ablation: against numbers computed by hand, on made-up ablations."""

from typing import Any

import numpy as np
import pytest

from prune_fe.ablation.curves import Ablation, Result, UnitAblation
from prune_fe.experiment.recipe import Recipe
from prune_fe.measure.statistics import kendall, spearman
from prune_fe.studies.ablation_tables import (
    ORDERS,
    AblatedNetwork,
    ablation_tables,
    agreement,
    class_rows,
    curve_areas,
    curve_frame,
    curve_rows,
    curve_title,
    describe,
    labels_by_scorer,
    mean_by_class,
)

UNITS, CLASSES, IMAGES = 8, ("3", "7"), 10
LABELS = ("l1-filter", "l1-activation", "random#0", "random#1")


def made_up(removed: list[int], seed: int, *, images: int = IMAGES, kind: type[Result]) -> Result:
    """An ablation of two classes of ten, whose hits and losses are random."""
    generator = np.random.default_rng(seed)

    def part(images: int, halves: tuple[Result, ...] = ()) -> Result:
        hits = generator.integers(0, images + 1, (len(removed), 2))
        wrong = generator.integers(0, 9, (len(removed), 2))
        if halves:
            hits = np.sum([half.hits for half in halves], axis=0)
            wrong = np.sum([half.called for half in halves], axis=0) - hits
        return kind(
            layers=("features.4",),
            removed=np.array(removed),
            classes=CLASSES,
            images=np.array([images, images]),
            all_images=10 * images,
            hits=hits,
            called=hits + wrong,
            loss=generator.random((len(removed), 2)),
            outputs=10,
            halves=halves,
        )

    return part(images, (part(images // 2), part(images - images // 2)))


@pytest.fixture(scope="module")
def networks() -> list[AblatedNetwork]:
    networks = []
    for seed in (1, 4):
        ablations: dict[str, dict[str, Ablation]] = {
            label: {
                order: made_up([0, 3, 6, 8], 100 * seed + 10 * n + m, kind=Ablation) for m, order in enumerate(ORDERS)
            }
            for n, label in enumerate(LABELS)
        }
        scores = {
            label: np.random.default_rng(seed + n).permuted(np.tile(np.arange(UNITS), (2, 1)), axis=1)
            for n, label in enumerate(LABELS)
        }
        networks.append(AblatedNetwork(seed, ablations, scores, single_units(seed)))
    return networks


def single_units(seed: int) -> UnitAblation:
    return made_up([0] + [1] * UNITS, seed, kind=UnitAblation)


def test_the_control_is_all_random_orders(networks: list[AblatedNetwork]) -> None:
    assert labels_by_scorer(networks) == {
        "l1-filter": ["l1-filter"],
        "l1-activation": ["l1-activation"],
        "random": ["random#0", "random#1"],
    }


def test_single_units_are_what_scores_are_correlated_with(networks: list[AblatedNetwork]) -> None:
    losses = networks[0].losses_by_unit
    assert losses.shape == (UNITS, 2)
    perfect = AblatedNetwork(1, {}, {"a": losses.T, "b": -losses.T}, networks[0].single_units)
    assert agreement([perfect], ["a"], spearman) == pytest.approx([1, 1])
    assert agreement([perfect], ["b"], kendall) == pytest.approx([-1, -1])
    assert set(ablation_tables(networks)[-1].rows) == {"l1-filter", "l1-activation", "random"}


def test_table_11_says_the_peak_and_what_is_chosen_on_the_other_half(networks: list[AblatedNetwork]) -> None:
    table = next(table for table in ablation_tables(networks) if table.title.startswith("Table 11"))
    cells = table.rows["l1-activation"]
    both = [network.ablations["l1-activation"]["descending"] for network in networks]
    assert cells["unchanged"].mean == pytest.approx(np.mean([each.balanced_accuracy[0] for each in both]))
    assert cells["best"].mean == pytest.approx(np.mean([each.balanced_accuracy.max(axis=0) for each in both]))
    held = []
    for each in both:
        for chosen, reported in (each.halves, each.halves[::-1]):
            steps = chosen.balanced_accuracy.argmax(axis=0)
            held += [reported.balanced_accuracy[step, number] for number, step in enumerate(steps)]
    assert cells["chosen on the other half"].mean == pytest.approx(np.mean(held))
    random = mean_by_class(networks, labels_by_scorer(networks)["random"], "descending", lambda a: a.peak_held_out)
    assert cells["difference to random"].mean == pytest.approx(np.mean(held) - random.mean())
    gain = cells["best"].mean - cells["unchanged"].mean
    assert cells["enhanced by"].mean == pytest.approx(gain)


def test_the_summaries_of_the_curves(networks: list[AblatedNetwork]) -> None:
    ascending, descending = ablation_tables(networks)[:2]
    assert (ascending.title, descending.title) == (
        "Ablation, ascending: best units first",
        "Ablation, descending: worst units first",
    )
    areas = curve_areas(networks)
    for order, table in zip(ORDERS, (ascending, descending), strict=True):
        for name, cells in table.rows.items():
            assert cells["area under accuracy"].mean == pytest.approx(areas[order, name])
        assert table.rows["random"]["difference to random"] == ""
        by_area = {areas[order, name]: name for name in table.rows}
        assert table.note.startswith(by_area[min(by_area) if order == "ascending" else max(by_area)])


def test_every_class_and_step_is_a_row(networks: list[AblatedNetwork]) -> None:
    rows = class_rows(networks)
    assert len(rows) == 2 * 4 * 2 * 2  # seeds, labels, orders, classes
    row = next(
        r for r in rows if (r["seed"], r["scorer"], r["order"], r["class"]) == (4, "l1-filter", "ascending", "7")
    )
    assert row["area"] == networks[1].ablations["l1-filter"]["ascending"].area[1]
    steps = curve_rows(networks)
    assert len(steps) == 2 * 4 * 2 * 4
    assert steps[1]["removed"] == 3
    assert steps[1]["loss"] == networks[0].ablations["l1-filter"]["ascending"].loss[1].mean()


def test_the_figure_has_the_mean_of_each_scorer_and_the_ends_of_its_band(
    networks: list[AblatedNetwork], recipe_with: Any
) -> None:
    frame = curve_frame(networks)
    assert len(frame) == 3 * 2 * 2 * 4  # scorers, orders, quantities, steps
    chosen = frame.query("scorer == 'random' and order == 'descending' and quantity == 'loss' and removed == 6")
    losses = [
        network.ablations[label]["descending"].loss[2].mean()
        for network in networks
        for label in ("random#0", "random#1")
    ]
    (row,) = chosen.to_dict("records")
    assert row["mean"] == pytest.approx(np.mean(losses))
    assert (row["low"], row["high"]) == (min(losses), max(losses))
    recipe: Recipe = recipe_with()
    assert curve_title(networks, recipe) == "Cumulative ablation of features.4, mean over 2 classes"
    recipe = recipe.with_options("ablate", rescale=(0.5, 1.5))
    assert curve_title(networks, recipe).endswith("mean over 2 classes, images × 0.5 to 1.5 at random")


def test_the_description_says_what_the_tables_are_of(networks: list[AblatedNetwork], recipe_with: Any) -> None:
    recipe: Recipe = recipe_with().with_options("ablate", rescale=(0.5, 1.5))
    text = describe(networks, recipe)
    assert "Layer 'features.4' of vgg-small, 2 classes with 10 test images each, each multiplied by a random" in text
    assert "networks of seed 1, 4; random: the mean of 2 orders" in text
    plain = recipe.with_options("ablate", rescale=None)
    assert "multiplied" not in describe(networks, plain)
