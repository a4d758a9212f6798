"""Attention is cut by whole heads, and by the channels of the residual stream."""

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prune_fe.pruning.analysis import _random_half, analyse
from prune_fe.pruning.cut import Cutter
from prune_fe.pruning.groups import Group

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def groups_of(model: nn.Module) -> tuple[dict[str, Group], Cutter, str | None]:
    """Return the groups by their first layers, the cutter, and what is wrong with a cut of all of them."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    analysis = analyse(model.eval(), X, linear)
    removed = [set_id for group in analysis.groups if group.reason is None for set_id in _random_half(group, seed=1)]
    fault = analysis.verifier.find_fault(analysis.cutter, removed)
    return {group.layers[0]: group for group in analysis.groups}, analysis.cutter, fault


def sizes_of(cutter: Cutter) -> dict[str, list[int]]:
    """Return the sizes in the code that follow, by the last part of the name."""
    return {name: list(map(len, counted)) for (_, name), counted in cutter.code_sizes.items()}


Body = Callable[["Attending", Tensor, Tensor, Tensor], Tensor]


def fused(own: "Attending", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def by_hand(own: "Attending", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


def by_einsum(own: "Attending", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("b h i d, b h j d -> b h i j", q, k).softmax(-1)
    return torch.einsum("bhij, bhjd -> bhid", scores, v)


def with_table(own: "Attending", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Relative position biases, (positions, heads), as Swin has them."""
    index = torch.arange(16).view(4, 4) % 7
    bias = own.table[index.view(-1)].view(4, 4, -1).permute(2, 0, 1).contiguous()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=16 * torch.sigmoid(bias.unsqueeze(0)))


