"""Score units that no scorer sees by their weights.

Some code passes the weights of a projection to a function instead of calling a layer: that of `nn.MultiheadAttention`,
or of Swin's attention in torchvision. Scorers watch modules that run, so that the heads of such attention have no
scores. Their groups can be pruned all the same; then the units with the smallest weights are removed first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from prune_fe.pruning.cut import Cutter, KeptChannels
from prune_fe.pruning.groups import Group
from prune_fe.pruning.ranking import Array, with_removed_units
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.attention_modules import projection_weights


def find_unseen_layers(
    groups: Sequence[Group], cutter: Cutter, scored: Sequence[str], layers: Sequence[str]
) -> list[str]:
    """Return the layers without scores that get scores from their weights.

    Args:
        groups: The groups of the network.
        cutter: The index mapping of the network.
        scored: Names of the layers that have scores.
        layers: Names of the layers that run.

    Returns:
        Layers whose weights code passes to functions, if they have units that no scored layer has. In a group without
        any score there are none, unless every layer that runs has scores: otherwise the user chose what to score.
    """
    in_weights = {name for (name, side), axis in cutter.axes.items() if side == "out" and axis.in_weights}
    has_all = set(layers) <= {*scored, *in_weights}
    unseen = []
    for group in groups:
        known = [layer for layer in group.layers if layer in scored]
        candidates = [layer for layer in group.layers if layer in in_weights and layer not in known]
        if not candidates or not (known or has_all):
            continue
        is_seen = np.array([[bool(units) for units in group.layer_units[layer]] for layer in known]).any(axis=0)
        for layer in candidates:
            has_units = np.array([bool(units) for units in group.layer_units[layer]])
            if (has_units & ~is_seen).any():
                unseen.append(layer)
    return list(dict.fromkeys(unseen))


def find_other_layers(groups: Sequence[Group], scores: Scores, unseen: Collection[str]) -> set[str]:
    """Return the layers that were scored by something else than the scorer itself.

    Args:
        groups: The groups of the network.
        scores: The scores.
        unseen: The layers that are scored by their weights. They are returned if the scorer itself scored no layer of
            their group, but the linear scorer did.
    """
    others = set(scores.other_scorers)
    for group in groups:
        scored = [layer for layer in group.layers if layer in scores.keep]
        if scored and others.issuperset(scored):
            others.update(layer for layer in group.layers if layer in unseen)
    return others


def score_by_weights(
    model: nn.Module, layers: Sequence[str], kept: KeptChannels, widths: Mapping[str, int]
) -> dict[str, Array]:
    """Return layer -> (units,) the L1 norms of the weights of each unit, NaN for removed ones.

    Args:
        model: The network, which may have lost units.
        layers: The layers.
        kept: The channels that the network has.
        widths: Layer -> number of its units in the whole network.
    """
    modules = dict(model.named_modules())
    scores = {}
    for layer in layers:
        weights = torch.cat(
            [weight.detach().double().abs().flatten(1).sum(1) for weight in projection_weights(modules[layer])]
        )
        scores[layer] = with_removed_units(weights.cpu().numpy(), kept[layer, "out"], widths[layer])
    return scores
