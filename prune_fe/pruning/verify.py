"""Verify removals on a copy of the network with random weights, before anything is cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from prune_fe.errors import InputError, first_line
from prune_fe.pruning.cut import Cutter, KeptChannels
from prune_fe.pruning.groups import GroupId
from prune_fe.pruning.masked_code import DEFAULT_TOLERANCE, TOLERANCE, OwnCodeFault
from prune_fe.pruning.masking import largest_difference
from prune_fe.pruning.pooled_weights import copy_with_pooled_weights, cut_pooled_weights, find_poolable_layers
from prune_fe.tracing.branches import taking_training_branches
from prune_fe.tracing.calls import CallRecorder
from prune_fe.tracing.channel_ids import IdArray
from prune_fe.tracing.channel_tracer import ChannelTracer
from prune_fe.tracing.copying import convert, copy_model
from prune_fe.tracing.dependency_graph import SetId
from prune_fe.tracing.nested import Inputs, compare_outputs, count_rows, draw_like, move, run, take_rows, tensors_in
from prune_fe.tracing.watching import evaluating

Mode = Callable[[nn.Module], AbstractContextManager[None]]
"""The mode in which a network runs, as a function from the network to a context."""

UNKNOWN_MIXING = "some code mixes channels in a way not known"
"""The end of the reason that is given when the outputs differ."""

MIN_PIXELS = 4096
"""A verification uses so many images that they have this many pixels together ..."""

MAX_IMAGES = 16
"""... but not more than this number."""

SIDE_MULTIPLE = 32
"""The sides of images that are made smaller are multiples of this, which most networks can halve five times."""


@dataclass(frozen=True)
class Trial:
    """A copy of a network with random weights, to try removals on.

    Attributes:
        model: The copy. It is run and masked, and left as it was.
        inputs: The random inputs that it is run on.
        calls: What the network calls on its example, from `CallRecorder.calls`. A removal passes only if the cut copy
            calls the same. None for a copy and inputs that differ from the network and its example in values only.
        whole: The modules whose inner calls are not in `calls`.
        shows_faults: Whether a removal that fails here is taken to fail on the network, if the copy runs.
        has_branches: Whether the network takes other branches in training, which are compared too.
    """

    model: nn.Module
    inputs: Inputs
    calls: tuple[str, ...] | None = None
    whole: frozenset[str] = frozenset()
    shows_faults: bool = True
    has_branches: bool = False

    @cached_property
    def is_like_network(self) -> bool:
        """Whether a removal that fails here fails on the network: the copy runs and calls what the network calls."""
        if self.calls is None or not self.shows_faults:
            return self.shows_faults
        recorder = CallRecorder(self.whole)
        try:
            with evaluating(self.model), torch.no_grad(), recorder.recording(self.model):
                run(self.model, self.inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the network's own code may raise anything
            return False
        return tuple(recorder.calls) == self.calls


class Verifier:
    """Checks on a copy of a network whether removing coupled sets equals masking them.

    The first copies are cheap: they are run on small images, or read large weights from a pool. Where that is not
    certain to show what the network itself would, the next copy decides.
    """

    def __init__(self, trial: Trial, others: Iterable[Callable[[], Trial]] = ()) -> None:
        """Begin with one copy.

        Args:
            trial: The copy.
            others: Make the copies that decide after it, one after the other. The last one is like the network in all
                but the values of its weights.
        """
        self._trial, self._others = trial, iter(others)
        # Removals that passed: the coupled sets, and the attributes of modules that were changed with them.
        self._verified: set[tuple[frozenset[SetId], frozenset[tuple[str, str]]]] = set()
        self._coupled_set: IdArray | None = None  # of the graph that these coupled sets belong to

    @property
    def model(self) -> nn.Module:
        """The copy that removals are tried on now."""
        return self._trial.model

    @property
    def inputs(self) -> Any:
        """The random inputs that the copy is run on."""
        return self._trial.inputs

    def find_fault(self, cutter: Cutter, removed: Iterable[SetId]) -> str | None:
        """Remove coupled sets from a copy of the whole network, and compare its outputs with the masked network's.

        Args:
            cutter: The index mapping of the network.
            removed: The coupled sets.

        Returns:
            The reason why they cannot be removed together, or None if they can.
        """
        sets = frozenset(removed)
        if cutter.graph.coupled_set is not self._coupled_set:
            self._verified.clear()  # in another graph the same numbers are other channels
            self._coupled_set = cutter.graph.coupled_set
        key = sets, frozenset(cutter.code_sizes)
        if key in self._verified:
            return None
        fault, is_certain = _try_removal(self._trial, cutter, sets)
        while not is_certain:
            self._trial = next(self._others)()
            fault, is_certain = _try_removal(self._trial, cutter, sets)
        # Faults are not remembered: they end the pruning of their group.
        if fault is None:
            self._verified.add(key)
        return fault

    def find_failing_groups(
        self, cutter: Cutter, sets_of: Mapping[GroupId, Sequence[SetId]], removed: Iterable[SetId] = ()
    ) -> dict[GroupId, str]:
        """Return the groups for which removing units does not equal masking them, and the reason.

        Args:
            cutter: The index mapping of the network.
            sets_of: Group -> the coupled sets to remove from it.
            removed: Coupled sets that are removed already.

        Returns:
            Group -> reason. The other groups can be removed together.
        """
        sound = list(removed)
        if self.find_fault(cutter, [*sound, *(set_id for sets in sets_of.values() for set_id in sets)]) is None:
            return {}
        failing = {}
        # Groups are added one by one to those that passed, so that the ones that remain pass together.
        for group, sets in sets_of.items():
            reason = self.find_fault(cutter, [*sound, *sets])
            if reason is None:
                sound += sets
            else:
                failing[group] = _name_suspects(reason, cutter, sets)
        return failing


def _name_suspects(reason: str, cutter: Cutter, sets: Sequence[SetId]) -> str:
    """Add to a reason that ends in UNKNOWN_MIXING the functions that compute one value from the removed channels."""
    suspects = dict.fromkeys(
        what for what, mixed in cutter.graph.mixed_sets if not set(sets).isdisjoint(mixed.tolist())
    )
    return f"{reason}, perhaps {', '.join(suspects)}" if suspects and reason.endswith(UNKNOWN_MIXING) else reason


def _try_removal(trial: Trial, cutter: Cutter, sets: frozenset[SetId]) -> tuple[str | None, bool]:
    """Remove coupled sets from a copy of a trial's network.

    Returns:
        The reason why they cannot be removed together, or None; and whether this holds for the network itself.
    """
    kept, twin, recorder = cutter.channels_without(sets), copy_model(trial.model), CallRecorder(trial.whole)
    try:
        cutter.cut(twin, cutter.all_channels(), kept)
        cut_pooled_weights(twin, cutter, kept)
        watch = None if trial.calls is None else recorder.recording(twin)
        difference, scale = largest_difference(trial.model, twin, cutter.axes, kept, trial.inputs, watch)
    except torch.OutOfMemoryError:
        raise
    except OwnCodeFault as error:
        return str(error), trial.is_like_network
    except Exception as error:  # the network's own code may raise anything
        fault = f"without some of its units the network does not run: {first_line(error)}"
        return fault, trial.is_like_network
    # The comparison is also false, and the removal refused, where an output is NaN.
    if not difference <= TOLERANCE.get(_precision(trial), DEFAULT_TOLERANCE) * scale:
        return _describe_difference(trial, difference, scale), trial.is_like_network
    if trial.has_branches and (in_training := _find_training_fault(trial, cutter, kept, twin)):
        return in_training, trial.is_like_network
    return None, trial.calls is None or tuple(recorder.calls) == trial.calls


def _describe_difference(trial: Trial, difference: float, scale: float) -> str:
    """Return the reason why outputs that differ by so much forbid a removal."""
    if math.isnan(difference):
        return "with random weights the network's outputs are NaN, so no cut can be verified"
    if _draws_numbers(trial, evaluating):
        return "the network draws other random numbers for fewer units, so no cut can be verified"
    share = f"the outputs differ by {difference:.2g} of {scale:.2g}"
    return f"removing its units is not masking them ({share}): {UNKNOWN_MIXING}"


def _find_training_fault(trial: Trial, cutter: Cutter, kept: KeptChannels, twin: nn.Module) -> str | None:
    """Return what is wrong with the cut copy as in training; None if nothing is, or if it cannot be compared."""
    try:
        difference, scale = largest_difference(
            trial.model, twin, cutter.axes, kept, trial.inputs, mode=taking_training_branches
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the network's own code may raise anything
        fault = f"in training the network does not run without some of its units: {first_line(error)}"
        return fault if _run_again(trial, taking_training_branches) is not None else None
    if difference <= TOLERANCE.get(_precision(trial), DEFAULT_TOLERANCE) * scale:
        return None
    # A network that draws numbers for each of its channels draws others when there are fewer.
    if _draws_numbers(trial, taking_training_branches):
        return None
    share = f"the outputs differ by {difference:.2g} of {scale:.2g}"
    return f"in training, removing its units is not masking them ({share})"


def _draws_numbers(trial: Trial, mode: Mode) -> bool:
    """Return whether the copy of a trial returns other values with other random numbers, or NaN.

    Its outputs are NaN where random weights, such as a rate of dropout that is learnt, make no sense.
    """
    outputs = _run_again(trial, mode, seed=0), _run_again(trial, mode, seed=1)
    try:
        return compare_outputs(*outputs, "the model")[0] != 0
    except InputError:  # the shapes of its outputs are random too
        return True


def _run_again(trial: Trial, mode: Mode, seed: int = 0) -> Any:
    """Return what the copy of a trial returns in a mode, with a seed; None if it does not run."""
    with torch.random.fork_rng(devices=[]), mode(trial.model), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        try:
            return run(trial.model, trial.inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the network's own code may raise anything
            return None


def _precision(trial: Trial) -> torch.dtype:
    """Return the data type that a trial computes in: that of its inputs, or of its weights where these are tokens."""
    tensors = [*tensors_in(trial.inputs), *trial.model.parameters()]
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def make_verifier(
    model: nn.Module, example: Inputs, traced: nn.Module, tracer: ChannelTracer, has_branches: bool = False
) -> Verifier:
    """Return a verifier that begins with a copy that takes little memory, and with small images.

    A removal that passes there passes on the network: the cut copy must call the same modules and functions, in the
    same order, as the network on its example. One that fails is tried again as on the network.

    Args:
        model: The network.
        example: Inputs of the network.
        traced: A copy of the network that has run on `draw_inputs(example)`.
        tracer: What watched that run.
        has_branches: Whether the network takes other branches in training.
    """

    def try_as_it_is() -> Trial:
        twin, inputs = verification_copy(model, example)
        randomise(twin)
        return Trial(twin, inputs, has_branches=has_branches)

    layers = find_poolable_layers(traced, tracer.parameter_uses)
    twin = copy_with_pooled_weights(model, layers, torch.float64)
    randomise(twin)
    trial = Trial(twin, draw_inputs(example), tuple(tracer.calls), tracer.whole, has_branches=has_branches)
    small = _shrink(example)
    if small is example:
        return Verifier(trial, [try_as_it_is])
    return Verifier(replace(trial, inputs=draw_inputs(small), shows_faults=False), [lambda: trial, try_as_it_is])


def draw_inputs(example: Inputs, wanted: int = 2) -> Any:
    """Return random inputs like an example, in double precision.

    The smaller the images are, the more there are, so that no unit is zero on all of them.

    Args:
        example: Inputs of the network.
        wanted: There are at least so many images, unless the example has fewer or this is above MAX_IMAGES.
    """
    rows = min(count_rows(example), wanted)
    return draw_like(take_rows(example, _choose_count(example, rows)), torch.Generator().manual_seed(0), torch.float64)


def _choose_count(example: Inputs, rows: int) -> int:
    """Return the number of images like an example's to verify on: at least `rows`, but at most MAX_IMAGES."""
    if isinstance(example, list):  # The images of a detector may have different sizes, and it takes any number of them.
        return rows
    sizes = [math.prod(tensor.shape[2:]) for tensor in tensors_in(example) if tensor.is_floating_point()]
    return min(max(rows, MIN_PIXELS // max(*sizes, 1, 1)), MAX_IMAGES)


def _shrink(example: Inputs) -> Inputs:
    """Return a corner of the images that has about MIN_PIXELS pixels; the images themselves if they are not larger."""
    if not isinstance(example, Tensor) or example.ndim != 4:
        return example
    share = math.sqrt(MIN_PIXELS / math.prod(example.shape[2:]))
    sides = [min(math.ceil(share * side / SIDE_MULTIPLE) * SIDE_MULTIPLE, side) for side in example.shape[2:]]
    # The network may not run on another size, so that a smaller one is tried only where it saves at least half.
    return example[:, :, : sides[0], : sides[1]] if 2 * math.prod(sides) <= math.prod(example.shape[2:]) else example


def verification_copy(model: nn.Module, example: Inputs) -> tuple[nn.Module, Any]:
    """Return a copy of a network to verify removals on, and random inputs for it.

    Both are on the CPU and in double precision where the network's code allows it, so that a small difference cannot
    be a rounding error.

    Args:
        model: The network.
        example: Inputs of the network.

    Returns:
        The copy, and its inputs.
    """
    rows = count_rows(example)
    inputs = draw_inputs(example, rows)
    # Some networks run only on as many images as the example has.
    for tried in (count_rows(inputs), rows):
        twin = copy_model(model)
        try:
            convert(twin, "cpu", torch.float64)
            with evaluating(twin), torch.no_grad():
                run(twin, take_rows(inputs, tried))
            return twin, take_rows(inputs, tried)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            continue
    weight = next(model.parameters())
    return copy_model(model), move(take_rows(inputs, rows), weight.device, weight.dtype)


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Replace weights and statistics, in place, by random ones with which every channel affects the outputs.

    A layer that is initialised to zero, as the last norms of residual blocks are, would hide a wrong removal.

    Args:
        model: The network.
        seed: Seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw_uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.is_meta:
                continue  # It is read from a pool.
            if name.endswith("bias"):
                draw_uniform(weight, -0.2, 0.2)
            elif sum(size > 1 for size in weight.shape) > 1:
                # He's initialisation, so that values neither vanish nor overflow in a deep network.
                scale = (2 * len(weight) / weight.numel()) ** 0.5
                weight.copy_(torch.empty(weight.shape).normal_(0, scale, generator=generator))
            else:
                draw_uniform(weight, 0.5, 1.5)
        for module in model.modules():
            if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
                draw_uniform(module.running_mean, -0.2, 0.2)
                draw_uniform(module.running_var, 0.5, 1.5)
