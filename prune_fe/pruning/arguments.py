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
    """Return the layers whose units may be removed although they are linear layers or gates: those that have scores.

    Args:
        model: The network.
        scores: Its scores. Scores that were computed without running the network have entries for gates even if linear
            layers were not asked for. Such gates are not returned.

    Returns:
        All layers with scores if linear layers were asked for, by name or as a kind; or else only the instances of
        nn.Linear among them.
    """
    are_meant, modules = bool(scores.provenance.get("linear")), dict(model.named_modules())
    return frozenset(name for name in scores.keep if are_meant or isinstance(modules.get(name), nn.Linear))
