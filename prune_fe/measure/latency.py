"""Compare the time and the peak memory of a pruned network with those of the original, setting by setting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from prune_fe.errors import InputError
from prune_fe.measure.meter import UNSTEADY, Meter, describe_threads, quartiles, seconds_in_turn
from prune_fe.tracing.copying import convert, copy_model
from prune_fe.tracing.nested import Inputs, describe, has_rows, map_tensors, run, take_rows, tensors_in
from prune_fe.tracing.weights import require_example, require_network

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

BLOCKS = 7
"""Least number of timed blocks; the quartiles of fewer ratios are meaningless."""

NOT_FASTER = 0.95
"""A network that takes more than this share of the original's time does not count as faster."""


@dataclass(frozen=True)
class Setting:
    """How networks are run.

    Attributes:
        batch_size: Images of one forward pass.
        threads: Threads of torch.
        dtype: Data type of weights and images, one of `DTYPES`.
        memory_format: One of `MEMORY_FORMATS`.
        device: Device, such as "cpu".
    """

    batch_size: int
    threads: int
    dtype: str
    memory_format: str
    device: str

    def __str__(self) -> str:
        threads = describe_threads(self.threads)
        return f"batch {self.batch_size}, {threads}, {self.dtype}, {self.memory_format}, {self.device}"


