"""A classifier is found by its name, and what a checkpoint does not fit there is made anew."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from prune_fe.errors import CheckpointError, InputError
from prune_fe.models.checkpoints import load_weights
from prune_fe.models.classifier import describe_renewed, set_classifier_width
from prune_fe.models.saved import load, save


class Net(nn.Module):
    """A convolution and a classifier of two linear layers."""

    def __init__(self, classes: int = 4, width: int = 6) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 5, 3)
        self.classifier = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean(dim=(2, 3)))


LAST = ["classifier.2.weight", "classifier.2.bias"]
FIRST = ["classifier.0.weight", "classifier.0.bias"]


@pytest.mark.parametrize(
    ("other", "renewed"),
    [
        (Net(4, 6), []),
        (Net(9, 6), LAST),
        (Net(4, 7), FIRST + LAST),  # the last bias would fit, without its weight
    ],
)
def test_layers_of_the_classifier_that_do_not_fit_keep_their_weights(
    tmp_path: Path, other: Net, renewed: list[str]
) -> None:
    torch.save(other.state_dict(), tmp_path / "other.pth")
    network = Net()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert load_weights(network, tmp_path / "other.pth", new_classifier=True) == renewed
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] if key in renewed else other.state_dict()[key]), key


def test_a_file_without_a_classifier_or_with_another_one_is_read(tmp_path: Path) -> None:
    state = Net().features.state_dict()
    backbone = {f"features.{key}": value for key, value in state.items()}
    for extra in ({}, {"fc.weight": torch.zeros(3)}, {"classifier.7.weight": torch.zeros(3)}):
        torch.save(backbone | extra, tmp_path / "backbone.pth")
        network = Net()
        assert load_weights(network, tmp_path / "backbone.pth", new_classifier=True) == FIRST + LAST
        assert torch.equal(network.features.weight, state["weight"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"features.bias": None}, "'features.bias' is missing; it is a checkpoint of another model$"),
        ({"features.bias": torch.zeros(2)}, r"'features.bias' is \(2,\), the model has \(5,\)$"),
        ({"other.bias": torch.zeros(2)}, "'other.bias' is not in the model"),
    ],
)
def test_only_the_classifier_may_differ(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    state = {key: value for key, value in (Net(9).state_dict() | change).items() if value is not None}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=text):
        load_weights(Net(), tmp_path / "other.pth", new_classifier=True)


def test_without_permission_a_classifier_that_does_not_fit_is_an_error_with_advice(tmp_path: Path) -> None:
    torch.save(Net(9).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"'classifier.2.weight' is .*; training gives it a new classifier"):
        load_weights(Net(), tmp_path / "other.pth")


def test_the_message_names_layers_once() -> None:
    assert describe_renewed("a.pth", FIRST + LAST) == (
        "a.pth: does not fit classifier.0, classifier.2, made anew with random weights; all other layers are loaded"
    )


def test_a_narrow_classifier_is_saved_and_loaded(tmp_path: Path) -> None:
    network = torchvision.models.vgg11(weights=None, num_classes=3)
    set_classifier_width(network, 8)
    save(network, tmp_path / "narrow")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "narrow")(images), network.eval()(images))


def test_a_classifier_without_hidden_layers_has_no_width() -> None:
    with pytest.raises(InputError, match="classifier_width: ResNet has no hidden linear layer in its classifier"):
        set_classifier_width(torchvision.models.resnet18(weights=None), 8)
