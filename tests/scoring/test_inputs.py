"""Scores know what they are of, and are used for nothing else."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from prune_fe.data.sampling import choose_images
from prune_fe.errors import InputError
from prune_fe.scorers.apoz import APoZ
from prune_fe.scorers.base import Scorer
from prune_fe.scorers.class_selectivity import ClassSelectivity
from prune_fe.scorers.feature_entropy import FeatureEntropy
from prune_fe.scorers.fpgm import FPGM
from prune_fe.scorers.hrank import HRank
from prune_fe.scorers.l1_activation import L1Activation
from prune_fe.scorers.mean_activation import MeanActivation
from prune_fe.scorers.nisp import NISP
from prune_fe.scorers.taylor import Taylor
from prune_fe.scoring.score import score, score_all
from prune_fe.scoring.scores import load_scores
from prune_fe.topology import birth_times
from prune_fe.tracing.feature_maps import observe
from prune_fe.tracing.layers import find_layers
from tests.scoring.sample import Counting, Net, assert_same_bits, scored


def test_a_scorer_beside_it_makes_no_other_work_of_it(net: Net, images: Counting, tmp_path: Path) -> None:
    options: dict[str, Any] = {"example": None, "samples": 2, "seed": 3}
    first = scored(net, images, tmp_path, ["apoz"], **options)["apoz"]
    again = scored(net, images, tmp_path, ["apoz", "bn-scale"], **options)["apoz"]
    assert again.seconds == first.seconds


def test_a_scorer_of_weights_alone_is_known_with_and_without_images_beside_it(
    net: Net, images: Counting, tmp_path: Path
) -> None:
    alone = score_all(net, None, ["l1-filter"], folder=tmp_path)["l1-filter"]
    beside = scored(net, images, tmp_path, ["l1-filter", "apoz"])["l1-filter"]
    assert beside.seconds == alone.seconds


def test_an_image_that_stands_twice_counts_twice(net: Net, images: Counting, tmp_path: Path) -> None:
    twice, once = Subset(images, [0, 0, 0, 1, 2]), Subset(images, [0, 1, 2])
    example = images.images[:1]
    assert score_all(net, twice, ["apoz"], folder=tmp_path, example=example)["apoz"].images == 5
    with pytest.raises(InputError, match="other images"):
        score_all(net, once, ["apoz"], folder=tmp_path, example=example)


def test_another_activation_is_another_model(net: Net, images: Counting, tmp_path: Path) -> None:
    def network(activation: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3), activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    scored(network(nn.ReLU()), images, tmp_path, ["apoz"])
    with pytest.raises(InputError, match="apoz holds scores of another model"):
        scored(network(nn.SiLU()), images, tmp_path, ["apoz"])


def test_labels_that_are_not_written_down_cost_no_second_reading(net: Net) -> None:
    class Bare(Dataset[Any]):
        reads = 0

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            type(self).reads += 1
            return torch.zeros(2, 9, 9), index % 3

    score(net, Bare(), "apoz", example=torch.zeros(1, 2, 9, 9))
    assert Bare.reads == 6


def other_names(net: Net, images: Counting) -> dict[str, Any]:
    images.classes = ("cat", "dog", "bull")
    return {}


def other_weights(net: Net, images: Counting) -> dict[str, Any]:
    with torch.no_grad():
        net.norm2.bias[1] += 0.5
    return {}


def other_pixels(net: Net, images: Counting) -> dict[str, Any]:
    images.images = images.images + 1
    return {}


def other_labels(net: Net, images: Counting) -> dict[str, Any]:
    images.targets[4] = 0
    return {}


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        other_pixels,
        other_labels,
        other_names,
        lambda net, images: {"seed": 1},
        lambda net, images: {"samples": 4},
        lambda net, images: {"classes": [0, 1]},
        lambda net, images: {"layers": ["second"]},
        lambda net, images: {"scorers": {"feature-entropy": FeatureEntropy(p=0.2)}},
        lambda net, images: {"scorers": {"feature-entropy": "apoz"}},
    ],
    ids=["weights", "pixels", "labels", "names", "seed", "samples", "classes", "layers", "settings", "scorer"],
)
def test_a_folder_with_scores_of_something_else_is_refused_and_left(
    net: Net, images: Counting, tmp_path: Path, change: Callable[[Net, Counting], dict[str, Any]]
) -> None:
    usual: dict[str, Any] = {"scorers": ["feature-entropy"], "samples": 5}
    first = scored(net, images, tmp_path, **usual)["feature-entropy"]
    options = change(net, images)
    images.reads.clear()
    with pytest.raises(InputError, match="feature-entropy holds scores of another model, other images or other settin"):
        scored(net, images, tmp_path, **usual | options)
    assert images.reads == []
    assert_same_bits(load_scores(tmp_path / "feature-entropy"), first)


def test_scores_know_where_they_come_from(net: Net, images: Counting, tmp_path: Path) -> None:
    scored(net, images, tmp_path, ["apoz", "l1-filter"], samples=2, seed=3)
    about = load_scores(tmp_path / "apoz").provenance
    chosen = choose_images(images, None, 2, 3)
    assert about["images"] == [[str(number), images.classes[images.targets[number]]] for number in chosen]
    assert list(about["layers"]) == ["first", "second"]
    assert about["model"] == "Net"
    assert len(about["model_sha256"]) == len(about["key"]) == len(about["example_sha256"]) == 64
    weights = load_scores(tmp_path / "l1-filter").provenance
    assert "images" not in weights
    assert weights["model_sha256"] == about["model_sha256"]
    assert weights["key"] != about["key"]
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.head.bias[0] += 1e-6
    assert score(twin, scorer="l1-filter").provenance["model_sha256"] != about["model_sha256"]


TAYLOR = {"batch": 32, "shuffle": True, "of": "gates", "gates": "own"}
LATER: list[tuple[str, Scorer, dict[str, Any]]] = [
    ("feature-entropy", FeatureEntropy(rectangular="pad"), {"rectangular": "refuse", "variant": "paper"}),
    ("feature-entropy", FeatureEntropy(variant="program"), {"rectangular": "refuse", "variant": "paper"}),
    ("class-selectivity", ClassSelectivity(eps=1e-7), {"eps": 0.0, "read": "map"}),
    ("nisp", NISP(sigma="minmax"), {"sigma": "raw", "ratio": 0.0}),
    ("nisp", NISP(ratio=0.5), {"sigma": "raw", "ratio": 0.0}),
    ("taylor", Taylor("batch", batch=8), TAYLOR),
    ("taylor", Taylor(gates="shared"), TAYLOR),
    ("taylor", Taylor(of="weights"), TAYLOR),
    ("fpgm", FPGM(norm_share=0.5), {"norm_share": 0.0}),
    ("apoz", APoZ(read="before_norm"), {"read": "map"}),
    ("mean-activation", MeanActivation(read="before_norm"), {"read": "map"}),
    ("l1-activation", L1Activation(read="before_norm"), {"read": "map"}),
    ("hrank", HRank(read="before_norm"), {"read": "map"}),
]


@pytest.mark.parametrize(("name", "changed", "later"), LATER)
def test_a_setting_that_came_later_changes_the_key_only_where_it_changes_the_scores(
    net: Net, images: Counting, name: str, changed: Scorer, later: dict[str, Any]
) -> None:
    default = type(changed)()
    found = scored(net, images, None, {"default": default, "changed": changed})
    about = found["default"].provenance
    names = ["version", "model", "model_sha256", "architecture_sha256"]
    names += ["images", "example_sha256"] if default.needs_data else []
    source, settings = {entry: about[entry] for entry in names}, dict(found["default"].settings)
    for setting, value in later.items():
        assert settings.pop(setting) == value
    layers = about["layers"] if default.needs_data else list(about["layers"])
    content = json.dumps([source, layers, name, settings], sort_keys=True)
    assert about["key"] == hashlib.sha256(content.encode()).hexdigest()
    assert found["changed"].provenance["key"] != about["key"]
    assert found["changed"].settings == changed.settings


def test_rectangular_images_are_scored_where_their_maps_are_padded(net: Net) -> None:
    wide, labels = torch.randn(9, 2, 8, 13, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    refused = "feature-entropy: layer 'first': maps are 8×13, a map must be square; use square images, or the setting"
    with pytest.raises(InputError, match=refused):
        score(net, [(wide, labels)], "feature-entropy")
    scores = score(net, [(wide, labels)], FeatureEntropy(rectangular="pad"))
    maps: dict[str, Tensor] = {}
    with observe(net, find_layers(net, wide), lambda layer, values: maps.update({layer.name: values.clone()})):
        net.eval()(wide)
    for name, values in maps.items():
        side = max(values.shape[2:])
        lowest = values.amin((2, 3), keepdim=True).expand(-1, -1, side, side).clone()
        lowest[..., : values.shape[2], : values.shape[3]] = values
        births = birth_times(lowest)
        rates = [(births[labels == c] > 0).double().mean(0).tolist() for c in range(3)]
        assert scores.raw["selective_rate"][name].tolist() == rates
