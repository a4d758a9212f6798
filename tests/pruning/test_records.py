"""What pruning reports."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.pruning.prune import prune
from prune_fe.scoring.score import score

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def small() -> nn.Module:
    return SmallVGG(classes=4, stages=((6, 6), (8,))).eval()


def test_surviving_parts_of_what_is_shaped_like_the_parameters() -> None:
    model = small()
    pruned = prune(model, score(model, scorer="random"), example=X)
    names = dict(model.named_parameters())
    survived = pruned.surviving({name: weight.detach().clone() for name, weight in names.items()})
    assert all(torch.equal(survived[name], weight) for name, weight in pruned.model.named_parameters())


def test_what_does_not_survive_is_refused_by_name() -> None:
    pruned = prune(small(), score(small(), scorer="random"), example=X)
    with pytest.raises(InputError, match="'features.0.weight' is .2, 3., the original's is .6, 3, 3, 3."):
        pruned.surviving({"features.0.weight": torch.zeros(2, 3)})
    with pytest.raises(InputError, match="'nothing' is .2,., the original has none"):
        pruned.surviving({"nothing": torch.zeros(2)})


def test_a_step_is_plain_data() -> None:
    step = prune(small(), score(small(), scorer="random"), example=X).steps[0]
    written = json.loads(json.dumps(dataclasses.asdict(step)))
    assert list(written) == ["layers", "units", "asked", "count", "removed", "kept", "left", "also"]
    assert (written["layers"], written["units"], written["asked"], written["count"]) == (["features.0"], 6, 3, 3)
    assert sorted(written["removed"]["features.0"] + written["kept"]["features.0"]) == list(range(6))


def test_the_difference_to_the_masked_original_is_measured() -> None:
    model = small()
    pruned = prune(model, score(model, scorer="random"), example=X)
    difference, largest = pruned.difference(model, X)
    assert 0 <= difference < 1e-5 * largest
    with torch.no_grad():
        next(pruned.model.parameters()).add_(1)
    assert pruned.difference(model, X)[0] > 1e-2 * largest


def test_a_plot_shows_the_share_of_its_units_that_each_layer_has_lost() -> None:
    pruned = prune(small(), score(small(), scorer="random"), example=X, ratio={"features.0": 0.5, "features.7": 0.25})
    [rows] = pruned.plot().to_dict()["datasets"].values()
    shares = {row["layer"]: row["value"] for row in rows}
    assert shares == {layer: len(step.removed[layer]) / step.units for step in pruned.steps for layer in step.layers}
    assert shares["features.0"] == 0.5
