"""NISP (Yu et al. 2018, "NISP: Pruning Networks using Neuron Importance Score Propagation").

The final scores come from infinite feature selection, "Inf-FS" (Roffo et al. 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from prune_fe.errors import InputError, describe_error
from prune_fe.scorers.base import LayerScore, Rows, Scorer, Sums, check_choice, check_count
from prune_fe.scorers.infinite_feature_selection import Sigma, infinite_feature_selection
from prune_fe.tracing.feature_maps import follow
from prune_fe.tracing.layers import Layer, find_response
from prune_fe.tracing.nested import Inputs, map_tensors, run
from prune_fe.tracing.ops import Trait, functions, functions_named
from prune_fe.tracing.survey import ACTIVATIONS, IDENTITIES
from prune_fe.tracing.watching import evaluating


@dataclass(frozen=True)
class NISP(Scorer):
    """NISP: the score of a unit is the sum of s_k over the positions of its map, s_k = |W_{k+1}|ᵀ s_{k+1} (eq. 19).

    The scores are propagated backwards, layer by layer, from the final responses: the features that the linear
    classifier reads. The scores of these are Inf-FS's: with A_ij = α max(σ_i, σ_j) + (1 − α)(1 − |Spearman_ij|) over
    the responses to the images and S = (I − rA)⁻¹ − I, they are the row sums of S.

    Linear layers, convolutions of every kind, batch norms, poolings, sums and rearrangements pass scores on; an
    activation, whose slope the paper bounds by 1, does so unchanged. What divides by a statistic of its input (layer,
    group and instance norms, softmax) or multiplies two maps (attention, gates) has no weights of its own for eq. 19:
    a network with such a function between a layer and the classifier is refused, and the function named. Layers from
    which no score comes, such as the classifier itself, have the score 0.

    A response that never varies has no rank correlation. It counts as |Spearman| = 1, so that a dead response gains
    nothing (the authors' program takes 0, which makes dead responses the most important ones).

    With `ratio`, this share of the units of each scored layer, those with the lowest scores, pass no score on to the
    layers in front of them (Yu et al., "Pruning Networks Using NISP": layers are pruned in the same backward pass that
    propagates the scores, and pruned neurons propagate none). Give it the ratio of the pruning. Like `prune` with a
    ratio, it leaves floor((1 − ratio) n) of n units, at least one, and of equal scores the first ones go. Each layer
    goes by its own scores, also where a residual sum ties it to others.

    Attributes:
        alpha: α, the weight of the standard deviations against the correlations.
        r: Weight of a path's length; None for 0.9 / ρ(A), which makes the scores the same for A and for c·A. Only a
            fixed r lets the scores follow the scale of the responses, as in table 9 of Zhao & Zhang 2022.
        sigma: The deviations in A: "raw", as the formula of the paper has them, or "minmax", scaled so that the
            smallest is 0 and the largest 1, as in all published programs of Inf-FS's authors
            (github.com/giorgioroffo/Infinite-Feature-Selection, InfFS_U.m). A correlation is at most 1, so that the raw
            deviations of small responses count for almost nothing beside the correlations.
        rows: The largest number of images. Inf-FS needs the ranks of all responses, so each image leaves a row.
        features: The largest number of features of the classifier. Inf-FS holds some six float64 matrices of
            features × features.
        ratio: Share of the units of each layer that pass no score on, in [0, 1). With 0 all do.
    """

    alpha: float = 0.5
    r: float | None = None
    rows: int = 10_000
    features: int = 8192
    sigma: Sigma = "raw"
    ratio: float = 0.0
    later_settings: ClassVar[Mapping[str, Any]] = {"sigma": "raw", "ratio": 0.0}

    def __post_init__(self) -> None:
        if type(self.alpha) not in (int, float) or not 0 <= self.alpha <= 1:
            raise InputError(f"nisp: alpha is {self.alpha!r}, allowed are numbers from 0 to 1")
        if self.r is not None and (type(self.r) not in (int, float) or not 0 < self.r < math.inf):
            raise InputError(f"nisp: r is {self.r!r}, allowed are positive numbers, or none for 0.9 / ρ(A)")
        for name in ("rows", "features"):
            check_count("nisp", name, getattr(self, name), least=2)
        check_choice("nisp", "sigma", self.sigma, get_args(Sigma))
        if type(self.ratio) not in (int, float) or not 0 <= self.ratio < 1:
            raise InputError(f"nisp: ratio is {self.ratio!r}, allowed are numbers from 0, below 1")

    def why_unfit(self, layer: Layer) -> str | None:
        """Return None: scores are propagated back to every layer, with or without maps."""
        return None

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:
        """Raise InputError if there are more images than `rows`, or only one."""
        if images > self.rows:
            raise InputError(
                f"nisp keeps a row for each image, at most {self.rows}, and there are {images}; score on fewer samples "
                "or set rows"
            )
        if images == 1:
            raise InputError("nisp compares the responses to several images, there is 1")
        if self.ratio and (repeated := [layer.name for layer in layers if layer.runs > 1]):
            raise InputError(
                f"nisp: layer {repeated[0]!r} runs several times, and only after all runs it is known which of its "
                "units pass no score on; leave it out, or ratio"
            )

    def observed_layers(self, model: nn.Module, layers: Sequence[Layer], example: Inputs) -> Sequence[Layer]:
        """Return the layer of the final responses.

        Raises:
            InputError: It has more than `features` features, or scores cannot be propagated through the network.
        """
        response = find_response(model, example)
        if response.units > self.features:
            raise InputError(
                f"nisp: layer {response.name!r} reads {response.units} features, for which Inf-FS needs matrices of "
                f"{8 * response.units**2 / 2**30:.1f} GiB; at most {self.features} are allowed (setting features)"
            )
        propagate_scores(model, layers, response, torch.ones(1), example)  # only for its errors
        return (response,)

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return `responses`, one row of final responses per image."""
        responses = maps.flatten(1)
        if not responses.isfinite().all():
            raise InputError("the final responses hold NaN or infinite values")
        return {"responses": Rows(responses.cpu(), self.rows)}

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Inputs | None = None
    ) -> dict[str, LayerScore]:
        """Return the scores of every layer, propagated from the final responses."""
        assert example is not None
        ((name, total),) = sums.items()
        rows = total["responses"]
        assert isinstance(rows, Rows)
        if len(rows.values) < 2:
            raise InputError("nisp compares the responses to several images, there was 1")
        final = infinite_feature_selection(rows.values, self.alpha, self.r, self.sigma)
        response = Layer(name, len(final), (1, 1), at_input=True)
        scores = propagate_scores(model, layers, response, final, example, self.ratio)
        return {layer.name: LayerScore(scores[layer.name], {"nisp_score": scores[layer.name]}) for layer in layers}