def rotated(own: "Attending", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rotary embeddings, (tokens, channels of a head), and a norm of each head."""
    sin, cos = own.rope.tensor_split(2, -1)
    q, k = (x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape) * sin for x in (q, k))
    return F.scaled_dot_product_attention(own.head_norm(q), own.head_norm(k), v)


def with_flat_heads(own: "Attending", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads as a part of the batch, and a temperature for each head."""
    q, k, v = (part.reshape(-1, *part.shape[2:]) for part in (q, k, v))
    scores = torch.bmm(q, k.mT).view(-1, own.heads, 4, 4) * own.temperature
    return (scores.softmax(-1).flatten(0, 1) @ v).view(-1, own.heads, 4, own.head_dim)


def over_channels(own: "Attending", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Cross-covariance attention: the scores are between the channels of a head."""
    return ((q.mT @ k).softmax(-1) @ v.mT).mT


def talking(own: "Attending", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A linear layer mixes the scores of the heads."""
    scores = own.talk((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return scores.softmax(-1) @ v


class Attending(nn.Module):
    """Four tokens of width 10, attention with three heads of 4 channels, and a mean over the tokens."""

    def __init__(self, attend: Body, heads: int = 3) -> None:
        super().__init__()
        inner = 4 * heads
        self.attend, self.heads, self.head_dim, self.inner, self.unused = attend, heads, 4, inner, heads
        self.embed, self.q, self.k = nn.Conv2d(3, 10, 16, 16), nn.Linear(10, inner), nn.Linear(10, inner)
        self.v, self.out, self.head = nn.Linear(10, inner), nn.Linear(inner, 10), nn.Linear(10, 3)
        self.norm, self.talk = nn.LayerNorm(10), nn.Linear(3, 3) if attend is talking else nn.Identity()
        self.rope, self.head_norm = nn.Buffer(torch.randn(4, 8)), nn.LayerNorm(4)
        self.table, self.temperature = nn.Parameter(torch.randn(7, 3)), nn.Parameter(torch.ones(3, 1, 1))

    def tokens(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        y = self.norm(x)
        q, k, v = (f(y).view(len(x), 4, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = self.attend(self, q, k, v).transpose(1, 2).reshape(len(x), 4, self.inner)
        return self.head((x + self.out(y)).mean(1))


@pytest.mark.parametrize("attend", [fused, by_hand, by_einsum, with_table, with_flat_heads, over_channels, rotated])
def test_heads_are_removed_as_a_whole(attend: Body) -> None:
    groups, cutter, fault = groups_of(Attending(attend))
    own, stream = groups["q"], groups["embed"]
    assert (own.reason, stream.reason, fault) == (None, None, None)
    assert [own.layer_units[name] for name in ("q", "k", "v")] == [((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))] * 3
    assert stream.layers == ("embed", "out")
    assert sizes_of(cutter) == {"heads": [3], "inner": [12]}
    removed = cutter.axis_sets["q", "out"][[0]]
    kept = cutter.channels_without(removed.tolist())
    assert [kept[key].tolist() for key in (("k", "out"), ("out", "in"))] == [list(range(4, 12))] * 2


def test_a_size_that_is_the_number_of_heads_by_chance_stays() -> None:
    groups, cutter, fault = groups_of(Attending(fused, heads=4))
    assert (len(groups["q"].sets), groups["q"].reason, fault) == (4, None, None)
    assert sizes_of(cutter) == {"heads": [4], "inner": [16]}


class Bias(nn.Module):
    """Its method is called, and not the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.table = 3, nn.Parameter(torch.randn(16, 3))

    def values(self) -> Tensor:
        return self.table.view(16, self.heads).view(4, 4, self.heads).permute(2, 0, 1)


class Biased(Attending):
    def __init__(self) -> None:
        super().__init__(lambda own, q, k, v: (q @ k.mT + own.bias.values()).softmax(-1) @ v)  # type: ignore[operator]
        self.bias = Bias()


def test_sizes_of_a_module_whose_method_is_called_follow() -> None:
    groups, cutter, fault = groups_of(Biased())
    assert (groups["q"].reason, fault) == (None, None)
    assert cutter.code_sizes.keys() == {("", "heads"), ("", "inner"), ("bias", "heads")}


def test_a_layer_that_mixes_the_scores_of_heads_has_heads_for_channels() -> None:
    groups, cutter, fault = groups_of(Attending(talking))
    assert fault is None
    assert (groups["q"].layers, groups["v"].layers) == (("q", "k"), ("v", "talk"))
    assert np.array_equal(cutter.axis_sets["talk", "in"], cutter.axis_sets["q", "out"][::4])


def test_values_alone_have_no_heads() -> None:
    """With one head and no scale of its own, only the values can lose channels."""

    class Single(Attending):
        def forward(self, x: Tensor) -> Tensor:
            x = self.tokens(x)
            return self.head(self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))).mean(1))

    groups, _, fault = groups_of(Single(fused))
    assert groups["q"].reason == (
        "its channels go through scaled_dot_product_attention() in the network's code, which scales by their number"
    )
    assert (len(groups["v"].sets), groups["v"].reason, fault) == (12, None, None)


def test_a_scale_that_is_given_lets_single_channels_go() -> None:
    class Single(Attending):
        def forward(self, x: Tensor) -> Tensor:
            x = self.tokens(x)
            y = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), scale=0.3)
            return self.head(self.out(y).mean(1))

    groups, _, fault = groups_of(Single(fused))
    assert (len(groups["q"].sets), groups["q"].layers, groups["q"].reason, fault) == (12, ("q", "k"), None, None)


class Shared(Attending):
    """Three heads of queries, and keys and values of one."""

    def __init__(self, attend: Body) -> None:
        super().__init__(attend)
        self.k, self.v = nn.Linear(10, 4), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        q = self.q(x).view(len(x), 4, self.heads, -1).transpose(1, 2)
        y = self.attend(self, q, self.k(x)[:, None], self.v(x)[:, None])
        return self.head(self.out(y.transpose(1, 2).flatten(2)).mean(1))


def test_keys_that_all_heads_share_lose_channels_with_the_queries() -> None:
    groups, _, fault = groups_of(Shared(by_hand))
    assert fault is None
    assert groups["q"].layer_units["q"] == ((0, 4, 8), (1, 5, 9), (2, 6, 10), (3, 7, 11))
    assert (groups["q"].reason, groups["v"].reason, len(groups["v"].sets)) == (None, None, 4)


def test_heads_of_queries_go_where_the_scale_depends_on_the_shared_keys() -> None:
    groups, cutter, fault = groups_of(Shared(fused))
    assert (fault, groups["q"].reason, len(groups["q"].sets)) == (None, None, 3)
    assert groups["k"].reason == ("all heads of scaled_dot_product_attention() in the network's code read its channels")
    assert sizes_of(cutter) == {"heads": [3]}


class Inward(nn.Module):
    """Heads as wide as the inputs: the number of tokens, an attribute, is that width by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.tokens = 4, 16
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        assert tokens == self.tokens
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        return self.out(y)


def test_a_width_that_an_attribute_has_by_chance_is_tied_to_the_inputs() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 8, 8), nn.Flatten(2), Swapped(), Inward(), nn.LayerNorm(16), Swapped(), nn.AdaptiveAvgPool1d(1)
    )
    groups, cutter, fault = groups_of(nn.Sequential(*model, nn.Flatten(), nn.Linear(16, 3)))
    assert fault is None
    assert (groups["0"].reason, groups["0"].shares) == (None, (4, 1))
    assert groups["0"].demands == ("the heads of '3', which have the width of its inputs",)
    assert sizes_of(cutter) == {"heads": [4]}


class Swapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@pytest.mark.parametrize("is_fused", [True, False])
def test_a_vision_transformer_of_timm_loses_channels_heads_and_hidden_units(is_fused: bool) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=24, num_heads=3, depth=2, img_size=32, patch_size=8, num_classes=5
    )
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = is_fused  # type: ignore[assignment]
    groups, cutter, fault = groups_of(model)
    assert fault is None
    assert {name: (len(group.sets), group.reason) for name, group in groups.items()} == {
        "patch_embed.proj": (24, None),
        "blocks.0.attn.qkv": (3, None),
        "blocks.0.mlp.fc1": (96, None),
        "blocks.1.attn.qkv": (3, None),
        "blocks.1.mlp.fc1": (96, None),
    }
    tensors = [("cls_token", 2), ("pos_embed", 2)]
    assert [cutter.tensor_axes[name] for name, _ in tensors] == [[(("", name), dim)] for name, dim in tensors]
    assert sizes_of(cutter) == {"num_heads": [3], "attn_dim": [24]}
