"""The paper's studies on the network that the quickstart trains: what rescaling and randomness do to each criterion."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prune_fe.data import images as data
from prune_fe.errors import InputError
from prune_fe.experiment.recipe import load_recipe
from prune_fe.measure.statistics import Estimate
from prune_fe.models import networks as models
from prune_fe.report.tables import Table
from prune_fe.studies import single_unit as studies
from prune_fe.studies.single_unit import Subject, halved
from prune_fe.tracing.feature_maps import Layer, find_layers, observe
from prune_fe.training.loop import finetune

RECIPE = load_recipe(Path(__file__).parents[2] / "recipes/quickstart.yaml")
CLASS = 3


def fresh(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(RECIPE.model.name, 10, in_channels=1, **RECIPE.model.arguments)


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The unit of least H/ε in the last layer of the quickstart's network, on class 3."""
    assert RECIPE.train is not None
    splits, network = data.digits(RECIPE.data.size), fresh(0)
    finetune(network, splits.train, splits.validation, **RECIPE.train.model_dump())
    layer = find_layers(network, splits.test[0][0][None])[-1]
    return Subject(network, splits, layer, 0, CLASS, samples=80).with_unit(None)


@pytest.fixture(scope="module")
def rescaled(subject: Subject) -> Callable[[str], list[float]]:
    """Column -> its values with nothing, the images, the filters and both halved."""
    tables = studies.rescaling(subject)

    def column(name: str) -> list[float]:
        table = next(table for table in tables if name in table.forms)
        return [cells[name][0] for cells in table.rows.values()]

    return column


@pytest.fixture(scope="module")
def randomised(subject: Subject) -> Callable[[str], tuple[list[float], list[float]]]:
    """Column -> (the trained units, the 100 random units)."""
    tables = studies.randomness(subject, fresh)

    def column(name: str) -> tuple[list[float], list[float]]:
        _, trained, random = next(table for table in tables if name in table.forms).rows.values()
        return list(trained[name]), list(random[name])

    return column


def test_halving_the_filters_leaves_apoz_and_feature_entropy_to_the_bit(rescaled: Callable[[str], list[float]]) -> None:
    for name in ("APoZ", "H", "ε", "class selectivity, index", "HRank"):
        plain, images, filters, both = rescaled(name)
        assert filters == pytest.approx(plain, rel=1e-6)
        assert both == pytest.approx(images, rel=1e-6)
    assert rescaled("H")[2] == rescaled("H")[0]
    assert rescaled("APoZ")[2] == rescaled("APoZ")[0]


@pytest.mark.parametrize("name", ["L1-norm", "mean activation", "class selectivity, μ_c − μ_rest", "FPGM", "filter L1"])
def test_halving_the_filters_halves_what_is_a_magnitude(rescaled: Callable[[str], list[float]], name: str) -> None:
    plain, images, filters, both = rescaled(name)
    assert filters == pytest.approx(plain / 2, rel=1e-5)
    assert both == pytest.approx(images / 2, rel=1e-5)


def test_halving_the_images_leaves_what_reads_filters_alone(rescaled: Callable[[str], list[float]]) -> None:
    for name in ("FPGM", "filter L1", "BN scale"):
        plain, images, *_ = rescaled(name)
        assert images == plain


def test_halving_the_images_moves_magnitudes_and_hardly_moves_feature_entropy(
    rescaled: Callable[[str], list[float]],
) -> None:
    moved = {name: rescaled(name)[1] / rescaled(name)[0] for name in ("H", "L1-norm", "NISP, α = 1, r = 1e-6")}
    assert abs(moved["H"] - 1) < 0.2  # of one unit, on few images
    # Batch norms keep their shifts, so that half the image is not half the map: less falls away than in table 1.
    assert moved["L1-norm"] < 0.75
    assert moved["NISP, α = 1, r = 1e-6"] < 0.75


def test_nisp_halves_only_with_a_fixed_r(rescaled: Callable[[str], list[float]]) -> None:
    """With r = 0.9/ρ(A), as Roffo et al. define it, the scale of the responses cancels; table 9 cannot come from it."""
    plain, _, filters, _ = rescaled("NISP")
    assert filters == pytest.approx(plain, rel=0.1)
    plain, _, filters, _ = rescaled("NISP, α = 1, r = 1e-6")
    assert filters == pytest.approx(plain / 2, rel=1e-2)


def test_what_holds_for_the_unit_holds_for_the_layer(subject: Subject) -> None:
    shares = {
        name: [value[0] for value in cells.values()] for name, cells in studies.rescaling(subject)[-1].rows.items()
    }
    assert all(values[0] == 1 for values in shares.values())
    assert shares["H"][2] == 1
    assert abs(shares["H"][1] - 1) < 0.15
    for name in ("L1-norm", "FPGM"):
        _, images, filters, both = shares[name]
        assert filters == pytest.approx(0.5, rel=1e-5)
        assert both == pytest.approx(images / 2, rel=1e-5)


def test_halving_the_filters_leaves_the_accuracy_about_where_it_was(rescaled: Callable[[str], list[float]]) -> None:
    plain, _, filters, _ = rescaled("accuracy")
    assert plain > 0.95
    assert filters > plain - 0.05


def test_random_units_have_a_higher_entropy_and_no_selectivity(
    randomised: Callable[[str], tuple[list[float], list[float]]], subject: Subject
) -> None:
    trained, random = randomised("H")
    assert (len(trained), len(random)) == (96, 100)
    assert np.mean(random) > np.mean(trained)
    trained, random = randomised("class selectivity, μ_c − μ_rest")
    assert np.std(random) < np.std(trained) / 10
    # tables 2 and 7: APoZ cannot tell them apart, its deviation is as large as the difference
    trained, random = randomised("APoZ")
    assert abs(np.mean(trained) - np.mean(random)) < np.std(random)