def propagate_scores(
    model: nn.Module,
    layers: Sequence[Layer],
    response: Layer,
    final: Tensor,
    example: Inputs,
    ratio: float = 0.0,
) -> dict[str, Tensor]:
    """Propagate the scores of the final responses back to the units of every layer.

    s ↦ |W|ᵀ s through all layers is the backward pass of a network whose weights are replaced by their absolute values
    and in which everything else is linear.

    Args:
        model: The network.
        layers: The layers to be scored.
        response: The layer whose input the final responses are.
        final: The scores of the final responses, (features,).
        example: One image, (1, channels, height, width), or other inputs.
        ratio: Share of the units of each layer that pass no score on. Each layer runs once, unless it is 0.

    Returns:
        By name of the layer, the sum of s_k over the positions of each unit's map, (units,) float64.

    Raises:
        InputError: The network has an operation through which scores cannot be propagated.
    """
    # A shift is added to every position of a unit's map, so its gradient is the sum of s_k over the positions.
    shifts: dict[str, Tensor] = {}
    responses: list[Tensor] = []

    def shift_maps(layer: Layer, maps: Tensor, in_place: bool) -> Tensor:
        if layer is response:
            responses.append(maps.flatten())
            raise _ResponsesReached
        if layer.name not in shifts:  # a layer that runs several times has the sum of the scores of its runs
            shifts[layer.name] = torch.zeros(layer.units, dtype=maps.dtype, device=maps.device, requires_grad=True)
        if ratio and maps.requires_grad:  # the gradient at the shift below is still that of all units
            maps.register_hook(lambda scores: _without_weakest(scores, layer.channel_dim, ratio))
        shape = [1] * maps.ndim
        shape[layer.channel_dim] = layer.units
        return maps + shifts[layer.name].view(shape)

    def zeros_like(tensor: Tensor) -> Tensor:
        device = "cpu" if tensor.device.type == "mps" else tensor.device  # mps has no float64
        is_float = tensor.is_floating_point()
        return torch.zeros(tensor.shape, dtype=torch.float64, device=device) if is_float else tensor.to(device)

    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        # The network is linear now, so its input does not matter.
        inputs = map_tensors(zeros_like, example)
        with suppress(_ResponsesReached), _AbsoluteWeights(), follow(model, [*layers, response], shift_maps):
            try:
                run(model, inputs)
            except InputError:
                raise
            except (ValueError, TypeError) as error:  # the network's own code refuses float64, as a GRU does
                raise InputError(
                    f"nisp cannot propagate scores: {type(model).__name__} does not run in float64 "
                    f"({describe_error(error)})"
                ) from error
        total = (responses[0] * final.to(responses[0]).clone()).sum()
        if not total.requires_grad:
            raise InputError("nisp cannot propagate scores: the maps of no layer reach the final responses")
        gradients = torch.autograd.grad(total, list(shifts.values()), allow_unused=True, materialize_grads=True)
    zeros = {layer.name: torch.zeros(layer.units, dtype=torch.float64) for layer in layers}
    return zeros | {name: gradient.cpu() for name, gradient in zip(shifts, gradients, strict=True)}


