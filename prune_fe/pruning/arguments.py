"""Check the network, the scores and the example that pruning is given."""

from __future__ import annotations

from torch import nn

from prune_fe.errors import InputError
from prune_fe.scoring.fingerprint import hash_architecture
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.nested import Inputs
from prune_fe.tracing.quantised import require_float
from prune_fe.tracing.weights import require_example, require_module, require_sound_weights
from prune_fe.tracing.wrappers import unwrap


def require_scored(model: nn.Module, scores: Scores, example: Inputs | None, function: str) -> nn.Module:
    """Return a network without its wrapper, after checking that it can be pruned by some scores.

    Args:
        model: The network.
        scores: Its scores.
        example: One input of the network.
        function: Name of the function that was called, for messages.

    Raises:
        InputError: An argument is wrong, or the scores are of another network.
    """
    require_module(model)
    if example is None:
        raise InputError(
            f"{function} needs example=, one input of the model: a tensor (1, channels, height, width), a tuple or a "
            "dict"
        )
    require_example(example)
    model = unwrap(model, example)
    require_float(model)
    require_sound_weights(model)
    if not isinstance(scores, Scores):
        raise InputError(f"scores is a {type(scores).__name__}; {function} needs what prune_fe.score returns")
    if scores.provenance.get("architecture_sha256", hash_architecture(model)) != hash_architecture(model):
        raise InputError(
            f"scores are of another network ({scores.provenance.get('model')}, {len(scores.keep)} layers): its modules "
            "or their settings differ; score this one"
        )
    return model


def linear_layers(model: nn.Module, scores: Scores) -> frozenset[str]:
    """Return the layers with scores that are pruned only if linear layers were meant to be scored.

    Args:
        model: The network.
        scores: Its scores. Without an example they hold those of gates, whether these were meant or not.
    """
    are_meant, modules = bool(scores.provenance.get("linear")), dict(model.named_modules())
    return frozenset(name for name in scores.keep if are_meant or isinstance(modules.get(name), nn.Linear))
