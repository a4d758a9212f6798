"""The study of rescaling on a small trained network: tables 1, 6 and 9."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_fe.data.datasets import Rescaled
from prune_fe.measure.evaluate import evaluate
from prune_fe.report.tables import Table
from prune_fe.studies.rescaling import halve_layer, measure_accuracies, rescale
from prune_fe.studies.subject import Subject
from prune_fe.tracing.feature_maps import observe
from prune_fe.tracing.layers import Layer, find_layers
from prune_fe.tracing.split import NotSplit


@pytest.fixture(scope="module")
def tables(subject: Subject) -> list[Table]:
    return rescale(subject)


@pytest.fixture(scope="module")
def column(tables: list[Table]) -> Callable[[str], list[float]]:
    """Column -> its values with nothing, the images, the filters and both halved."""

    def values(name: str) -> list[float]:
        table = next(table for table in tables if name in table.forms)
        return [cells[name][0] for cells in table.rows.values()]

    return values


def test_halving_the_filters_leaves_apoz_and_feature_entropy_to_the_bit(column: Callable[[str], list[float]]) -> None:
    for name in ("APoZ", "H", "ε", "class selectivity, index", "HRank"):
        plain, images, filters, both = column(name)
        assert filters == pytest.approx(plain, rel=1e-6)
        assert both == pytest.approx(images, rel=1e-6)
    assert column("H")[2] == column("H")[0]
    assert column("APoZ")[2] == column("APoZ")[0]


@pytest.mark.parametrize("name", ["L1-norm", "mean activation", "class selectivity, μ_c − μ_rest", "FPGM", "filter L1"])
def test_halving_the_filters_halves_what_is_a_magnitude(column: Callable[[str], list[float]], name: str) -> None:
    plain, images, filters, both = column(name)
    assert filters == pytest.approx(plain / 2, rel=1e-5)
    assert both == pytest.approx(images / 2, rel=1e-5)


def test_halving_the_images_leaves_what_reads_filters_alone(column: Callable[[str], list[float]]) -> None:
    for name in ("FPGM", "filter L1", "BN scale"):
        plain, images, *_ = column(name)
        assert images == plain


def test_halving_the_images_moves_magnitudes_and_hardly_moves_feature_entropy(
    column: Callable[[str], list[float]],
) -> None:
    moved = {name: column(name)[1] / column(name)[0] for name in ("H", "L1-norm", "NISP, α = 1, r = 1e-6")}
    assert abs(moved["H"] - 1) < 0.2  # of one unit, on few images
    # Batch norms keep their shifts, so that half the image is not half the map: less falls away than in table 1.
    assert moved["L1-norm"] < 0.75
    assert moved["NISP, α = 1, r = 1e-6"] < 0.75


def test_nisp_halves_only_with_a_fixed_r(column: Callable[[str], list[float]]) -> None:
    """With r = 0.9/ρ(A), as Roffo et al. define it, the scale of the responses cancels; table 9 cannot come from it."""
    plain, _, filters, _ = column("NISP")
    assert filters == pytest.approx(plain, rel=0.1)
    plain, _, filters, _ = column("NISP, α = 1, r = 1e-6")
    assert filters == pytest.approx(plain / 2, rel=1e-2)


def test_what_holds_for_the_unit_holds_for_the_layer(tables: list[Table]) -> None:
    shares = {name: [value[0] for value in cells.values()] for name, cells in tables[-1].rows.items()}
    assert all(values[0] == 1 for values in shares.values())
    assert shares["H"][2] == 1
    assert abs(shares["H"][1] - 1) < 0.15
    for name in ("L1-norm", "FPGM"):
        _, images, filters, both = shares[name]
        assert filters == pytest.approx(0.5, rel=1e-5)
        assert both == pytest.approx(images / 2, rel=1e-5)


def test_halving_the_filters_leaves_the_accuracy_about_where_it_was(column: Callable[[str], list[float]]) -> None:
    plain, _, filters, _ = column("accuracy")
    assert plain > 0.95
    assert filters > plain - 0.05


@pytest.mark.parametrize(
    ("name", "rest", "halved"),
    [
        ("0", [nn.BatchNorm2d(3), nn.ReLU()], "the filters"),
        ("0", [nn.ReLU()], "the filters"),
        ("1", ["block"], "the maps, not the filters"),
        ("0", [nn.GroupNorm(1, 3), nn.ReLU()], "the maps, not the filters"),
        ("0", [nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()], "the maps, not the filters"),
        ("0", [nn.BatchNorm2d(3), nn.Sigmoid()], "the maps, not the filters"),
    ],
)
def test_a_halved_layer_gives_half_its_maps_and_leaves_the_network(
    name: str, rest: list[Any], halved: str, block: Callable[[], nn.Module]
) -> None:
    modules = [block() if module == "block" else module for module in rest]
    network = nn.Sequential(nn.Conv2d(3, 3, 3), *modules, nn.Flatten()).eval()
    for value in (*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())):
        nn.init.uniform_(value, 0.5, 1.5)
    images = torch.randn(2, 3, 9, 9)
    before = network(images)
    layer = find_layers(network, images, [name])[0]
    twin, halving, what = halve_layer(network, layer, images)
    assert what == halved
    whole = maps_of(network, layer, images)
    with halving:
        half = maps_of(twin, layer, images)
    assert torch.allclose(half, whole / 2, rtol=1e-5, atol=1e-7)
    assert torch.equal(network(images), before)


def test_a_study_that_was_killed_reads_what_it_had_measured(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(subject, samples=5)
    whole, saving, evaluated = rescale(small), replace(small, folder=tmp_path), []

    def killed(network: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        evaluated.append(network)
        if len(evaluated) == 3:  # with half the images; the first two are the network with and without half the filters
            raise KeyboardInterrupt
        return evaluate(network, *arguments, **keywords)

    monkeypatch.setattr("prune_fe.studies.rescaling.evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        rescale(saving)
    again = rescale(saving)
    assert len(evaluated) == 3 + 2
    assert [table.rows for table in again] == [table.rows for table in whole]
    monkeypatch.setattr("prune_fe.scoring.collection.Collection.run", lambda *_: pytest.fail("measured again"))
    assert [table.rows for table in rescale(saving)] == [table.rows for table in whole]
    assert len(evaluated) == 5
    with torch.no_grad():
        other = replace(saving, network=copy.deepcopy(saving.network))
        next(other.network.parameters()).mul_(0.9)
    measure_accuracies(other)
    assert len(evaluated) == 9


@pytest.mark.parametrize("is_split", [True, False])
def test_halved_filters_are_evaluated_with_the_halved_network_and_its_front_part_runs_once(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, is_split: bool
) -> None:
    first = next(module for module in subject.network.modules() if isinstance(module, nn.Conv2d))
    images: list[int] = []
    if not is_split:
        monkeypatch.setattr("prune_fe.studies.rescaling.split", lambda *_: NotSplit("a test"))
    hook = first.register_forward_hook(lambda _, inputs, output: images.append(len(inputs[0])))
    accuracies = measure_accuracies(subject)
    hook.remove()
    n_test = len(subject.splits.test)  # type: ignore[arg-type]
    # The copy that is halved has the hook, too; splitting runs some 50 images more.
    passes = sum(images) / n_test
    assert 2 <= passes < 2.3 if is_split else 4 <= passes < 4.3
    twin, halving, _ = halve_layer(subject.network, subject.layer, subject.example)
    for factor, states in ((1.0, ("trained", "half-filters")), (0.5, ("half-images", "half-both"))):
        data = Rescaled(subject.splits.test, factor)
        assert accuracies[states[0]]["accuracy"] == evaluate(subject.network, data).accuracy
        with halving:
            halved = evaluate(twin, data)
        assert accuracies[states[1]]["accuracy"] == halved.accuracy
        recall = halved.confusion[subject.label, subject.label] / halved.confusion[subject.label].sum()
        assert accuracies[states[1]]["of the class"] == pytest.approx(float(recall))


def maps_of(network: nn.Module, layer: Layer, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with torch.no_grad(), observe(network, [layer], lambda layer, maps: seen.append(maps.clone())):
        network(images)
    return seen[0]
