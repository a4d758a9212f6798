"""The operators of a network, by kind: the one table from which everything that watches a network takes its rules.

Four readers look up what a running network calls: the search for layers (`layers.py`), the dependency graph
(`function_rules.py`), the propagation of NISP (`scorers/nisp.py`) and the construction of networks without weights
(`models/factories.py`). The dependency graph compares plain names, such as "relu", so that it also knows
`Tensor.relu_`; the others compare functions, such as `F.relu`. A new operator is one line of OPERATORS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

Function = Callable[..., Any]


class Kind(Enum):
    """What an operator does to the values of its input."""

    ACTIVATION = auto()
    """Changes every value by itself; part of a map."""
    NORM = auto()
    """Normalises; part of a map."""
    IDENTITY = auto()
    """Returns its input unchanged in evaluation mode, such as dropout; part of a map."""
    POOLING = auto()
    """Replaces every window of values by one value."""
    RESAMPLING = auto()
    """Changes the size of a map, by interpolation."""
    PADDING = auto()
    """Adds values around the edges."""
    REARRANGING = auto()
    """Moves values to other positions or another shape; ids of channels can be rearranged in the same way."""
    REDUCING = auto()
    """Replaces all values along some dimensions by one value."""
    ELEMENTWISE = auto()
    """Combines the values that meet at one position. Every operator that is not listed is tried as one of these."""
    MATRIX_PRODUCT = auto()
    """A product of two matrices, or of batches of them."""
    CONVOLUTION = auto()
    """A convolution that is called as a function."""
    EINSUM = auto()
    """A sum of products, given by an equation."""
    GATED_HALVES = auto()
    """Multiplies one half of the channels by a gate that is computed from the other half."""
    REGION_POOLING = auto()
    """Pools regions out of maps, each channel by itself."""
    NEW_TENSOR = auto()
    """Makes a tensor that takes only its type and device from another."""
    ALLOCATION = auto()
    """Makes a tensor without values: the constructors of layers call it for their weights."""
    OPAQUE = auto()
    """Mixes channels in a way for which the dependency graph has no rule."""


class Trait(Flag):
    """Further properties of some operators of a kind."""

    NONE = 0
    SPLITS = auto()
    """Rearranges one tensor into parts."""
    FLOATS_ONLY = auto()
    """Torch computes it for floating point numbers only, so that ids have to be converted."""
    SELECTS = auto()
    """Reduces to one of the values: the others have no effect on the result."""
    POOLS_GLOBALLY = auto()
    """May reduce a whole map to one value. (A local pooling whose window is as large as the map does not count: the
    convolutions behind it are no gate.)"""
    JOINS = auto()
    """Puts several tensors into one."""
    NON_NEGATIVE = auto()
    """Linear, with weights that are never negative."""


@dataclass(frozen=True)
class Operator:
    """One operator of a network.

    Attributes:
        name: Its plain name, as `plain_name` gives it.
        kind: What it does.
        functions: The functions of torch that are looked up by themselves; empty where only the name is.
        traits: What else is true of it.
    """

    name: str
    kind: Kind
    functions: tuple[Function, ...] = ()
    traits: Trait = Trait.NONE


def _operators(kind: Kind, names: str, traits: Trait = Trait.NONE) -> Iterator[Operator]:
    """Yield operators of one kind that are known by their names only."""
    return (Operator(name, kind, (), traits) for name in names.split())


_LINEAR = Trait.NON_NEGATIVE

OPERATORS: tuple[Operator, ...] = (
    Operator("relu", Kind.ACTIVATION, (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)),
    Operator("relu6", Kind.ACTIVATION, (F.relu6,)),
    Operator("leaky_relu", Kind.ACTIVATION, (F.leaky_relu, F.leaky_relu_)),
    Operator("elu", Kind.ACTIVATION, (F.elu, F.elu_)),
    Operator("celu", Kind.ACTIVATION, (F.celu,)),
    Operator("selu", Kind.ACTIVATION, (F.selu,)),
    Operator("rrelu", Kind.ACTIVATION, (F.rrelu,)),
    Operator("gelu", Kind.ACTIVATION, (F.gelu,)),
    Operator("silu", Kind.ACTIVATION, (F.silu,)),
    Operator("mish", Kind.ACTIVATION, (F.mish,)),
    Operator("hardswish", Kind.ACTIVATION, (F.hardswish,)),
    Operator("hardtanh", Kind.ACTIVATION, (F.hardtanh, F.hardtanh_)),
    Operator("hardsigmoid", Kind.ACTIVATION, (F.hardsigmoid,)),
    Operator("prelu", Kind.ACTIVATION, (F.prelu, torch.prelu)),
    Operator("softplus", Kind.ACTIVATION, (F.softplus,)),
    Operator("sigmoid", Kind.ACTIVATION, (F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_)),
    Operator("tanh", Kind.ACTIVATION, (F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_)),
    Operator("clamp", Kind.ACTIVATION, (torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_)),
    Operator("clamp_min", Kind.ACTIVATION, (torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_)),
    Operator("clip", Kind.ACTIVATION, (torch.clip, torch.clip_, Tensor.clip, Tensor.clip_)),
    Operator("threshold", Kind.ACTIVATION, (F.threshold,)),
    Operator("softsign", Kind.ACTIVATION, (F.softsign,)),
    Operator("log_sigmoid", Kind.ACTIVATION, (F.logsigmoid,)),
    Operator("hardshrink", Kind.ACTIVATION, (F.hardshrink,)),
    Operator("softshrink", Kind.ACTIVATION, (F.softshrink,)),
    Operator("tanhshrink", Kind.ACTIVATION, (F.tanhshrink,)),
    Operator("batch_norm", Kind.NORM, (F.batch_norm, torch.batch_norm)),
    Operator("group_norm", Kind.NORM, (F.group_norm, torch.group_norm)),
    Operator("layer_norm", Kind.NORM, (F.layer_norm,)),
    Operator("instance_norm", Kind.NORM, (F.instance_norm,)),
    Operator("rms_norm", Kind.NORM),
    Operator("dropout", Kind.IDENTITY, (F.dropout,)),
    Operator("dropout2d", Kind.IDENTITY, (F.dropout2d,)),
    Operator("alpha_dropout", Kind.IDENTITY, (F.alpha_dropout,)),
    Operator("feature_alpha_dropout", Kind.IDENTITY, (F.feature_alpha_dropout,)),
    Operator("contiguous", Kind.IDENTITY, (Tensor.contiguous,)),
    Operator("to", Kind.IDENTITY, (Tensor.to,)),
    Operator("float", Kind.IDENTITY, (Tensor.float,)),
    Operator("half", Kind.IDENTITY, (Tensor.half,)),
    Operator("bfloat16", Kind.IDENTITY, (Tensor.bfloat16,)),
    Operator("type", Kind.IDENTITY, (Tensor.type,)),
    Operator("avg_pool2d", Kind.POOLING, (F.avg_pool2d,), _LINEAR),
    Operator("max_pool2d", Kind.POOLING, (F.max_pool2d, torch.max_pool2d)),
    Operator("adaptive_avg_pool2d", Kind.POOLING, (F.adaptive_avg_pool2d,), Trait.POOLS_GLOBALLY | _LINEAR),
    Operator("adaptive_max_pool2d", Kind.POOLING, (F.adaptive_max_pool2d,), Trait.POOLS_GLOBALLY),
    Operator("avg_pool1d", Kind.POOLING, (F.avg_pool1d,), _LINEAR),
    Operator("avg_pool3d", Kind.POOLING, (F.avg_pool3d,), _LINEAR),
    Operator("max_pool1d", Kind.POOLING, (F.max_pool1d, torch.max_pool1d)),
    Operator("max_pool3d", Kind.POOLING, (F.max_pool3d, torch.max_pool3d)),
    Operator("adaptive_avg_pool1d", Kind.POOLING, (F.adaptive_avg_pool1d,), _LINEAR),
    Operator("adaptive_avg_pool3d", Kind.POOLING, (F.adaptive_avg_pool3d,), _LINEAR),
    Operator("adaptive_max_pool1d", Kind.POOLING, (F.adaptive_max_pool1d,)),
    Operator("adaptive_max_pool3d", Kind.POOLING, (F.adaptive_max_pool3d,)),
    Operator("interpolate", Kind.RESAMPLING, (F.interpolate,), _LINEAR),
    Operator("pad", Kind.PADDING, (F.pad,), _LINEAR),
    Operator("view", Kind.REARRANGING, (Tensor.view,), _LINEAR),
    Operator("reshape", Kind.REARRANGING, (torch.reshape, Tensor.reshape), _LINEAR),
    Operator("flatten", Kind.REARRANGING, (torch.flatten, Tensor.flatten), _LINEAR),
    Operator("permute", Kind.REARRANGING, (torch.permute, Tensor.permute), _LINEAR),
    Operator("transpose", Kind.REARRANGING, (torch.transpose, Tensor.transpose), _LINEAR),
    Operator("cat", Kind.REARRANGING, (torch.cat,), Trait.JOINS | _LINEAR),
    Operator("concat", Kind.REARRANGING, (torch.concat,), Trait.JOINS | _LINEAR),
    Operator("stack", Kind.REARRANGING, (torch.stack,), Trait.JOINS | _LINEAR),
    Operator("chunk", Kind.REARRANGING, (torch.chunk, Tensor.chunk), Trait.SPLITS | _LINEAR),
    Operator("split", Kind.REARRANGING, (torch.split, Tensor.split), Trait.SPLITS | _LINEAR),
    Operator("getitem", Kind.REARRANGING, (Tensor.__getitem__,), _LINEAR),
    Operator("narrow", Kind.REARRANGING, (torch.narrow, Tensor.narrow), _LINEAR),
    Operator("expand", Kind.REARRANGING, (Tensor.expand,), _LINEAR),
    Operator("squeeze", Kind.REARRANGING, (torch.squeeze, Tensor.squeeze), _LINEAR),
    Operator("unsqueeze", Kind.REARRANGING, (torch.unsqueeze, Tensor.unsqueeze), _LINEAR),
    Operator("roll", Kind.REARRANGING, (torch.roll,), _LINEAR),
    Operator("flip", Kind.REARRANGING, (torch.flip,), _LINEAR),
    Operator("pixel_shuffle", Kind.REARRANGING, (F.pixel_shuffle,), Trait.FLOATS_ONLY | _LINEAR),
    Operator("channel_shuffle", Kind.REARRANGING, (torch.channel_shuffle,), Trait.FLOATS_ONLY | _LINEAR),
    *_operators(Kind.REARRANGING, "pixel_unshuffle native_channel_shuffle", Trait.FLOATS_ONLY),
    *_operators(Kind.REARRANGING, "split_with_sizes tensor_split", Trait.SPLITS),
    *_operators(Kind.REARRANGING, "unflatten ravel swapaxes swapdims movedim moveaxis t T mT H mH unbind"),
    *_operators(Kind.REARRANGING, "concatenate", Trait.JOINS),
    *_operators(Kind.REARRANGING, "select index_select expand_as repeat repeat_interleave tile reshape_as view_as"),
    *_operators(Kind.REARRANGING, "hsplit vsplit dsplit unfold"),
    Operator("mean", Kind.REDUCING, (torch.mean, Tensor.mean), Trait.POOLS_GLOBALLY | _LINEAR),
    Operator("sum", Kind.REDUCING, (torch.sum, Tensor.sum), _LINEAR),
    Operator("amax", Kind.REDUCING, (torch.amax, Tensor.amax), Trait.POOLS_GLOBALLY | Trait.SELECTS),
    *_operators(Kind.REDUCING, "amin max min median argmax argmin", Trait.SELECTS),
    *_operators(Kind.REDUCING, "std var norm vector_norm linalg_vector_norm prod logsumexp std_mean var_mean nanmean"),
    *_operators(Kind.REDUCING, "any all"),
    Operator(
        "add",
        Kind.ELEMENTWISE,
        (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__),
        _LINEAR,
    ),
    Operator("clone", Kind.ELEMENTWISE, (Tensor.clone,), _LINEAR),
    Operator("mul", Kind.ELEMENTWISE, (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)),
    Operator("imul", Kind.ELEMENTWISE, (Tensor.mul_, Tensor.__imul__)),
    Operator(
        "div",
        Kind.ELEMENTWISE,
        (torch.div, torch.true_divide, Tensor.div, Tensor.true_divide, Tensor.__truediv__),
    ),
    Operator("sub", Kind.ELEMENTWISE, (torch.sub, Tensor.sub, Tensor.__sub__)),
    *_operators(Kind.MATRIX_PRODUCT, "matmul rmatmul mm bmm"),
    Operator("conv2d", Kind.CONVOLUTION, (torch.conv2d,)),
    Operator("conv1d", Kind.CONVOLUTION, (torch.conv1d,)),
    Operator("conv3d", Kind.CONVOLUTION, (torch.conv3d,)),
    Operator("conv_transpose1d", Kind.CONVOLUTION, (torch.conv_transpose1d,)),
    Operator("conv_transpose2d", Kind.CONVOLUTION, (torch.conv_transpose2d,)),
    Operator("conv_transpose3d", Kind.CONVOLUTION, (torch.conv_transpose3d,)),
    *_operators(Kind.EINSUM, "einsum"),
    *_operators(Kind.GATED_HALVES, "glu"),
    *_operators(Kind.REGION_POOLING, "roi_align roi_pool"),
    *_operators(Kind.NEW_TENSOR, "new_zeros new_ones new_empty new_full new_tensor"),
    Operator("empty", Kind.ALLOCATION, (torch.empty,)),
    Operator("linear", Kind.OPAQUE, (F.linear,)),
    *_operators(Kind.OPAQUE, "addmm baddbmm bilinear tensordot outer"),
    *_operators(Kind.OPAQUE, "scaled_dot_product_attention multi_head_attention_forward"),
    *_operators(Kind.OPAQUE, "fold gather scatter index_add grid_sample topk sort cumsum nonzero argwhere"),
)

NORM_MODULES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.PReLU)
"""Modules whose output has the channels of their input, with parameters or statistics for each channel, or which
look at several channels at a time."""

TIMM_NORM_MODULES = frozenset(
    {"EcaModule", "CecaModule", "GlobalResponseNorm", "RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d"}
    | {"FilterResponseNormTlu2d", "FilterResponseNormAct2d", "EvoNorm2dB0", "EvoNorm2dS0"}
)
"""Class names of timm's modules that are like NORM_MODULES."""

