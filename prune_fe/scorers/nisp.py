"""NISP (Yu et al. 2018, "NISP: Pruning Networks using Neuron Importance Score Propagation"), with infinite feature
selection (Roffo et al. 2015) at the final response layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from prune_fe.errors import InputError
from prune_fe.scorers.base import LayerScore, Rows, Scorer, Sums
from prune_fe.tracing.feature_maps import ACTIVATIONS, IDENTITIES, Layer, evaluating, find_response, follow


@dataclass(frozen=True)
class NISP(Scorer):
    """keep = Σ over the positions of the unit's map of s_k, where s_k = |W_{k+1}|ᵀ s_{k+1} (eq. 19) is taken back
    from the final response layer, what the classifier is given, through every layer behind the unit.

    The final scores are Inf-FS's: A_ij = α max(σ_i, σ_j) + (1 − α)(1 − |Spearman_ij|) over the responses to the
    images, S = (I − rA)⁻¹ − I, and s = the row sums of S, with r = 0.9 / ρ(A), or the number that is given as `r`.
    r = 0.9 / ρ(A) makes s the same for A and for c·A; only a fixed r lets the scores follow the responses' scale, as
    they do in table 9 of Zhao & Zhang 2022.

    Inf-FS needs the ranks of all responses, so each image leaves a row: `rows` bounds how many images there may be.
    It takes some six matrices of features × features float64, so `features` bounds what the classifier may be given.
    A response that never varies has no rank correlation; it counts as |Spearman| = 1, so that a dead one gains
    nothing (the authors' program takes 0, which makes dead responses the most important ones).
    """

    alpha: float = 0.5
    r: float | None = None
    rows: int = 10_000
    features: int = 8192

    def __post_init__(self) -> None:
        if type(self.alpha) not in (int, float) or not 0 <= self.alpha <= 1:
            raise InputError(f"nisp: alpha is {self.alpha!r}, allowed are numbers from 0 to 1")
        if self.r is not None and (type(self.r) not in (int, float) or not 0 < self.r < math.inf):
            raise InputError(f"nisp: r is {self.r!r}, allowed are positive numbers, or none for 0.9 / ρ(A)")
        for name in ("rows", "features"):
            value = getattr(self, name)
            if type(value) is not int or value < 2:
                raise InputError(f"nisp: {name} is {value!r}, allowed are whole numbers from 2")

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:
        if images > self.rows:
            raise InputError(
                f"nisp keeps a row for each image, at most {self.rows}, and there are {images}; score on fewer samples "
                "or set rows"
            )
        if images == 1:
            raise InputError("nisp compares the responses to several images, there is 1")

    def observed_layers(self, model: nn.Module, layers: Sequence[Layer], example: Tensor) -> Sequence[Layer]:
        response = find_response(model, example)
        if response.units > self.features:
            raise InputError(
                f"nisp: layer {response.name!r} is given {response.units} features, of which Inf-FS makes matrices of "
                f"{8 * response.units**2 / 2**30:.1f} GiB; at most {self.features} are allowed "
                "(setting features)"
            )
        propagated(model, layers, response, torch.ones(1), example)  # refuses what it cannot go through
        return (response,)

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        responses = maps.flatten(1)
        if not responses.isfinite().all():
            raise InputError("the final responses hold NaN or infinite values")
        return {"responses": Rows(responses.cpu(), self.rows)}

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Tensor | None = None
    ) -> dict[str, LayerScore]:
        assert example is not None
        ((name, total),) = sums.items()
        rows = total["responses"]
        assert isinstance(rows, Rows)
        if len(rows.values) < 2:
            raise InputError("nisp compares the responses to several images, there was 1")
        final = infinite_feature_selection(rows.values, self.alpha, self.r)
        response = Layer(name, len(final), (1, 1), at_input=True)
        scores = propagated(model, layers, response, final, example)
        return {layer.name: LayerScore(scores[layer.name], {"nisp_score": scores[layer.name]}) for layer in layers}


def infinite_feature_selection(responses: Tensor, alpha: float, r: float | None = None) -> Tensor:
    """Inf-FS scores (features,) float64 of responses (images, features); all 0 where A is 0."""
    varies = responses.amax(dim=0) > responses.amin(dim=0)
    deviation = torch.where(varies, responses.double().std(dim=0), 0)  # of equal values it is not always 0
    correlation = torch.where(varies[:, None] & varies, spearman(responses), 1).abs()
    A = alpha * torch.maximum(deviation[:, None], deviation) + (1 - alpha) * (1 - correlation)
    radius = float(torch.linalg.eigvalsh(A).abs().max())
    if radius == 0:
        return torch.zeros(len(A), dtype=torch.float64)
    if r is None:
        r = 0.9 / radius
    elif r >= 1 / radius:
        raise InputError(f"nisp: r is {r}; the sum over all paths only exists below 1 / ρ(A) = {1 / radius:.6g}")
    identity, ones = torch.eye(len(A), dtype=torch.float64), torch.ones(len(A), dtype=torch.float64)
    return torch.linalg.solve(identity - r * A, ones) - 1


def spearman(values: Tensor) -> Tensor:
    """Rank correlations (features, features) float64 of the columns of values; equal values share their mean rank.
    A column that is constant gives anything."""
    # Whole numbers: responses in the same order correlate with exactly 1, whatever the order of the images.
    centred = torch.stack([_doubled_ranks(column) for column in values.T], dim=1) - (len(values) + 1)
    products = centred.T @ centred
    squares = products.diagonal().clamp(min=1)
    return (products / (squares[:, None] * squares).sqrt()).clamp(-1, 1)


def _doubled_ranks(column: Tensor) -> Tensor:
    _, place, counts = column.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - counts + 1 + last).double()[place]


def propagated(
    model: nn.Module, layers: Sequence[Layer], response: Layer, final: Tensor, example: Tensor
) -> dict[str, Tensor]:
    """Layer name -> Σ over the positions of s_k, (units,) float64, for the scores `final` (features,) of `response`.

    s ↦ |W|ᵀ s through all layers is backpropagation in the network whose weights are their absolute values and where
    all else is linear. InputError for a function that has no such reading.
    """
    shifts: dict[str, Tensor] = {}  # added to every position of a unit: its gradient is the sum over the positions
    reached: list[Tensor] = []

    def act(layer: Layer, maps: Tensor, in_place: bool) -> Tensor:
        if layer is response:
            reached.append(maps.flatten())
            raise _Reached
        shift = torch.zeros(layer.units, dtype=maps.dtype, device=maps.device, requires_grad=True)
        shifts[layer.name] = shift
        return maps + shift[:, None, None]

    place = "cpu" if example.device.type == "mps" else example.device  # mps has no float64
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        image = torch.zeros(example.shape, dtype=torch.float64, device=place)
        with suppress(_Reached), _AbsoluteWeights(), follow(model, [*layers, response], act):
            model(image)
        total = (reached[0] * final.to(reached[0]).clone()).sum()
        if not total.requires_grad:
            raise InputError("nisp cannot propagate scores: the maps of no layer reach the final responses")
        found = torch.autograd.grad(total, list(shifts.values()), allow_unused=True, materialize_grads=True)
    zeros = {layer.name: torch.zeros(layer.units, dtype=torch.float64) for layer in layers}
    return zeros | {name: scores.cpu() for name, scores in zip(shifts, found, strict=True)}


class _Reached(Exception):
    """The final responses are there: what the network does with them plays no part."""


class _AbsoluteWeights(TorchFunctionMode):
    """Inside, networks compute with the absolute values of their weights, without biases, in float64. Activations
    pass everything on, a batch norm multiplies by |γ| / √(var + ε), and a pooling takes the mean, so that each value
    of a window gets an equal share of the score."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READINGS:
            return READINGS[func](*args, **kwargs)
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
        except RuntimeError as error:  # it mixes float64 with weights that were not read as such
            raise fault from error
        if _has_gradient(output) and _has_gradient((args, list(kwargs.values()))):
            raise fault
        return output


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    return torch.conv2d(x.double(), weight.detach().to(x.device, torch.float64).abs(), None, *args, **kwargs)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x.double(), weight.detach().to(x.device, torch.float64).abs())


