"""Whether a pruned network is faster than the original: both timed in turn, setting by setting, and their memory."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from prune_fe.errors import InputError
from prune_fe.measure.cost import Cost
from prune_fe.measure.meter import Meter, quartiles, seconds_in_turn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

BLOCKS = 7
"""A quartile of fewer ratios says nothing."""

FELL = 0.90
NOT_FASTER = 0.95
"""Multiply-adds at less than FELL of the original's promise less time; above NOT_FASTER of it, it has not come."""

UNSTEADY = 1.5
"""Quartiles of a ratio that lie further apart than this factor are the machine's, not the networks'."""

WIDTH_MULTIPLE = 8
"""Kernels work on so many channels at once, or on a multiple of that."""


@dataclass(frozen=True)
class Setting:
    batch_size: int
    threads: int
    dtype: str
    memory_format: str
    device: str

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        return f"batch {self.batch_size}, {threads}, {self.dtype}, {self.memory_format}, {self.device}"


@dataclass(frozen=True)
class Latency:
    """median_ms: of a forward pass in evaluation mode; low_ms and high_ms are its quartiles over `runs` timed blocks.

    peak_mib: parameters, buffers, the batch and the maps of one pass where their sum is largest. On CUDA as torch
    allocates, with what kernels take for themselves; elsewhere the tensors that operations return, an exact count.
    """

    network: str
    setting: Setting
    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    peak_mib: float


@dataclass(frozen=True)
class Comparison:
    """ratio: time of the original / time of the pruned network, higher = faster: the median of the pairs of blocks
    that were timed one after the other; ratio_low and ratio_high are its quartiles."""

    setting: Setting
    original: Latency
    pruned: Latency
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def share(self) -> float:
        """Time of the pruned network / time of the original."""
        return 1 / self.ratio

    @property
    def faster(self) -> bool:
        """Not when the quartiles of the ratio reach down to 1, nor when more than NOT_FASTER of the time is left."""
        return self.ratio_low > 1 and self.share <= NOT_FASTER

    @property
    def steady(self) -> bool:
        return self.ratio_high <= UNSTEADY * self.ratio_low


@dataclass(frozen=True)
class CannotRun:
    """A setting that one of the two networks does not run in, and the reason the library gives."""

    setting: Setting
    network: str
    reason: str

    def __str__(self) -> str:
        return f"{self.setting}: cannot run: {self.network}: {self.reason}"


