"""Which channels of a network live and die together, found by running it on the names of its channels.

Every output channel of every layer gets a name, a number. While the network runs on an example, each tensor is
accompanied by the names of its channels. What rearranges values (a view, a concatenation, a split, a shuffle) is done
to the names as well. What combines values place by place (a residual sum, a gate) ties the names that meet. A layer
ties the names that it is given to those of its own inputs. Channels whose names are tied go together or not at all,
whatever the network's code looks like; where a name meets something that cannot shrink, it is fixed, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NewType

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from prune_fe.errors import InputError
from prune_fe.tracing.watching import evaluating, tensors_in

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.PReLU)
CHANNELWISE = frozenset(
    {"EcaModule", "CecaModule", "GlobalResponseNorm", "RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d"}
    | {"FilterResponseNormTlu2d", "FilterResponseNormAct2d", "EvoNorm2dB0", "EvoNorm2dS0"}
)
"""timm's modules, by class name, that give every channel of their input back and know how many there are, or look
at several at a time."""

KNOWN = ("torch.nn.", "torchvision.", "timm.")
"""Whose layers and norms do what their names say; the code of others is followed."""

REARRANGING = frozenset(
    "view reshape flatten unflatten ravel permute transpose swapaxes swapdims movedim moveaxis t chunk split "
    "split_with_sizes tensor_split unbind cat concat concatenate stack narrow getitem select index_select expand "
    "expand_as repeat repeat_interleave tile squeeze unsqueeze roll flip reshape_as view_as hsplit vsplit dsplit "
    "unfold T mT H mH".split()
)
BY_FLOATS = frozenset("pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle".split())
"""Rearranging too, but torch does them to floating point numbers only."""

SPLITTING = frozenset("chunk split split_with_sizes tensor_split".split())
REDUCING = frozenset(
    "mean sum amax amin max min std var norm vector_norm linalg_vector_norm prod logsumexp std_mean var_mean "
    "nanmean any all argmax argmin median".split()
)
PICKING = frozenset("amax amin max min median argmax argmin".split())
MULTIPLYING = frozenset("matmul rmatmul mm bmm".split())
CONVOLVING = frozenset("conv1d conv2d conv3d".split())
MAKING = frozenset("new_zeros new_ones new_empty new_full new_tensor".split())
OPAQUE = frozenset(
    "linear einsum addmm baddbmm scaled_dot_product_attention multi_head_attention_forward bilinear tensordot outer "
    "conv_transpose1d conv_transpose2d conv_transpose3d fold gather scatter index_add grid_sample topk sort cumsum "
    "layer_norm group_norm batch_norm instance_norm rms_norm".split()
)
"""What would need rules of its own: channels that go through are fixed, and it is said what they went through."""

OUTPUT = "the network's outputs"
ZERO = 0
"""The name of values that belong to no channel: padding, constants."""

ChannelId = NewType("ChannelId", int)
"""Identifies one channel of one axis in the whole network."""

SetId = NewType("SetId", int)
"""Identifies a set of coupled channels, which can only be removed together."""


@dataclass(frozen=True)
class Axis:
    """One side of a module's tensors. side: "in", "out", "both" (what goes in comes out: norms, depthwise
    convolutions), or the name of a parameter or buffer that the module's code uses by itself.

    names: of its channels, in order. blocks: into how many equal parts the module divides them. dim: which dimension
    of the parameter they are, or else of the module's input and output, counted from the end.
    """

    module: str
    side: str
    channels: np.ndarray
    blocks: int = 1
    dim: int = 0


@dataclass(frozen=True)
class DependencyGraph:
    """Which channels of a network can only be removed together, and what else binds their removal.

    Attributes:
        axes: (module, side) -> the axis, for every module that ran.
        coupled_set: Array indexed by channel id: the id of the coupled set that the channel belongs to.
        fixed_sets: Coupled set -> the reason why it cannot be removed.
        balance_constraints: Each is a list of blocks, a block an array of coupled sets; every block of a constraint
            must lose equally many.
        counted_sets: (module, the coupled sets of channels whose number the module's code may know).
        output_positions: Module -> the number of positions at which it is applied to one image.
    """

    axes: Mapping[tuple[str, str], Axis]
    coupled_set: np.ndarray
    fixed_sets: Mapping[SetId, str]
    balance_constraints: Sequence[Sequence[np.ndarray]]
    counted_sets: Sequence[tuple[str, np.ndarray]]
    output_positions: Mapping[str, int]


def build_dependency_graph(model: nn.Module, example: Tensor) -> DependencyGraph:
    """Run `model` on `example` (images, channels, height, width) and follow its channels.

    Raises InputError when the model does not return one tensor.
    """
    tracer = _Tracer(model)
    with evaluating(model), torch.no_grad(), tracer.hooked():
        output = model(example)
    if not isinstance(output, Tensor):
        raise InputError(f"the model returns a {type(output).__name__}; prune() needs one that returns a tensor")
    tracer.fix(tracer.names.get(output), OUTPUT)
    return tracer.result(len(example))


class _Tracer(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules = dict(model.named_modules())
        self.whole = {name: module for name, module in self.modules.items() if _is_whole(module)}
        self.inside = 0  # how many modules that are handled as a whole are running
        self.running = [""]  # the modules that are running, the innermost last
        self.count = 1  # names given so far; ZERO is taken
        self.names: Any = WeakIdKeyDictionary()  # tensor -> the names of its values, a tensor of the same shape
        self.axes: dict[tuple[str, str], Axis] = {}
        self.ties: list[tuple[np.ndarray, np.ndarray]] = []
        self.reasons: dict[int, str] = {}
        self.balanced: list[list[np.ndarray]] = []
        self.sizes: list[tuple[str, np.ndarray]] = []
        self.positions: dict[str, int] = {}
        self.raw: Any = WeakIdKeyDictionary()  # parameters and buffers that are used by code, not by a module
        owned = [f"{name}." for name in self.whole]
        for name, module in self.modules.items():
            if name in self.whole or any(name.startswith(prefix) for prefix in owned):
                continue
            for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.numel() > 1:
                    self.raw[tensor] = (name, attribute)

    def hooked(self) -> Any:
        stack = ExitStack()
        for name, module in self.modules.items():
            for handle in (
                module.register_forward_pre_hook(lambda _, args, name=name: self._enter(name), prepend=True),
                module.register_forward_hook(
                    lambda _, args, kwargs, output, name=name: self._leave(name, (*args, *kwargs.values()), output),
                    with_kwargs=True,
                ),
            ):
                stack.callback(handle.remove)
        stack.enter_context(self)
        return stack

    def _enter(self, name: str) -> None:
        self.running.append(name)
        self.inside += name in self.whole

    def _leave(self, name: str, inputs: Sequence[Any], output: Any) -> None:
        self.running.pop()
        self.inside -= name in self.whole
        if name not in self.whole or self.inside:
            return
        module = self.modules[name]
        value = next((entry for entry in inputs if isinstance(entry, Tensor)), None)
        if not isinstance(output, Tensor) or value is None:
            return
        names = self.names.get(value)
        if isinstance(module, _ConvNd):
            self._convolve(name, module, names, value, output)
        elif isinstance(module, nn.Linear):
            self._multiply(name, module, names, output)
        elif names is not None:
            self._channelwise(name, module, names, output)

    # What modules do

    def _convolve(self, name: str, conv: _ConvNd, names: Tensor | None, value: Tensor, output: Tensor) -> None:
        dim = output.ndim - 1 - len(conv.kernel_size)
        places = value if isinstance(conv, _ConvTransposeNd) else output
        self.positions[name] = self.positions.get(name, 0) + math.prod(places.shape[dim + 1 :])
        back = dim - output.ndim
        ins, outs, groups = conv.in_channels, conv.out_channels, conv.groups
        if groups > 1 and groups == ins == outs:
            first = last = self.axis(name, "both", ins, dim=back)
        else:
            blocks = groups if ins > groups else 1
            first, last = self.axis(name, "in", ins, blocks, back), self.axis(name, "out", outs, blocks, back)
            if blocks < groups:  # one input channel a group: its outputs go with it
                self.tie(np.repeat(first.channels, outs // groups), last.channels)
            elif blocks > 1 and isinstance(conv, _ConvTransposeNd):
                self.fix(
                    _tensor(np.concatenate([first.channels, last.channels])), f"{name!r} is transposed and grouped"
                )
        if names is not None:
            self.meet(first, names, dim, f"layer {name!r} convolves over the channels")
        self.names[output] = _along(last.channels, dim, output.shape)

    def _multiply(self, name: str, linear: nn.Linear, names: Tensor | None, output: Tensor) -> None:
        self.positions[name] = self.positions.get(name, 0) + output[..., 0].numel()
        dim = output.ndim - 1
        first = self.axis(name, "in", linear.in_features, dim=-1)
        last = self.axis(name, "out", linear.out_features, dim=-1)
        if names is not None and _varying(names) and dim not in _varying(names):  # it works along another dimension
            self.names[output] = names.narrow(dim, 0, 1).expand(output.shape)
            return
        if names is not None:
            self.meet(first, names, dim, "")
        self.names[output] = _along(last.channels, dim, output.shape)

    def _channelwise(self, name: str, module: nn.Module, names: Tensor, output: Tensor) -> None:
        varying = _varying(names)
        if output.shape != names.shape or len(varying) > 1:
            self.fix(names, f"{type(module).__name__} {name!r} is given channels in several dimensions")
            return
        for dim in varying:
            blocks = module.num_groups if isinstance(module, nn.GroupNorm) else 1
            if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
                self.fix(names, f"{type(module).__name__} {name!r} norms more than the channels")
            elif not isinstance(module, nn.PReLU) or module.num_parameters > 1:
                self.meet(self.axis(name, "both", names.shape[dim], blocks, dim - names.ndim), names, dim, "")
        self.names[output] = names

    # What functions do

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not self.inside:
            inputs = [value for value in tensors_in((args, kwargs)) if self._name_raw(value) or value in self.names]
            outputs = [value for value in tensors_in(output) if value.ndim]
            what = _plain_name(func)
            if inputs and (outputs or what == "setitem"):
                try:
                    self._follow(what, func, args, kwargs, output, inputs, outputs)
                except Exception as error:  # functions can be called in more ways than are known here
                    for value in inputs:
                        self.fix(self.names[value], f"{what}() in {self.here} cannot be followed ({error})")
        return output

    def _follow(
        self, what: str, func: Any, args: Any, kwargs: Any, output: Any, inputs: list[Tensor], outputs: list[Tensor]
    ) -> None:
        first = inputs[0]
        names = self.names[first]
        if what == "setitem":
            self._set_item(*args)
        elif what in MAKING:
            return
        elif what in REARRANGING or what in BY_FLOATS:
            self._rearrange(what, func, args, kwargs, names, output)
        elif what == "pad":
            self.names[output] = self._pad(names, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
        elif what in REDUCING and len(inputs) == 1 and outputs[0].shape != first.shape:
            self._reduce(what, names, outputs, _dims(what, args, kwargs))
        elif what in MULTIPLYING:
            factors = (*args, *kwargs.values())
            self._matrix_product(factors[what == "rmatmul"], factors[what != "rmatmul"], output)
        elif what in CONVOLVING:
            self._convolve_by_hand(args, kwargs, output)
        elif what not in OPAQUE and len(outputs) == 1 and self._combine(args, kwargs, inputs, output):
            return
        elif what not in OPAQUE and len(inputs) == 1 and all(_resized(names, value) for value in outputs):
            for value in outputs:
                self.names[value] = _first_of(names, value.shape)
        else:
            for value in inputs:
                self.fix(self.names[value], f"its channels go through {what}() in {self.here}")

    def _rearrange(self, what: str, func: Any, args: Any, kwargs: Any, names: Tensor, output: Any) -> None:
        try:
            if what in BY_FLOATS:
                result = func(names.double(), *args[1:], **kwargs).long()
            else:
                rename = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}.get(what, func)  # of any strides
                result = rename(*self._as_names(args), **self._as_names(kwargs))
        except (RuntimeError, TypeError):  # torch does it to floating point numbers only
            self.fix(names, f"its channels go through {what}() in {self.here}")
            return
        for value, renamed in zip(tensors_in(output), tensors_in(result), strict=True):
            self.names[value] = renamed
        varying = _varying(names)
        if len(varying) > 1 and what in ("view", "reshape", "flatten") and len(_varying(result)) < len(varying):
            self._merge(_at_first(names, varying))
        if len(varying) != 1:
            return
        (dim,) = varying
        if what in SPLITTING or what == "getitem":
            self._split(what, dim, names, [part for part in tensors_in(result) if part.ndim == names.ndim])
        elif what in ("view", "reshape", "unflatten"):
            outer = _varying(result)
            if len(outer) == 1:
                self.counted(_channels(result, outer[0])[0])
            elif outer:  # a shuffle or heads: as many in each
                self.balanced.append(list(_at_first(result, outer).reshape(result.shape[outer[0]], -1)))
        elif "channel_shuffle" in what:
            groups = args[1] if len(args) > 1 else kwargs["groups"]
            self._merge(_channels(names, dim)[0].reshape(groups, -1).T)

    def _merge(self, names: np.ndarray) -> None:
        """Several dimensions of channels become one. Rows of neighbours that are put one behind the other may lose
        channels each for itself. Where they are interleaved, the place of every channel depends on what the others
        lost before it, unless they lose the same."""
        if (np.diff(names, axis=-1) != 1).any():
            for other in range(1, names.shape[-1]):
                self.tie(names[..., 0].ravel(), names[..., other].ravel())

    def _split(self, what: str, dim: int, names: Tensor, parts: Sequence[Tensor]) -> None:
        """Parts of equal size stay equal, unless the module's code knows the size of each."""
        every, pieces = _channels(names, dim)[0], [_channels(part, dim)[0] for part in parts]
        pieces = [piece for piece in pieces if len(piece) < len(every)]
        sizes = [len(piece) for piece in pieces]
        if not pieces or len(set(sizes)) > 1 or len(every) % sizes[0]:
            self.counted(*pieces, *([every] if pieces else ()))
            return
        self.counted(*pieces, every)
        attributes = vars(self.modules[self.running[-1]]).values()
        if what == "getitem":
            known = len(every) != 2 * sizes[0] and any(type(value) is int and value == sizes[0] for value in attributes)
        else:
            known = any(isinstance(value, list | tuple) and list(value) == sizes for value in attributes)
        if known:
            return
        equal = every.reshape(-1, sizes[0])
        if all((equal == piece).all(axis=1).any() for piece in pieces):
            self.balanced.append(list(equal))

    def _set_item(self, target: Tensor, place: Any, value: Any) -> None:
        old = self.names.get(target)
        new = torch.zeros(target.shape, dtype=torch.int64) if old is None else old.clone()
        given = self.names.get(value) if isinstance(value, Tensor) else None
        if old is not None and given is not None:  # it has room for both
            self.tie(*(part.numpy().ravel() for part in torch.broadcast_tensors(old[place], given)))
        new[place] = torch.zeros((), dtype=torch.int64) if given is None else given
        self.names[target] = new

    def _pad(self, names: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Tensor:
        shape, varying = list(names.shape), _varying(names)
        for number, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
            dim = names.ndim - 1 - number
            if dim in varying:  # zeros beside the channels
                if mode != "constant":
                    self.fix(names, f"padding by {mode} over the channels")
                zeros = [[*names.shape[:dim], max(width, 0), *names.shape[dim + 1 :]] for width in (before, after)]
                start, length = max(-before, 0), names.shape[dim] + min(before, 0) + min(after, 0)
                names = torch.cat(
                    [names.new_zeros(zeros[0]), names.narrow(dim, start, length), names.new_zeros(zeros[1])], dim
                )
            else:
                names = names.narrow(dim, 0, 1)
            shape[dim] += before + after
        return names.expand(shape)

    def _reduce(self, what: str, names: Tensor, outputs: Sequence[Tensor], dims: Sequence[int] | None) -> None:
        if dims is None:
            return
        dims = [dim % names.ndim for dim in dims]
        varying = _varying(names)
        gone = [dim for dim in varying if dim in dims]
        if gone and len(gone) == len(varying):  # one number of all channels: whether it changes, a trial tells
            if what in PICKING:  # but for these it may be told by other images only
                self.fix(names, f"{what}() over the channels in {self.here}")
            return
        first = _at_first(names, [dim for dim in varying if dim not in gone], keep=True)
        for dim in gone:
            rows = names.transpose(0, dim)
            for row in rows[1:]:
                self.tie(rows[0].numpy().ravel(), row.numpy().ravel())
        kept = first.expand([1 if dim in dims else size for dim, size in enumerate(names.shape)])
        for value in outputs:
            self.names[value] = kept.reshape(value.shape)

    def _matrix_product(self, left: Tensor, right: Tensor, output: Tensor) -> None:
        names = [self.names.get(left), self.names.get(right)]
        a, b = ([] if n is None or n.ndim < 2 else [dim - n.ndim for dim in _varying(n)] for n in names)
        for given, varying, kept in ((names[0], a, -2), (names[1], b, -1)):
            other = b if given is names[0] else a
            if given is not None and varying == [kept] and not other:  # the rows of one factor are what comes out
                self.names[output] = _along(_channels(given, kept % given.ndim)[0], kept % output.ndim, output.shape)
                return
        if names[0] is not None and names[1] is not None and (a, b) == ([-1], [-2]):  # summed over the channels
            self.tie(_channels(names[0], names[0].ndim - 1)[0], _channels(names[1], names[1].ndim - 2)[0])
        elif a or b:
            for given in names:
                self.fix(given, f"a product of matrices in {self.here}")

    def _convolve_by_hand(self, args: Any, kwargs: Any, output: Tensor) -> None:
        value, weight = (*args, *kwargs.values())[:2]
        names, groups, count = self.names.get(value), weight.shape[0], output.ndim - 1 - (weight.ndim - 2)
        if names is None or weight.shape[1] != 1 or not names.shape[count] == groups == output.shape[count]:
            for tensor in (value, weight):
                self.fix(self.names.get(tensor), f"is convolved with a tensor of no layer in {self.here}")
            return
        if weight in self.raw:
            axis = self.raw_axis(weight, groups)
            self.meet(axis, names, count, "")
        self.counted(*_channels(names, count)[:1])
        self.names[output] = _first_of(names, output.shape)

    def _combine(self, args: Any, kwargs: Any, inputs: Sequence[Tensor], output: Tensor) -> bool:
        """Place by place: names that meet are tied. False when this is no such function."""
        operands = [value for value in tensors_in((args, kwargs)) if value.ndim]
        try:
            if torch.broadcast_shapes(*(value.shape for value in operands)) != output.shape:
                return False
        except RuntimeError:
            return False
        every = [self.names[value].expand(output.shape) for value in operands if value in self.names]
        varying = sorted({dim for names in every for dim in _varying(names)})
        for value in operands:
            if value in self.names:
                continue
            wide = [dim for dim in varying if _size_at(value, dim, output.ndim) > 1]
            if wide and value in self.raw and len(wide) == 1:
                axis = self.raw_axis(value, output.shape[wide[0]], wide[0] - output.ndim + value.ndim)
                every.append(_along(axis.channels, wide[0], output.shape))
            elif wide:
                for names in every:
                    self.fix(names, f"meets {value.shape[wide[0] - output.ndim]} numbers of no layer in {self.here}")
        told = [names for names in every if _varying(names)] or every
        base = max(told, key=lambda names: len(_varying(names)))
        for names in told:
            if names is not base and _varying(names):
                self.tie(_at_first(base, varying).ravel(), _at_first(names, varying).ravel())
        self.names[output] = base
        return True

    # Names

    @property
    def here(self) -> str:
        """The innermost module that is running."""
        return repr(self.running[-1]) if self.running[-1] else "the network's code"

    def axis(self, module: str, side: str, size: int, blocks: int = 1, dim: int = 0) -> Axis:
        if (module, side) not in self.axes:
            names = np.arange(self.count, self.count + size)
            self.count += size
            self.axes[module, side] = Axis(module, side, names, blocks, dim)
            if blocks > 1:
                self.balanced.append(list(names.reshape(blocks, -1)))
        return self.axes[module, side]

    def raw_axis(self, tensor: Tensor, size: int, dim: int = 0) -> Axis:
        module, attribute = self.raw[tensor]
        return self.axis(module, attribute, size, dim=dim)

    def counted(self, *channels: np.ndarray) -> None:
        """The code that is running may know how many these are."""
        self.sizes += [(self.running[-1], names) for names in channels]

    def meet(self, axis: Axis, names: Tensor, dim: int, otherwise: str) -> None:
        """The channels of `names` along `dim` are those of `axis`."""
        varying = _varying(names)
        if varying and dim not in varying and otherwise:
            self.fix(names, otherwise)
        elif varying and names.shape[dim] == len(axis.channels):
            for row in _channels(names, dim):
                self.tie(axis.channels, row)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        for names, others in ((a, b), (b, a)):
            self.fix(_tensor(names[others == ZERO]), "padded with zeros, or added to what is no layer's output")
        real = (a != ZERO) & (b != ZERO) & (a != b)
        self.ties.append((a[real], b[real]))

    def fix(self, names: Tensor | None, reason: str) -> None:
        if names is not None and names.numel():
            for name in np.unique(_at_first(names, _varying(names)) if names.ndim else names.numpy()):
                self.reasons.setdefault(int(name), reason)

    def _name_raw(self, value: Tensor) -> bool:
        """Name a parameter or buffer that code uses by itself, when it has one dimension."""
        if value not in self.raw or value in self.names or not value.is_floating_point():
            return value in self.names
        wide = [dim for dim, size in enumerate(value.shape) if size > 1]
        if len(wide) != 1:
            return False
        axis = self.raw_axis(value, value.shape[wide[0]], wide[0])
        self.names[value] = _along(axis.channels, wide[0], value.shape)
        return True

    def _as_names(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value in self.names:
                return self.names[value]
            none = torch.zeros((), dtype=torch.int64).expand(value.shape)
            return none if value.is_floating_point() else value.cpu()  # an index
        if isinstance(value, dict):
            return {key: self._as_names(entry) for key, entry in value.items()}
        return type(value)(map(self._as_names, value)) if type(value) in (tuple, list) else value

    def result(self, images: int) -> DependencyGraph:
        pairs = [np.concatenate(side) for side in zip(*self.ties, strict=True)] if self.ties else [np.zeros(0, int)] * 2
        graph = coo_array((np.ones(len(pairs[0]), bool), (pairs[0], pairs[1])), (self.count, self.count))
        unit = connected_components(graph, directed=False)[1]
        fixed: dict[SetId, str] = {}
        for name, reason in self.reasons.items():
            if name != ZERO and fixed.get(unit[name]) != OUTPUT:
                fixed[SetId(int(unit[name]))] = reason if reason == OUTPUT else fixed.get(unit[name], reason)
        balanced = [[unit[block] for block in blocks] for blocks in self.balanced if ZERO not in np.concatenate(blocks)]
        sizes = [(module, unit[names]) for module, names in self.sizes if ZERO not in names]
        places = {
            name: count // (images if isinstance(self.modules[name], nn.Linear) else 1)
            for name, count in self.positions.items()
        }
        return DependencyGraph(self.axes, unit, fixed, balanced, sizes, places)


def _is_whole(module: nn.Module) -> bool:
    """Handled as a whole, whatever its code does inside."""
    home = f"{type(module).forward.__module__}."
    if not home.startswith(KNOWN):
        return False
    named = home.startswith("timm.") and not CHANNELWISE.isdisjoint(kind.__name__ for kind in type(module).__mro__)
    return named or isinstance(module, (_ConvNd, nn.Linear, *NORMS))


def _plain_name(func: Any) -> str:
    """add for Tensor.add, torch.add, add_, +, += and the like; T for the getter of Tensor.T."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(func.__self__, "__name__", "")
    return name.strip("_")


def _tensor(names: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(names))


def _along(names: np.ndarray, dim: int, shape: Sequence[int]) -> Tensor:
    """A tensor of `shape` whose channels, along `dim`, have these names."""
    return _tensor(names).view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)


def _varying(names: Tensor) -> list[int]:
    """The dimensions along which the names are not all the same."""
    dims = [dim for dim in range(names.ndim) if names.shape[dim] > 1 and names.stride(dim) != 0]
    return [dim for dim in dims if not torch.equal(names.narrow(dim, 1, names.shape[dim] - 1), _shifted(names, dim))]


def _shifted(names: Tensor, dim: int) -> Tensor:
    return names.narrow(dim, 0, names.shape[dim] - 1)


def _at_first(names: Tensor, dims: Sequence[int], keep: bool = False) -> Any:
    """The names along `dims`, at the first place of every other dimension: an array, or with keep a tensor."""
    for dim in range(names.ndim):
        if dim not in dims:
            names = names.narrow(dim, 0, 1)
    return names if keep else names.reshape([names.shape[dim] for dim in dims]).numpy()


def _first_of(names: Tensor, shape: Sequence[int]) -> Tensor:
    varying = _varying(names)
    return _at_first(names, varying, keep=True).expand(shape)


def _channels(names: Tensor, dim: int) -> np.ndarray:
    """(what differs, channels): the names along `dim`, at every other place where they differ."""
    rows = _at_first(names, sorted({dim, *_varying(names)}), keep=True).movedim(dim, -1)
    return np.unique(rows.reshape(-1, names.shape[dim]).numpy(), axis=0)


def _resized(names: Tensor, value: Tensor) -> bool:
    """The channels are where they were; the other dimensions may have changed, as in a pooling."""
    return value.ndim == names.ndim and all(value.shape[dim] == names.shape[dim] for dim in _varying(names))


def _size_at(value: Tensor, dim: int, ndim: int) -> int:
    """The size of `value` along what is dimension `dim` once it is broadcast to `ndim` dimensions."""
    place = dim - ndim + value.ndim
    return value.shape[place] if place >= 0 else 1


def _dims(what: str, args: Any, kwargs: Any) -> list[int] | None:
    """Which dimensions a reduction takes away; None: all."""
    place = 2 if "norm" in what else 1
    dims = next((kwargs[key] for key in ("dim", "axis") if key in kwargs), args[place] if len(args) > place else None)
    if dims is None or isinstance(dims, Tensor):
        return None
    return [dims] if isinstance(dims, int) else list(dims)