def test_random_units_are_shared_out_evenly_and_a_layer_must_have_enough() -> None:
    layer = Layer("conv", 12, (8, 8))
    assert studies.shares_of(layer, 95, 10) == [10] * 5 + [9] * 5
    assert studies.shares_of(layer, 3, 10) == [1] * 3 + [0] * 7
    with pytest.raises(InputError, match="layer 'conv' has 12 units, 13 of each network are drawn"):
        studies.shares_of(layer, 130, 10)


def test_every_random_unit_is_drawn_once_and_the_same_again(subject: Subject) -> None:
    small = Subject(subject.network, subject.splits, subject.layer, 5, CLASS, samples=5)
    one, again = (studies.randomness(small, fresh, units=6, networks=2) for _ in range(2))
    assert [table.rows for table in one] == [table.rows for table in again]
    random = one[0].rows["6 random-initialised units"]["L1-norm"]
    assert len(set(random)) == 6


def test_birth_time_maximum_and_integral_characterise_the_same_holes(subject: Subject) -> None:
    small = Subject(subject.network, subject.splits, subject.layer, subject.unit, CLASS, samples=10)
    entropy, rate, cost = studies.characterisation(small)
    kinds = ["birth time", "maximum", "integration"]
    assert list(entropy.rows) == ["reference unit", "layer", "layer (10 classes)"]
    for cells in rate.rows.values():
        assert len({cells[kind][0] for kind in kinds}) == 1  # a curve that is not zero has all three
    for cells in entropy.rows.values():
        assert all(0 < cells[kind][0] <= np.log(10) + 1e-9 for kind in kinds)
    # the maximum takes few values, the integral many
    layer = entropy.rows["layer"]
    assert layer["maximum"][0] < layer["birth time"][0] <= layer["integration"][0]
    assert cost.rows["layer"]["maximum"][0] > cost.rows["layer"]["birth time"][0]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) + x)


@pytest.mark.parametrize(
    ("name", "rest", "done"),
    [
        ("0", [nn.BatchNorm2d(3), nn.ReLU()], "the filters"),
        ("0", [nn.ReLU()], "the filters"),
        ("1", [Block()], "the maps, not the filters"),
        ("0", [nn.GroupNorm(1, 3), nn.ReLU()], "the maps, not the filters"),
        ("0", [nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()], "the maps, not the filters"),
        ("0", [nn.BatchNorm2d(3), nn.Sigmoid()], "the maps, not the filters"),
    ],
)
def test_a_halved_layer_gives_half_its_maps_and_leaves_the_network(name: str, rest: list[nn.Module], done: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3), *rest, nn.Flatten()).eval()
    for value in (*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())):
        nn.init.uniform_(value, 0.5, 1.5)
    images = torch.randn(2, 3, 9, 9)
    before = network(images)
    layer = find_layers(network, images, [name])[0]
    twin, acting, what = halved(network, layer, images)
    assert what == done
    whole = maps_of(network, layer, images)
    with acting:
        half = maps_of(twin, layer, images)
    assert torch.allclose(half, whole / 2, rtol=1e-5, atol=1e-7)
    assert torch.equal(network(images), before)


def maps_of(network: nn.Module, layer: Layer, images: Tensor) -> Tensor:
    found: list[Tensor] = []
    with torch.no_grad(), observe(network, [layer], lambda layer, maps: found.append(maps.clone())):
        network(images)
    return found[0]


def test_what_cannot_judge_the_layer_is_named_and_left_out() -> None:
    network = nn.Sequential(Block(), nn.Flatten(), nn.Linear(3 * 64, 10))
    splits = data.digits(8)
    colour = data.Rescaled(Three(splits.train), 1.0)
    splits = data.Splits(colour, colour, colour, splits.classes, 3, 8)
    layer = find_layers(network, splits.test[0][0][None], ["0"])[0]
    subject = Subject(network, splits, layer, 0, CLASS, samples=4)
    assert sorted(subject.refused) == ["BN scale", "FPGM", "filter L1"]
    assert "'0' is a Block and has no filters of its own" in subject.refused["FPGM"]
    tables = studies.rescaling(subject)
    assert "FPGM" not in tables[1].rows["×, ×"].keys() | tables[1].forms.keys()
    assert tables[1].rows["×, half scale"]["NISP, α = 1, r = 1e-6"]


class Three(data.Rescaled):
    """Grey images as three channels."""

    def __init__(self, images: Dataset[Any]) -> None:
        super().__init__(images, 1.0)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image.expand(3, -1, -1), label


def test_a_table_prints_one_value_or_mean_and_deviation() -> None:
    estimate = Estimate(0.5, 0.25, 0.75, 9)
    cells = {"a": [1.25], "b": [0.5, 0.7], "c": estimate, "d": "none"}
    table = Table("t", {"a": ".1f", "b": ".0%", "c": ".2f", "d": ""}, {"one": cells})
    assert (table.text("one", "c"), table.text("one", "d")) == ("0.50 [0.25, 0.75]", "none")
    assert [entry["column"] for entry in table.entries()] == ["a", "b", "c"]
    assert table.entries()[2]["high"] == 0.75
    assert (table.text("one", "a"), table.text("one", "b")) == ("1.2", "60% (14%)")
    assert table.entries()[1] == {
        "table": "t", "row": "one", "column": "b", "mean": 0.6, "deviation": pytest.approx(0.1414, rel=1e-3), "n": 2,
        "low": None, "high": None,
    }  # fmt: skip