def compare_latency(
    original: nn.Module,
    pruned: nn.Module,
    example: Tensor,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    threads: Sequence[int] | None = None,
    dtypes: Sequence[str] = ("float32",),
    memory_formats: Sequence[str] = ("contiguous", "channels_last"),
    seconds: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> list[Comparison | CannotRun]:
    """Time both networks in every combination of the settings, for `seconds` each, on the device of `pruned`.

    example: (images, channels, height, width); random images of its size are used. threads: default 1 and as many as
    torch is set to, on a GPU the latter only. The networks and torch's settings are left as they are.
    """
    weight = next(pruned.parameters(), None)
    if weight is None:
        raise InputError(f"pruned: {type(pruned).__name__} has no parameters, so there is nothing to time")
    if threads is None:
        ours = torch.get_num_threads()
        threads = sorted({1, ours}) if weight.device.type == "cpu" else [ours]
    _check(example, batch_sizes, threads, dtypes, memory_formats, seconds)
    found: list[Comparison | CannotRun] = []
    total = math.prod(map(len, (batch_sizes, threads, dtypes, memory_formats)))
    for dtype, memory_format in itertools.product(dtypes, memory_formats):
        networks = {
            name: _converted(network, weight.device, dtype, memory_format)
            for name, network in (("original", original), ("pruned", pruned))
        }
        for batch_size, count in itertools.product(batch_sizes, threads):
            setting = Setting(batch_size, count, dtype, memory_format, str(weight.device))
            found.append(_compare(setting, networks, _images(example, setting), seconds))
            if progress is not None:
                progress(len(found), total)
    return found


def _check(
    example: Tensor,
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    dtypes: Sequence[str],
    memory_formats: Sequence[str],
    seconds: float,
) -> None:
    if example.ndim != 4:
        raise InputError(f"example: {tuple(example.shape)}; allowed: (images, channels, height, width)")
    for what, counts in (("batch_sizes", batch_sizes), ("threads", threads)):
        if not counts or min(counts) < 1:
            raise InputError(f"{what}: {list(counts)}; allowed: one or more whole numbers, 1 or greater")
    for what, names, known in (
        ("dtypes", dtypes, DTYPES),
        ("memory_formats", memory_formats, MEMORY_FORMATS),
    ):
        if not names or not set(names) <= set(known):
            raise InputError(f"{what}: {list(names)}; allowed: one or more of {', '.join(known)}")
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds: {seconds}; allowed: greater than 0")


def _converted(network: nn.Module, device: torch.device, dtype: str, memory_format: str) -> nn.Module:
    """A copy in evaluation mode."""
    twin: Any = copy.deepcopy(network).eval()
    return twin.to(device, DTYPES[dtype], memory_format=MEMORY_FORMATS[memory_format])


def _images(example: Tensor, setting: Setting) -> Tensor:
    """Random, because zeros cost a GPU less power and so less time than images do."""
    shape = (setting.batch_size, *example.shape[1:])
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return images.to(setting.device, DTYPES[setting.dtype]).contiguous(
        memory_format=MEMORY_FORMATS[setting.memory_format]
    )


def _compare(
    setting: Setting, networks: Mapping[str, nn.Module], images: Tensor, seconds: float
) -> Comparison | CannotRun:
    with _threads(setting.threads):
        with torch.inference_mode():
            for name, network in networks.items():
                try:
                    network(images)
                except Exception as error:  # networks and libraries raise what they like
                    return CannotRun(setting, name, " ".join(str(error).split())[:120] or type(error).__name__)
            passes = [partial(network, images) for network in networks.values()]
            times = seconds_in_turn(passes, seconds, images.device, BLOCKS)
        # Behind the timing: while cuDNN tries its algorithms it takes more memory than it does later.
        peaks = [_peak_bytes(network, images) for network in networks.values()]
    original, pruned = (
        _latency(name, setting, own, peak) for name, own, peak in zip(networks, times, peaks, strict=True)
    )
    low, median, high = quartiles([before / after for before, after in zip(*times, strict=True)])
    return Comparison(setting, original, pruned, median, low, high)


def _latency(name: str, setting: Setting, times: Sequence[float], peak_bytes: int) -> Latency:
    low, median, high = (1e3 * value for value in quartiles(times))
    return Latency(name, setting, median, low, high, len(times), peak_bytes / 2**20)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peak_bytes(network: nn.Module, images: Tensor) -> int:
    """What Latency.peak_mib says. (The resident memory of a process would also hold what the last pass left.)"""
    live = _LiveTensors([*network.parameters(), *network.buffers(), images])
    with torch.no_grad():  # inference mode would hide what an operation is made of, and the tensors in between
        if images.device.type != "cuda":
            with live:
                network(images)
            return live.peak_bytes
        meter = Meter(images.device)
        with meter.measuring():
            network(images)
    return live.peak_bytes + (meter.peak_bytes or 0)


class _LiveTensors(TorchDispatchMode):
    """Adds up the memory of `held` and of every tensor that an operation inside returns, as long as it lives."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._bytes = WeakIdKeyDictionary()  # by storage: a view, or a result in place, needs none of its own
        self._add(held)

    def _add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._bytes[storage] = storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, sum(self._bytes.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        self._add(leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor))
        return returned


def verdict(found: Sequence[Comparison | CannotRun], before: Cost, after: Cost, pruned: nn.Module) -> str:
    """Whether the time fell with the multiply-adds (`before` -> `after`), and if not what may help.

    Less time is expected when the multiply-adds fell by more than a tenth. A setting counts as not faster when the
    quartiles of original / pruned reach down to 1, or when the median leaves more than 95 % of the time; as lagging
    when it saves a smaller share of the time than half the share of multiply-adds saved. Settings whose quartiles
    lie more than a factor UNSTEADY apart are not judged.
    """
    every = [each for each in found if isinstance(each, Comparison)]
    if not every:
        return "Nothing could be timed: none of the settings runs."
    timed = sorted((each for each in every if each.steady), key=lambda each: each.share)
    disturbed = (
        f"In {len(every) - len(timed)} of {len(every)} settings the quartiles lie more than a factor of {UNSTEADY} "
        "apart, so that nothing can be told: something else keeps this machine busy."
    )
    if not timed:
        return f"{disturbed} Repeat it on a quiet machine, with fewer --threads or with more --seconds."
    share, best, worst = after.macs / before.macs, timed[0], timed[-1]
    if share >= FELL:
        return f"Multiply-adds are at {share:.0%}, too many to expect less time; it is at {_percent(worst)}."
    slow = [each for each in timed if not each.faster]
    lagging = [each for each in timed if 1 - each.share < (1 - share) / 2]
    if slow:
        worst = slow[-1]
        text = f"but time is at {_percent(worst)}: not faster in {len(slow)} of {len(timed)} settings."
    elif lagging:
        text = (
            f"time only to {_percent(worst)}: it saves less than half of what they do in {len(lagging)} of "
            f"{len(timed)} settings."
        )
    else:
        text = f"time to {_percent(worst)}" + (f" or less: faster in all {len(timed)} settings." if timed[1:] else ".")
    if best.faster and best is not worst:
        text += f" At best it fell to {_percent(best)}."
    reasons = [_uneven(pruned)]
    if slow or lagging:
        reasons.append(_faster_with_fewer_threads(worst, timed))
        reasons += [] if any(reasons) else [_bound(worst, pruned)]
    if len(timed) < len(every):
        reasons.append(disturbed)
    return " ".join([f"Multiply-adds fell to {share:.0%}, {text}", *filter(None, reasons)])


def _percent(found: Comparison) -> str:
    low, high = 1 / found.ratio_high, 1 / found.ratio_low
    return f"{found.share:.0%} (quartiles {low:.0%} to {high:.0%}) at {found.setting}"


def _convolutions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]


def _uneven(pruned: nn.Module) -> str:
    """A hint, if there are widths that kernels do not like."""
    widths = [module.out_channels for module in _convolutions(pruned)]
    odd = sum(width % WIDTH_MULTIPLE > 0 for width in widths)
    if not odd:
        return ""
    return (
        f"{odd} of {len(widths)} convolutions have a width that is no multiple of {WIDTH_MULTIPLE} and often take as "
        f"long as the next one: prune with --round-to {WIDTH_MULTIPLE}."
    )


def _faster_with_fewer_threads(worst: Comparison, timed: Sequence[Comparison]) -> str:
    for each in timed:
        twin = replace(each.setting, threads=worst.setting.threads) == worst.setting
        if twin and each.setting.threads < worst.setting.threads and each.pruned.median_ms < worst.pruned.median_ms:
            return (
                f"There --threads {each.setting.threads} is faster than {worst.setting.threads}: the network is too "
                "small for more, or something else uses the cores."
            )
    return ""


def _bound(worst: Comparison, pruned: nn.Module) -> str:
    """The likely reason where all widths are fine."""
    depthwise = sum(1 < module.groups == module.in_channels for module in _convolutions(pruned))
    if depthwise:
        return (
            f"All widths are fine; its {depthwise} depthwise convolutions are probably bound by memory, not arithmetic."
        )
    what = "calling layers" if worst.setting.device == "cpu" else "starting kernels"
    return (
        f"All widths are fine; at batch {worst.setting.batch_size} and images of this size the time is probably spent "
        f"on {what} and on reading memory, not on arithmetic: larger batches or removing whole layers would show more."
    )
