"""The outputs, input channels and classes that a checkpoint tells."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from prune_fe.errors import CheckpointError
from prune_fe.models.build import build
from prune_fe.models.checkpoints import Checkpoint
from prune_fe.models.outputs import build_weightless, compare_classes, find_output_keys, match_classes, read_sizes

KEYS = ["classifier.weight", "classifier.bias"]


def test_the_weights_with_a_row_for_each_class_are_found() -> None:
    assert find_output_keys("vgg-small", stages=[[4]]) == KEYS
    assert find_output_keys("squeezenet1_0") == ["classifier.1.weight", "classifier.1.bias"]
    assert find_output_keys("googlenet", aux_logits=True, init_weights=False) == [
        *("aux1.fc2.weight", "aux1.fc2.bias", "aux2.fc2.weight", "aux2.fc2.bias", "fc.weight", "fc.bias")
    ]


@pytest.mark.parametrize(
    ("name", "classes", "channels"), [("vgg-small", 7, 1), ("vgg-small", 1, 5), ("timm/resnet10t", 7, 1)]
)
def test_outputs_and_input_channels_are_read(name: str, classes: int, channels: int) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    assert read_sizes(name, build(name, classes, in_channels=channels).state_dict()) == (classes, channels)


def test_networks_of_torchvision_tell_their_outputs_only() -> None:
    assert read_sizes("resnet18", build_weightless("resnet18", 7).state_dict()) == (7, None)
    assert read_sizes("resnet18", {"fc.weight": torch.ones(3)}) == (3, None)
    assert read_sizes("resnet18", {"fc.weight": torch.ones(0)}) == (None, None)
    assert read_sizes("resnet18", {}) == (None, None)


def test_reading_sizes_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    read_sizes("vgg-small", {})
    assert torch.equal(torch.get_rng_state(), state)


def checkpoint(*classes: str) -> Checkpoint:
    state = {"features.weight": torch.arange(3.0), KEYS[0]: torch.arange(6.0).view(3, 2), KEYS[1]: torch.arange(3.0)}
    return Checkpoint(Path("a.pth"), state, classes or None)


def rows(result: Checkpoint) -> list[Tensor]:
    return [value for key, value in result.state.items() if key in KEYS]


def test_outputs_take_the_order_of_the_classes() -> None:
    result = match_classes(checkpoint("c", "a", "b"), ["a", "b", "c"], lambda: KEYS, new_classifier=False)
    weight, bias = rows(result)
    assert bias.tolist() == [1, 2, 0]
    assert weight.tolist() == [[2, 3], [4, 5], [0, 1]]
    assert result.state["features.weight"].tolist() == [0, 1, 2]
    assert result.classes == ("a", "b", "c")
    assert result.summary == "a.pth: read; its outputs are re-ordered to the classes of the data"


def test_without_names_or_with_the_same_ones_nothing_is_changed() -> None:
    for known in ((), ("a", "b", "c")):
        given = checkpoint(*known)
        assert match_classes(given, ["a", "b", "c"], lambda: 1 / 0, new_classifier=False) is given  # type: ignore


@pytest.mark.parametrize(
    ("known", "classes", "text"),
    [
        (("a", "b", "c"), ["b", "c"], "its classes are not the 2 of the data: a only in the network$"),
        (("a", "b", "c"), ["a", "b", "d"], "the 3 of the data: c only in the network; d only in the data$"),
        (("a", "a", "b"), ["b", "a", "a"], "the 3 of the data: they are in another order$"),
        (("b", "a"), ["a", "b"], r"a\.pth: names 2 classes, 'classifier.weight' has 3 outputs"),
    ],
)
def test_other_classes_are_refused(known: tuple[str, ...], classes: list[str], text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        match_classes(checkpoint(*known), classes, lambda: KEYS, new_classifier=False)


def test_outputs_for_other_classes_are_left_out_where_they_are_made_anew() -> None:
    result = match_classes(checkpoint("a", "b", "c"), ["b", "c", "d"], lambda: KEYS, new_classifier=True)
    assert list(result.state) == ["features.weight"]


def test_outputs_that_nobody_knows_are_not_re_ordered() -> None:
    with pytest.raises(CheckpointError, match="they are in another order"):
        match_classes(checkpoint("b", "a", "c"), ["a", "b", "c"], lambda: [], new_classifier=False)


def test_a_long_difference_is_shortened() -> None:
    assert compare_classes("abcde", "a") == "b, c, d and 1 more only in the network"
