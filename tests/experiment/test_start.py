"""The trained network that an experiment starts from."""

from pathlib import Path

import pytest
import torch

from prune_fe.errors import DataError, InputError
from prune_fe.experiment.recipe import ModelOptions
from prune_fe.experiment.start import copy_start
from prune_fe.models.build import draw_weights
from prune_fe.models.saved import save
from prune_fe.models.small_vgg import SmallVGG

NETWORK = SmallVGG(2, 1, stages=[[4], [4]])


def test_a_saved_folder_or_a_given_network_is_copied_and_a_name_is_not(tmp_path: Path) -> None:
    save(NETWORK, tmp_path / "net", {"classes": ["a", "b"]})
    for given, name in ((None, str(tmp_path / "net")), (NETWORK, "SmallVGG")):
        copy = copy_start(given, ModelOptions(name=name), ["a", "b"])
        assert copy is not None
        assert copy is not NETWORK
        assert all(torch.equal(one, other) for one, other in zip(copy.parameters(), NETWORK.parameters(), strict=True))
    assert copy_start(None, ModelOptions(name="vgg-small"), ["a", "b"]) is None


def test_other_classes_and_options_of_a_network_by_name_are_refused(tmp_path: Path) -> None:
    name = str(save(NETWORK, tmp_path / "net", {"classes": ["a", "b"]}))
    with pytest.raises(DataError, match="trained on other classes than the data has: b only in the network; c only in"):
        copy_start(None, ModelOptions(name=name), ["a", "c"])
    with pytest.raises(InputError, match="is a saved network; pretrained, arguments and classifier_width are for one"):
        copy_start(None, ModelOptions(name=name, classifier_width=3), ["a", "b"])


def test_random_weights_are_drawn_for_every_layer() -> None:
    torch.manual_seed(1)
    network = draw_weights(SmallVGG(2, 1, stages=[[4], [4]]))
    torch.manual_seed(2)
    other = {name: weight.clone() for name, weight in network.named_parameters()}
    draw_weights(network)
    changed = {name for name, weight in network.named_parameters() if not torch.equal(weight, other[name])}
    assert {name for name in other if name.endswith("weight") and other[name].ndim == 4} <= changed


def test_a_module_that_cannot_be_drawn_is_named() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    network.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(InputError, match=r"a Sequential has no reset_parameters\(\)"):
        draw_weights(network)