TRUSTED_LIBRARIES = ("torch.nn.", "torchvision.", "timm.")
"""Where the layers and norms come from that do what their class says. The code of any other module is followed."""


def names(*kinds: Kind, traits: Trait = Trait.NONE) -> frozenset[str]:
    """Return the plain names of the operators of some kinds that have all of the traits.

    Example:
        >>> sorted(names(Kind.CONVOLUTION))
        ['conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d']
    """
    return frozenset(operator.name for operator in OPERATORS if operator.kind in kinds and traits in operator.traits)


def functions(*kinds: Kind, traits: Trait = Trait.NONE) -> frozenset[Function]:
    """Return the functions of the operators of some kinds, or of all kinds if none is given, that have the traits."""
    chosen = (operator for operator in OPERATORS if not kinds or operator.kind in kinds)
    return frozenset(function for operator in chosen if traits in operator.traits for function in operator.functions)


def functions_named(name: str) -> tuple[Function, ...]:
    """Return the functions of one operator.

    Raises:
        KeyError: There is no operator of that name.
    """
    return {operator.name: operator.functions for operator in OPERATORS}[name]


def plain_name(function: Any) -> str:
    """Return what a function is called without its underscores.

    Example:
        >>> [plain_name(function) for function in (torch.relu_, Tensor.__getitem__, Tensor.T.__get__)]
        ['relu', 'getitem', 'T']
    """
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return getattr(function.__self__, "__name__", "")
    return name.strip("_")
