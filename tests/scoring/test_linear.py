"""Networks of linear layers are scored, and pruned by their scores."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prune_fe
from prune_fe.errors import InputError
from prune_fe.tracing.feature_maps import mask
from prune_fe.tracing.layers import find_layers_with_units

LABELS = torch.arange(12) % 3


def mlp() -> Any:
    torch.manual_seed(0)
    first, second = [nn.Linear(32, 10), nn.BatchNorm1d(10), nn.LeakyReLU()], [nn.Linear(10, 8), nn.GELU()]
    return nn.Sequential(nn.Flatten(), *first, *second, nn.Linear(8, 3)).double().eval()


class Block(nn.Module):
    """Attention and a hidden layer, each behind a norm and beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.qkv, self.projection = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(images, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(images, tokens, width)
        x = x + self.projection(mixed)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class SmallViT(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 2, stride=2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("scorer", ["l1-filter", "taylor", "bn-scale", "nisp", "class-selectivity"])
def test_a_network_without_convolutions_is_scored_and_pruned(scorer: str, images: Tensor) -> None:
    net = mlp()
    scores = prune_fe.score(net, [(images, LABELS)], scorer, linear=True, linear_scorer="l2-filter")
    assert list(scores.keep) == ["1", "4", "6"]
    pruned = prune_fe.prune(net, scores, 0.5, images[:1])
    assert [module.out_features for module in pruned.model.modules() if isinstance(module, nn.Linear)] == [5, 4, 3]
    removed = {layer: units for step in pruned.steps for layer, units in step.removed.items()}
    assert sorted(removed["1"]) == sorted(scores.weakest("1", 5))
    assert sorted(removed["4"]) == sorted(scores.weakest("4", 4))
    layers = find_layers_with_units(net, images[:2], linear=True)
    with torch.no_grad(), mask(net, layers, removed):
        masked = net(images)
    torch.testing.assert_close(pruned.model(images), masked)


@pytest.mark.parametrize("scorer", ["taylor", "apoz"])
def test_the_hidden_layers_of_a_vision_transformer_are_scored_and_pruned(scorer: str, images: Tensor) -> None:
    torch.manual_seed(1)
    net = SmallViT().double().eval()
    scores = prune_fe.score(net, [(images, LABELS)], scorer, linear=True)
    names = ["patches", *(f"blocks.{n}.{part}" for n in (0, 1) for part in ("qkv", "projection", "fc1", "fc2")), "head"]
    assert list(scores.keep) == names
    pruned = prune_fe.prune(net, scores, {"*fc1": 0.5}, images[:1])
    removed = {layer: units for step in pruned.steps for layer, units in step.removed.items() if units}
    assert {layer: sorted(units) for layer, units in removed.items()} == {
        layer: sorted(scores.weakest(layer, 16)) for layer in ("blocks.0.fc1", "blocks.1.fc1")
    }
    with torch.no_grad(), mask(net, find_layers_with_units(net, images[:2], linear=True), removed):
        masked = net(images)
    torch.testing.assert_close(pruned.model(images), masked)
    if scorer == "apoz":
        values: list[Tensor] = []
        fc1 = net.get_submodule("blocks.1.fc1")
        hook = fc1.register_forward_hook(lambda module, inputs, output: values.append(output.detach()))
        net(images)
        hook.remove()
        share = (F.gelu(values[0]) <= 0).double().mean((0, 1))
        assert np.allclose(scores.keep["blocks.1.fc1"], -share.numpy())


def test_what_cannot_be_scored_says_why_and_what_does(images: Tensor) -> None:
    data = [(images, LABELS)]
    with pytest.raises(InputError, match=r"Sequential has no convolution \(linear=True takes linear layers\)"):
        prune_fe.score(mlp(), data, "feature-entropy")
    no_maps = r"feature-entropy: layers '1', '4', '6': its units have no feature maps; linear_scorer .* such as taylor"
    with pytest.raises(InputError, match=no_maps):
        prune_fe.score(mlp(), data, "feature-entropy", linear=True)
    with pytest.raises(InputError, match="hrank: layer '4': its units have no feature maps; linear_scorer"):
        prune_fe.score(mlp(), data, "hrank", layers=["4"])
    with pytest.raises(InputError, match="linear_scorer: taylor scores linear layers, set linear: true too"):
        prune_fe.score(mlp(), data, "hrank", linear_scorer="taylor")
    with pytest.warns(UserWarning, match="feature-entropy can score no layer: all scores .* are those of apoz"):
        scores = prune_fe.score(mlp(), data, "feature-entropy", linear=True, linear_scorer="apoz")
    assert set(scores.other_scorers.values()) == {"apoz"}