def _without_weakest(scores: Tensor, dim: int, ratio: float) -> Tensor:
    """Return the scores of maps with zeros at a share of the units, those with the lowest sums.

    Args:
        scores: The score of each value of the maps.
        dim: The dimension of the units.
        ratio: The share. As in `prune`, floor((1 − ratio) n) of n units keep their scores, at least one.
    """
    sums = scores.movedim(dim, 0).flatten(1).sum(dim=1)
    kept = max(1, math.floor((1 - Fraction(str(ratio))) * len(sums)))
    return scores.index_fill(dim, sums.argsort(stable=True)[: len(sums) - kept], 0)


class _ResponsesReached(Exception):
    """Ends the forward pass at the final responses: what the network does with them is irrelevant."""


class _AbsoluteWeights(TorchFunctionMode):
    """A mode in which networks are linear, in float64, with the absolute values of their weights and without biases.

    Activations are identities, a batch norm multiplies by |γ| / √(var + ε), and a pooling takes the mean, so that each
    value of a window gets an equal share of the score.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LINEARISED:
            return LINEARISED[func](*args, **kwargs)
        if func in ACTIVATIONS or func in IDENTITIES:
            return args[0]
        if func in LINEAR:
            return func(*args, **kwargs)
        fault = InputError(
            f"nisp cannot propagate scores through {getattr(func, '__name__', func)}: how it passes "
            "them on is not known"
        )
        try:
            output = func(*args, **kwargs)
        except RuntimeError as error:  # a function that is not listed mixes float64 maps with float32 weights
            raise fault from error
        # Only a function whose output depends on the maps needs a rule.
        if _has_gradient(output) and _has_gradient((args, list(kwargs.values()))):
            raise fault
        return output


def _convolution(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a convolution, transposed or not, with the absolute values of its weights and without a bias."""

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        return function(x.double(), weight.detach().to(x.device, torch.float64).abs(), None, *args, **kwargs)

    return convolve


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x.double(), weight.detach().to(x.device, torch.float64).abs())


