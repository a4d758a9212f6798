"""Both engines leave the same channels in each group of grouped convolutions."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import Bottleneck

from prune_fe import prune
from prune_fe.errors import InputError
from prune_fe.pruning.grouped_convolutions import ConvolutionPruner
from prune_fe.scoring.score import score
from tests.tracing.networks import Grouped, Multiplied, Net

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

X = torch.randn(1, 3, 16, 16)


class Narrow(Net):
    """A body of a convolution with groups, and one without."""

    def __init__(self, conv: nn.Module, width: int) -> None:
        super().__init__()
        self.conv, self.last = conv, nn.Conv2d(width, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).relu())


class Joined(Net):
    """Each group of channels is the output of another layer, so that they are cut one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.conv, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1, groups=2), nn.Conv2d(8, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.conv(torch.cat([x, self.other(x)], 1)).relu())


class Residual(Net):
    """Convolutions with two and with four groups, whose outputs and inputs are added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 1, groups=4)

    def body(self, x: Tensor) -> Tensor:
        x = x + self.first(x).relu()
        return x + self.second(x)


def make_resnext() -> nn.Module:
    """Return the first two stages of a ResNeXt with four groups, a block each."""
    whole = ResNet(Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=4)
    stem = [whole.conv1, whole.bn1, whole.relu]
    return nn.Sequential(*stem, whole.layer1, whole.layer2, whole.avgpool, nn.Flatten(), nn.Linear(512, 3))


def make_regnet() -> nn.Module:
    """Return a RegNet with groups of eight channels and gates."""
    stages = BlockParams.from_init_params(depth=4, w_0=16, w_a=16, w_m=2, group_width=8, se_ratio=0.25)
    return RegNet(stages, num_classes=3, stem_width=8)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnext": make_resnext,
    "regnet": make_regnet,
    "norm": Grouped,
    "two outputs each": Multiplied,
    "transposed": lambda: Narrow(nn.ConvTranspose2d(8, 12, 2, 2, groups=4), 12),
    "transposed, two outputs each": lambda: Narrow(nn.ConvTranspose2d(8, 16, 2, 2, groups=8), 16),
    "becomes depthwise": lambda: Narrow(nn.Conv2d(8, 8, 3, groups=4), 8),
    "joined": Joined,
    "residual": Residual,
}


@pytest.mark.parametrize(
    "settings", [{"ratio": 0.5}, {"ratio": 0.7, "rounds": 3}, {"target_params": 0.6, "ranking": "global"}], ids=str
)
@pytest.mark.parametrize("name", NETWORKS)
def test_both_engines_give_the_same_bits(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = NETWORKS[name]()
    scores = score(model, scorer="l2-filter", example=X)
    ours, theirs = (prune(model, scores, example=X, engine=engine, **settings) for engine in ("trace", "torch-pruning"))
    assert theirs.parameters < 0.75
    assert ours.steps == theirs.steps
    first, second = ours.model.state_dict(), theirs.model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert list(map(_sizes, ours.model.modules())) == list(map(_sizes, theirs.model.modules()))
    with torch.no_grad():
        assert torch.equal(ours.model.eval()(X), theirs.model.eval()(X))


def _sizes(module: Any) -> tuple[int, ...]:
    return tuple(getattr(module, name, 0) for name in ("in_channels", "out_channels", "groups"))


def test_a_group_with_two_inputs_and_one_output_is_refused_by_name() -> None:
    model = Narrow(nn.Conv2d(8, 4, 1, groups=4), 4)  # torch-pruning takes it for a depthwise convolution
    with pytest.raises(InputError, match="'stem' names channels that do not exist.* for the 4 of 'conv'"):
        prune(model, score(model, scorer="l1-filter"), 0.5, X, engine="torch-pruning")


def test_tensors_wait_until_all_groups_have_lost_equally_many() -> None:
    pruner, conv = ConvolutionPruner(None), nn.Conv2d(8, 4, 1, groups=2)
    weight, bias = conv.weight.detach().clone(), conv.bias.detach().clone()  # type: ignore[union-attr]

    def remove(side: str, *channels: int) -> None:
        (pruner.prune_in_channels if side == "in" else pruner.prune_out_channels)(conv, channels)

    remove("in", 1, 2)
    remove("out", 3)
    assert (conv.in_channels, conv.out_channels) == (6, 3)
    assert torch.equal(conv.weight, weight)
    remove("out", 0)
    assert torch.equal(conv.weight, weight)
    remove("in", 2, 5)  # 4 and 7 of those in the tensor
    assert _sizes(conv) == (4, 2, 2)
    expected = [weight[1, [0, 3]], weight[2, [1, 2]]]
    assert torch.equal(conv.weight, torch.stack(expected))
    assert conv.bias is not None
    assert torch.equal(conv.bias, bias[1:3])
    remove("in", 0, 2)
    assert torch.equal(conv.weight, torch.stack([expected[0][1:], expected[1][1:]]))


def test_convolutions_without_groups_are_left_to_torch_pruning() -> None:
    class Plain:
        def prune_in_channels(self, layer: nn.Module, idxs: Iterable[int]) -> Any:
            return "in", layer, np.array(idxs).tolist()

        def prune_out_channels(self, layer: nn.Module, idxs: Iterable[int]) -> Any:
            return "out", layer, np.array(idxs).tolist()

    pruner, conv = ConvolutionPruner(Plain()), nn.Conv2d(8, 4, 1)
    assert pruner.prune_in_channels(conv, [1]) == ("in", conv, [1])
    assert pruner.prune_out_channels(conv, [0, 2]) == ("out", conv, [0, 2])