def _batch_norm(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if var is None:
        raise InputError("nisp cannot propagate scores through a batch norm without running statistics")
    scale = 1 / (var.to(x.device, torch.float64) + eps).sqrt()
    if weight is not None:
        scale = scale * weight.detach().to(x.device, torch.float64).abs()
    return x * scale.view(-1, *[1] * (x.ndim - 2))


def _max_pool2d(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:  # fmt: skip
    if dilation not in (1, (1, 1)) or return_indices:
        raise InputError("nisp cannot propagate scores through a dilated max pooling, or one that returns indices")
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad=False)


def _adaptive_max_pool2d(x: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    return F.adaptive_avg_pool2d(x, output_size)


def _mean_over(x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return x.mean(dim, keepdim)


def _times(x: Any, factor: Any) -> Any:
    """Times a number; times a constant tensor, as in the normalisation of the input."""
    if _has_gradient((x, factor)) and isinstance(x, Tensor) and isinstance(factor, Tensor):
        raise InputError("nisp cannot propagate scores through a product of two maps: it is not linear")
    return abs(factor) * x if isinstance(x, Tensor) else abs(x) * factor


def _times_in_place(x: Tensor, factor: Any) -> Tensor:
    if isinstance(factor, Tensor):
        raise InputError("nisp cannot propagate scores through a product of two maps: it is not linear")
    return x.mul_(abs(factor))


def _divided(x: Any, divisor: Any) -> Any:
    return _times(x, 1 / divisor)


def _shifted(x: Any, constant: Any) -> Any:
    """x minus a number passes the scores of x on; minus a map would take them off each other."""
    if _has_gradient(constant) or not isinstance(x, Tensor):
        raise InputError("nisp cannot propagate scores through a difference of maps")
    return x


READINGS: Mapping[Any, Callable[..., Tensor]] = {
    torch.conv2d: _conv2d,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool2d),
    F.adaptive_max_pool2d: _adaptive_max_pool2d,
    **dict.fromkeys((torch.amax, Tensor.amax), _mean_over),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _times),
    **dict.fromkeys((Tensor.mul_, Tensor.__imul__), _times_in_place),
    **dict.fromkeys((torch.div, torch.true_divide, Tensor.div, Tensor.true_divide, Tensor.__truediv__), _divided),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), _shifted),
    Tensor.contiguous: Tensor.contiguous,  # an identity, but for the views that come after it
}
"""Function -> what takes its place."""

LINEAR = frozenset(
    {F.avg_pool2d, F.adaptive_avg_pool2d, F.interpolate, F.pad, torch.mean, torch.sum, Tensor.mean, Tensor.sum}
    | {torch.add, Tensor.add, Tensor.add_, Tensor.__iadd__, Tensor.__add__, Tensor.__radd__}
    | {torch.cat, torch.concat, torch.stack, torch.split, torch.chunk, Tensor.split, Tensor.chunk, Tensor.__getitem__}
    | {torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, F.pixel_shuffle}
    | {Tensor.flatten, Tensor.reshape, Tensor.view, Tensor.permute, Tensor.transpose, Tensor.squeeze, Tensor.unsqueeze}
    | {Tensor.expand, Tensor.clone, Tensor.narrow, torch.narrow, torch.channel_shuffle, torch.roll, torch.flip}
)
"""Functions that are linear with weights 0 and positive ones, and so stay what they are."""


def _has_gradient(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_gradient(entry) for entry in value)
    return isinstance(value, Tensor) and value.requires_grad