def _batch_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if var is None:
        raise InputError("nisp cannot propagate scores through a batch norm without running statistics")
    scale = 1 / (var.to(x.device, torch.float64) + eps).sqrt()
    if weight is not None:
        scale = scale * weight.detach().to(x.device, torch.float64).abs()
    return x * scale.view(-1, *[1] * (x.ndim - 2))


def _max_pool(average: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the average pooling that replaces a max pooling."""

    def pool(
        x: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        if (dilation if isinstance(dilation, int) else max(dilation)) != 1 or return_indices:
            raise InputError("nisp cannot propagate scores through a dilated max pooling, or one that returns indices")
        return average(x, kernel_size, kernel_size if stride is None else stride, padding, ceil_mode, False)

    return pool


def _adaptive_max_pool(average: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the adaptive average pooling that replaces an adaptive max pooling."""
    return lambda x, output_size, return_indices=False: average(x, output_size)


def _mean(x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return x.mean(dim, keepdim)


def _mul(x: Any, factor: Any) -> Any:
    """Multiply by |factor|: a number, or a constant tensor as in the normalisation of the input."""
    if _has_gradient((x, factor)) and isinstance(x, Tensor) and isinstance(factor, Tensor):
        raise InputError("nisp cannot propagate scores through a product of two maps: it is not linear")
    return abs(factor) * x if isinstance(x, Tensor) else abs(x) * factor


def _mul_in_place(x: Tensor, factor: Any) -> Tensor:
    if isinstance(factor, Tensor):
        raise InputError("nisp cannot propagate scores through a product of two maps: it is not linear")
    return x.mul_(abs(factor))


def _div(x: Any, divisor: Any) -> Any:
    return _mul(x, 1 / divisor)


def _sub(x: Any, constant: Any) -> Any:
    """Return x, whose scores a constant does not change; a difference of maps would subtract scores."""
    if _has_gradient(constant) or not isinstance(x, Tensor):
        raise InputError("nisp cannot propagate scores through a difference of maps")
    return x


RULES: Mapping[str, Callable[..., Tensor]] = {
    "conv1d": _convolution(torch.conv1d),
    "conv2d": _convolution(torch.conv2d),
    "conv3d": _convolution(torch.conv3d),
    "conv_transpose1d": _convolution(torch.conv_transpose1d),
    "conv_transpose2d": _convolution(torch.conv_transpose2d),
    "conv_transpose3d": _convolution(torch.conv_transpose3d),
    "linear": _linear,
    "max_pool1d": _max_pool(F.avg_pool1d),
    "max_pool2d": _max_pool(F.avg_pool2d),
    "max_pool3d": _max_pool(F.avg_pool3d),
    "adaptive_max_pool1d": _adaptive_max_pool(F.adaptive_avg_pool1d),
    "adaptive_max_pool2d": _adaptive_max_pool(F.adaptive_avg_pool2d),
    "adaptive_max_pool3d": _adaptive_max_pool(F.adaptive_avg_pool3d),
    "amax": _mean,
    "mul": _mul,
    "imul": _mul_in_place,
    "div": _div,
    "sub": _sub,
    "contiguous": Tensor.contiguous,  # no plain identity: a view that follows needs contiguous memory
}
"""Name of an operator -> the linear function that replaces its functions."""

LINEARISED: Mapping[Any, Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,  # torch.batch_norm takes its arguments in another order
    **{function: rule for name, rule in RULES.items() for function in functions_named(name)},
}
"""Function -> the linear function that replaces it."""

LINEAR = functions(traits=Trait.NON_NEGATIVE)
"""Functions that are linear with non-negative weights already, and are not replaced."""


def _has_gradient(value: Any) -> bool:
    """Return whether the value is or contains a tensor that depends on some map."""
    if isinstance(value, list | tuple):
        return any(_has_gradient(entry) for entry in value)
    return isinstance(value, Tensor) and value.requires_grad
