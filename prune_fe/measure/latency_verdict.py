"""Say in words whether a pruned network became faster, and if not, why that may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from prune_fe.measure.cost import Cost
from prune_fe.measure.latency import CannotRun, Comparison
from prune_fe.measure.meter import UNSTEADY

FELL = 0.90
"""Less time is expected once the multiply-adds are below this share of the original's."""

WIDTH_MULTIPLE = 8
"""Kernels compute this many channels at once, or a multiple of it."""


def latency_verdict(results: Sequence[Comparison | CannotRun], before: Cost, after: Cost, pruned: nn.Module) -> str:
    """Return a text that says whether the time fell with the multiply-adds, and if not, what may help.

    Less time is expected if the multiply-adds fell by more than a tenth. In a setting the network is not faster if the
    lower quartile of original / pruned is 1 or less, or if the median is more than 95 % of the original's time. It
    lags behind if it saves less than half the share of time that it saves of multiply-adds. Settings whose quartiles
    differ by more than the factor `UNSTEADY` are left out.

    Args:
        results: The results of `compare_latency`.
        before: Cost of the original.
        after: Cost of the pruned network.
        pruned: The pruned network, whose layers may explain its time.
    """
    comparisons = [result for result in results if isinstance(result, Comparison)]
    if not comparisons:
        return "Nothing could be timed: none of the settings runs."
    timed = sorted((result for result in comparisons if result.steady), key=lambda result: result.share)
    disturbed = (
        f"In {len(comparisons) - len(timed)} of {len(comparisons)} settings the quartiles differ by more than a factor "
        f"of {UNSTEADY}, so that nothing can be concluded: something else keeps this machine busy."
    )
    if not timed:
        return f"{disturbed} Repeat it on a quiet machine, with fewer --threads or with more --seconds."
    share = after.macs / before.macs
    if share >= FELL:
        return f"Multiply-adds are at {share:.0%}, too many to expect less time; it is at {_percent(timed[-1])}."
    slow = [result for result in timed if not result.faster]
    lagging = [result for result in timed if 1 - result.share < (1 - share) / 2]
    worst = slow[-1] if slow else timed[-1]
    sentences = [f"Multiply-adds fell to {share:.0%}, {_time(timed, slow, lagging)}"]
    if timed[0].faster and timed[0] is not worst:
        sentences.append(f"At best it fell to {_percent(timed[0])}.")
    reasons = [_uneven_widths(pruned)]
    if slow or lagging:
        reasons.append(_fewer_threads(worst, timed))
        reasons += [] if any(reasons) else [_likely_bound(worst, pruned)]
    if len(timed) < len(comparisons):
        reasons.append(disturbed)
    return " ".join([*sentences, *filter(None, reasons)])


def _time(timed: Sequence[Comparison], slow: Sequence[Comparison], lagging: Sequence[Comparison]) -> str:
    """Return a clause about the time in the worst setting, and the number of settings like it.

    Args:
        timed: All settings by the share of time, smallest first.
        slow: Those in which the network is not faster.
        lagging: Those in which it saves less time than multiply-adds.
    """
    if slow:
        return f"but time is at {_percent(slow[-1])}: not faster in {len(slow)} of {len(timed)} settings."
    worst = _percent(timed[-1])
    if lagging:
        return (
            f"time only to {worst}: it saves less than half of what they do in {len(lagging)} of {len(timed)} settings."
        )
    return f"time to {worst}" + (f" or less: faster in all {len(timed)} settings." if timed[1:] else ".")


def _percent(result: Comparison) -> str:
    low, high = 1 / result.ratio_high, 1 / result.ratio_low
    return f"{result.share:.0%} (quartiles {low:.0%} to {high:.0%}) at {result.setting}"


def _convolutions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]


def _uneven_widths(pruned: nn.Module) -> str:
    """Return a hint if some widths are no multiple of `WIDTH_MULTIPLE`, otherwise an empty text."""
    widths = [module.out_channels for module in _convolutions(pruned)]
    uneven = sum(width % WIDTH_MULTIPLE > 0 for width in widths)
    if not uneven:
        return ""
    return (
        f"{uneven} of {len(widths)} convolutions have a width that is no multiple of {WIDTH_MULTIPLE} and often take "
        f"as long as the next one: prune with --round-to {WIDTH_MULTIPLE}."
    )


def _fewer_threads(worst: Comparison, timed: Sequence[Comparison]) -> str:
    """Return a hint if the same setting with fewer threads is faster, otherwise an empty text."""
    for result in timed:
        same_otherwise = replace(result.setting, threads=worst.setting.threads) == worst.setting
        fewer = result.setting.threads < worst.setting.threads
        if same_otherwise and fewer and result.pruned.median_ms < worst.pruned.median_ms:
            return (
                f"There --threads {result.setting.threads} is faster than {worst.setting.threads}: the network is too "
                "small for more, or something else uses the cores."
            )
    return ""


def _likely_bound(worst: Comparison, pruned: nn.Module) -> str:
    """Return the probable bottleneck of a network whose widths are all multiples of `WIDTH_MULTIPLE`."""
    depthwise = sum(1 < module.groups == module.in_channels for module in _convolutions(pruned))
    if depthwise:
        return (
            f"All widths are fine; its {depthwise} depthwise convolutions are probably bound by memory, not arithmetic."
        )
    overhead = "calling layers" if worst.setting.device == "cpu" else "starting kernels"
    return (
        f"All widths are fine; at batch {worst.setting.batch_size} and images of this size the time is probably spent "
        f"on {overhead} and on reading memory, not on arithmetic: larger batches or removing whole layers would show "
        "more."
    )
