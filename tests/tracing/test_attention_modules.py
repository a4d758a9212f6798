"""nn.MultiheadAttention, and layers whose weights code passes to functions."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.swin_transformer import (
    PatchMerging,
    PatchMergingV2,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)

from prune_fe.models.saved import load, save
from prune_fe.pruning.analysis import analyse
from prune_fe.pruning.inspection import inspect
from prune_fe.pruning.prune import prune
from prune_fe.scoring.score import score
from prune_fe.tracing.attention_modules import find_attention_tensors
from tests.tracing.test_attention_rules import X, groups_of, sizes_of

DATA: Any = [(x, 0) for x in X]


def vision_transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=20, num_classes=3
    )


def test_heads_and_the_embedding_lose_the_same_share() -> None:
    groups, cutter, fault = groups_of(vision_transformer())
    stream = groups["conv_proj"]
    assert (fault, stream.reason, stream.shares, stream.step) == (None, None, (4, 1, 1), 6)
    assert [len(block) for block in stream.removal_order(np.zeros(24))] == [15, 3, 3]
    names = [f"encoder.layers.encoder_layer_{n}.self_attention" for n in (0, 1)]
    causes = [f"MultiheadAttention {name!r}, whose heads have the width of its inputs" for name in names]
    assert list(stream.demands) == causes
    assert sizes_of(cutter) == {"hidden_dim": [16]}


def test_a_pruned_attention_has_the_sizes_of_its_weights() -> None:
    torch.manual_seed(1)
    model = vision_transformer().eval()
    scores = score(model, DATA, "l1-filter", linear=True)
    pruned = prune(model, scores, 0.5, X[:1])
    for layer in pruned.model.modules():
        if isinstance(layer, nn.MultiheadAttention):
            assert (layer.embed_dim, layer.num_heads, layer.head_dim, layer.kdim) == (8, 2, 4, 8)
            assert [tuple(tensor.shape) for tensor in layer.parameters()] == [(24, 8), (24,), (8, 8), (8,)]
            assert layer.out_proj.in_features == layer.out_proj.out_features == 8
    assert "they were ranked by the L1 norms of their weights: encoder.layers.encoder_layer_0.self_att" in str(
        pruned.notes
    )
    # Heads with small weights go first.
    step = pruned.steps[0]
    name = "encoder.layers.encoder_layer_1.self_attention"
    norms = model.get_parameter(f"{name}.in_proj_weight").detach().abs().sum(1).view(3, 4, 4).sum((0, 2))
    lost = {unit // 4 % 4 for unit in step.removed[name]}
    assert lost == set(norms.argsort()[:2].tolist())


def test_pruned_attention_is_saved_and_loaded(tmp_path: Path) -> None:
    swin = SwinTransformer([4, 4], 12, depths=[2], num_heads=[3], window_size=[4, 4], num_classes=3)
    for number, model in enumerate((vision_transformer(), swin)):
        fresh = copy.deepcopy(model)
        for weight in model.parameters():  # the classifier's are zero
            nn.init.normal_(weight, std=0.2)
        scores = score(model.eval(), DATA, "l1-filter", linear=True)
        pruned = prune(model, scores, 0.5, X[:1])
        difference, scale = pruned.difference(model, X)
        assert difference < 1e-4 * scale
        loaded = load(save(pruned.model, tmp_path / str(number)), fresh)
        assert torch.equal(loaded.eval()(X), pruned.model.eval()(X))


def test_inspection_counts_queries_keys_and_values() -> None:
    table = inspect(vision_transformer(), X[:1]).set_index("layer")
    row = table.loc["encoder.layers.encoder_layer_1.self_attention"]
    assert (row["units"], row["removable"], row["step"], row["reason"]) == (48, 36, 12, "")
    assert (table.loc["conv_proj", "removable"], table.loc["conv_proj", "step"]) == (12, 4)


class Cross(nn.Module):
    """Attention to tokens of another width, with all that the module can have."""

    def __init__(self, **settings: bool) -> None:
        super().__init__()
        self.queries, self.keys = nn.Conv2d(3, 12, 16, 16), nn.Conv2d(3, 10, 8, 8)
        self.values = nn.Conv2d(3, 6, 8, 8)
        self.attn = nn.MultiheadAttention(12, 3, kdim=10, vdim=6, batch_first=True, **settings)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2).transpose(1, 2) for f in (self.queries, self.keys, self.values))
        return self.head(self.attn(q, k, v)[0].mean(1))


@pytest.mark.parametrize("settings", [{}, {"add_bias_kv": True}, {"add_zero_attn": True, "bias": False}])
def test_queries_keys_and_values_of_different_widths(settings: dict[str, bool]) -> None:
    groups, _, fault = groups_of(Cross(**settings))
    assert fault is None
    assert {name: (len(group.sets), group.reason) for name, group in groups.items()} == {
        "queries": (15, None),
        "keys": (10, None),
        "values": (6, None),
        "attn.out_proj": (12, None),
    }


class Layers(nn.Module):
    """torch's own transformer, whose fast path calls no module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, 16, 16), nn.Linear(8, 3)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


def test_an_encoder_of_torch() -> None:
    groups, _, fault = groups_of(Layers())
    assert fault is None
    assert {name: (len(group.sets), group.shares, group.reason) for name, group in groups.items()} == {
        "embed": (12, (4, 1, 1), None),
        "encoder.layers.0.linear1": (12, (1,), None),
        "encoder.layers.1.linear1": (12, (1,), None),
    }


@pytest.mark.parametrize(
    ("block", "merging"), [(SwinTransformerBlock, PatchMerging), (SwinTransformerBlockV2, PatchMergingV2)]
)
def test_code_that_computes_the_width_of_its_heads_from_its_inputs(block: type, merging: type) -> None:
    model = SwinTransformer(
        [4, 4],
        12,
        depths=[2, 2],
        num_heads=[3, 6],
        window_size=[4, 4],
        num_classes=3,
        block=block,
        downsample_layer=merging,
    )
    groups, cutter, fault = groups_of(model)
    assert fault is None
    assert {group.reason for group in groups.values()} == {None}
    assert groups["features.0.0"].shares == (4, 1, 1)
    assert groups["features.2.reduction"].shares == (4, 1, 1)
    assert cutter.axes["features.1.0.attn.qkv", "out"].in_weights
    tables = [axes for name, axes in cutter.tensor_axes.items() if name.endswith("relative_position_bias_table")]
    assert all(dim == 1 for axes in tables for _, dim in axes)


def test_only_the_parameters_that_exist_have_channels() -> None:
    assert list(find_attention_tensors(nn.MultiheadAttention(4, 2, bias=False), "out")) == [("in_proj_weight", 0)]
    separate = nn.MultiheadAttention(4, 2, kdim=3, add_bias_kv=True)
    assert list(find_attention_tensors(separate, "key out")) == [("k_proj_weight", 0), ("bias_k", 2)]
    assert list(find_attention_tensors(separate, "in")) == [("q_proj_weight", 1)]


def test_without_scores_of_linear_layers_the_embedding_stays() -> None:
    (stream,) = analyse(vision_transformer().eval(), X).groups
    assert stream.reason is not None
    assert stream.reason.startswith(
        "its units cannot keep the equal parts that are demanded by MultiheadAttention 'enc"
    )