@dataclass(frozen=True)
class Latency:
    """Time and memory of one network in one setting, in evaluation mode.

    Attributes:
        network: "original" or "pruned".
        setting: How it was run.
        median_ms: Median time of a forward pass over the timed blocks, in milliseconds.
        low_ms: Lower quartile.
        high_ms: Upper quartile.
        runs: Number of timed blocks.
        peak_mib: Parameters, buffers, the batch and the maps of one pass, where their sum is largest, in MiB. On CUDA
            it is what torch allocates, including the workspaces of kernels; on other devices the size of the tensors
            that operations return, which is exact.
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
    """The original and the pruned network in one setting.

    Attributes:
        setting: How they were run.
        original: Latency of the original.
        pruned: Latency of the pruned network.
        ratio: Time of the original / time of the pruned network, higher = faster: the median over the pairs of blocks
            that were timed one after the other.
        ratio_low: Lower quartile.
        ratio_high: Upper quartile.
    """

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
        """Whether the ratio's lower quartile is above 1 and the time is at most `NOT_FASTER` of the original's."""
        return self.ratio_low > 1 and self.share <= NOT_FASTER

    @property
    def steady(self) -> bool:
        """Whether the quartiles of the ratio differ by no more than the factor `UNSTEADY`."""
        return self.ratio_high <= UNSTEADY * self.ratio_low


def describe_processor(setting: Mapping[str, Any]) -> str:
    """Return what the networks were timed on: the number of threads of a CPU, or the name of another device.

    Args:
        setting: A `Setting` as a dictionary.
    """
    return describe_threads(setting["threads"]) if setting["device"] == "cpu" else str(setting["device"])


def medians_agree(timed: Mapping[str, Any]) -> bool:
    """Return whether the medians of both networks tell the same as the ratio, which is the median of pairs.

    On a machine with other work, the blocks of one network may lie in slower minutes than those of the other.

    Args:
        timed: A `Comparison` as a dictionary.
    """
    quotient = timed["original"]["median_ms"] / timed["pruned"]["median_ms"]
    return bool(0.9 * timed["ratio_low"] <= quotient <= 1.1 * timed["ratio_high"])


@dataclass(frozen=True)
class CannotRun:
    """A setting in which one of the two networks cannot run.

    Attributes:
        setting: The setting.
        network: "original" or "pruned".
        reason: The message of the error that the network raised.
    """

    setting: Setting
    network: str
    reason: str

    def __str__(self) -> str:
        return f"{self.setting}: cannot run: {self.network}: {self.reason}"


def compare_latency(
    original: nn.Module,
    pruned: nn.Module,
    example: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    threads: Sequence[int] | None = None,
    dtypes: Sequence[str] = ("float32",),
    memory_formats: Sequence[str] = ("contiguous", "channels_last"),
    seconds: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> list[Comparison | CannotRun]:
    """Time two networks in turn in every combination of settings, on the device of `pruned`.

    Copies of the networks are timed on random images; the networks and torch's settings stay as they are.

    Args:
        original: The network before pruning.
        pruned: The network after pruning.
        example: Inputs of the networks, which give the size of an image: a tensor (images, channels, height, width), a
            tuple of positional arguments, or a dict of keyword arguments.
        batch_sizes: Images of one forward pass.
        threads: Threads of torch; default: 1 and torch's current number, on a GPU the latter only.
        dtypes: Data types, of `DTYPES`.
        memory_formats: Memory formats, of `MEMORY_FORMATS`.
        seconds: Each network is timed for at least this long in each setting.
        progress: Called after each setting with the numbers of finished settings and of all settings.

    Returns:
        One result for each setting.

    Raises:
        InputError: `pruned` has no parameters, or an argument is out of range.
    """
    require_network(original, "original")
    require_network(pruned, "pruned")
    require_example(example)
    weight = next(pruned.parameters())
    if threads is None:
        current = torch.get_num_threads()
        threads = sorted({1, current}) if weight.device.type == "cpu" else [current]
    _validate_counts(batch_sizes=batch_sizes, threads=threads)
    _validate_names("dtypes", dtypes, DTYPES)
    _validate_names("memory_formats", memory_formats, MEMORY_FORMATS)
    if not has_rows(example) and list(batch_sizes) != [1]:
        raise InputError(
            f"batch_sizes: {list(batch_sizes)}; allowed: [1], because the example's tensors have different first "
            f"sizes ({describe(example)})"
        )
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds: {seconds}; allowed: greater than 0")
    results: list[Comparison | CannotRun] = []
    total = math.prod(map(len, (batch_sizes, threads, dtypes, memory_formats)))
    for dtype, memory_format in itertools.product(dtypes, memory_formats):
        networks = {
            name: _converted_copy(network, weight.device, dtype, memory_format)
            for name, network in {"original": original, "pruned": pruned}.items()
        }
        for batch_size, count in itertools.product(batch_sizes, threads):
            setting = Setting(batch_size, count, dtype, memory_format, str(weight.device))
            results.append(_compare(setting, networks, _random_inputs(example, setting), seconds))
            if progress is not None:
                progress(len(results), total)
    return results


def _validate_counts(**options: Sequence[int]) -> None:
    for name, counts in options.items():
        if not counts or min(counts) < 1:
            raise InputError(f"{name}: {list(counts)}; allowed: one or more whole numbers, 1 or greater")


def _validate_names(option: str, names: Sequence[str], known: Collection[str]) -> None:
    if not names or not set(names) <= set(known):
        raise InputError(f"{option}: {list(names)}; allowed: one or more of {', '.join(known)}")


def _converted_copy(network: nn.Module, device: torch.device, dtype: str, memory_format: str) -> nn.Module:
    """Return a copy of a network in evaluation mode."""
    return convert(copy_model(network).eval(), device, DTYPES[dtype], memory_format=MEMORY_FORMATS[memory_format])


def _random_inputs(example: Inputs, setting: Setting) -> Any:
    """Return random inputs like an example for a setting; whole numbers, such as tokens, keep their values."""
    generator = torch.Generator().manual_seed(0)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.to(setting.device)
        # Zeros cost a GPU less power, and therefore less time, than images do.
        values = torch.rand(tensor.shape, generator=generator).to(setting.device, DTYPES[setting.dtype])
        is_image = values.ndim == 4
        return values.contiguous(memory_format=MEMORY_FORMATS[setting.memory_format]) if is_image else values

    return map_tensors(draw, take_rows(example, setting.batch_size))


def _compare(
    setting: Setting, networks: Mapping[str, nn.Module], inputs: Inputs, seconds: float
) -> Comparison | CannotRun:
    """Time both networks in one setting and measure their peak memory.

    Args:
        setting: The setting, to which networks and inputs are converted already.
        networks: "original" and "pruned" -> the network.
        inputs: The batch.
        seconds: Each network is timed for at least this long.
    """
    with _threads(setting.threads):
        with torch.inference_mode():
            for name, network in networks.items():
                try:
                    run(network, inputs)
                except Exception as error:  # Networks and libraries raise errors of any type.
                    return CannotRun(setting, name, " ".join(str(error).split())[:120] or type(error).__name__)
            passes = [partial(run, network, inputs) for network in networks.values()]
            times = seconds_in_turn(passes, seconds, torch.device(setting.device), BLOCKS)
        # This comes after the timing because cuDNN takes more memory while it tries its algorithms.
        peaks = [_peak_bytes(network, inputs) for network in networks.values()]
    original, pruned = (
        _latency(name, setting, spent, peak) for name, spent, peak in zip(networks, times, peaks, strict=True)
    )
    low, median, high = quartiles([before / after for before, after in zip(*times, strict=True)])
    return Comparison(setting, original, pruned, median, low, high)


def _latency(name: str, setting: Setting, times: Sequence[float], peak_bytes: int) -> Latency:
    low, median, high = (1e3 * value for value in quartiles(times))
    return Latency(name, setting, median, low, high, len(times), peak_bytes / 2**20)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set torch's number of threads inside a `with` statement."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peak_bytes(network: nn.Module, inputs: Inputs) -> int:
    """Return the peak memory of one forward pass, with the parameters, buffers and inputs.

    The resident memory of the process would also count what earlier passes have not returned to the system.
    """
    tensors = tensors_in(inputs)
    live = _LiveTensors([*network.parameters(), *network.buffers(), *tensors])
    # Inference mode would hide the operations that an operation consists of, and the tensors between them.
    with torch.no_grad():
        if tensors[0].device.type != "cuda":
            with live:
                run(network, inputs)
            return live.peak_bytes
        meter = Meter(tensors[0].device)
        with meter.measuring():
            run(network, inputs)
    return live.peak_bytes + (meter.peak_bytes or 0)


class _LiveTensors(TorchDispatchMode):
    """Adds up the memory of the tensors in use: given ones, and all that operations inside return, until freed.

    Attributes:
        peak_bytes: The largest sum so far.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak_bytes = 0
        # Storages are the keys because views and results of in-place operations share the memory of their source.
        self._bytes = WeakIdKeyDictionary()
        self._add(tensors)

    def _add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._bytes[storage] = storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, sum(self._bytes.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        self._add(leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor))
        return returned
