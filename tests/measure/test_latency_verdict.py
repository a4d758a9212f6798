"""The sentences on whether a pruned network became faster."""

import dataclasses
from typing import Any

import pytest
from torch import nn

from prune_fe.measure.cost import Cost
from prune_fe.measure.latency import CannotRun, Comparison, Latency, Setting
from prune_fe.measure.latency_verdict import latency_verdict


def compared(share: float, spread: float = 0.01, **changed: Any) -> Comparison:
    """The pruned network takes `share` of the time, ± spread."""
    setting = dataclasses.replace(Setting(1, 1, "float32", "contiguous", "cpu"), **changed)
    before, after = (Latency(name, setting, ms, ms, ms, 20, 2.5) for name, ms in (("o", 10.0), ("p", 10 * share)))
    return Comparison(setting, before, after, 1 / share, 1 / (share + spread), 1 / (share - spread))


def verdict_of(
    *found: Comparison | CannotRun, macs: int = 31, widths: tuple[int, ...] = (8, 16), groups: int = 1
) -> str:
    network = nn.Sequential(*[nn.Conv2d(width, width, 3, groups=min(groups, width)) for width in widths])
    return latency_verdict(found, Cost(100, 100), Cost(50, macs), network)


def test_a_network_that_is_faster_is_called_so() -> None:
    assert verdict_of(compared(0.40), compared(0.35, batch_size=32)) == (
        "Multiply-adds fell to 31%, time to 40% (quartiles 39% to 41%) at batch 1, 1 thread, float32, contiguous, cpu "
        "or less: faster in all 2 settings. At best it fell to 35% (quartiles 34% to 36%) at batch 32, 1 thread, "
        "float32, contiguous, cpu."
    )
    assert verdict_of(compared(0.40)).endswith("contiguous, cpu.")


def test_multiply_adds_that_fell_without_the_time_are_said_plainly_with_the_hint() -> None:
    assert verdict_of(compared(0.97), compared(0.40, batch_size=32), widths=(7, 8, 12)) == (
        "Multiply-adds fell to 31%, but time is at 97% (quartiles 96% to 98%) at batch 1, 1 thread, float32, "
        "contiguous, cpu: not faster in 1 of 2 settings. At best it fell to 40% (quartiles 39% to 41%) at batch 32, "
        "1 thread, float32, contiguous, cpu. 2 of 3 convolutions have a width that is no multiple of 8 and often take "
        "as long as the next one: prune with --round-to 8."
    )


@pytest.mark.parametrize(
    ("share", "spread", "faster"),
    [(0.94, 0.01, True), (0.96, 0.01, False), (0.90, 0.11, False), (0.90, 0.09, True), (1.2, 0.01, False)],
)
def test_the_rule_is_95_percent_or_quartiles_that_reach_1(share: float, spread: float, faster: bool) -> None:
    found = compared(share, spread)
    assert found.faster == faster
    assert ("not faster in 1 of 1" in verdict_of(found)) != faster


def test_a_gain_of_less_than_half_is_said_too() -> None:
    assert "time only to 80%" in verdict_of(compared(0.80))
    assert "saves less than half of what they do in 1 of 1 settings. All widths are fine" in verdict_of(compared(0.80))
    assert "less than half" not in verdict_of(compared(0.60))


def test_multiply_adds_that_hardly_fell_promise_nothing() -> None:
    assert verdict_of(compared(0.99), macs=91).startswith(
        "Multiply-adds are at 91%, too many to expect less time; it is at"
    )
    assert verdict_of(compared(0.99), macs=89).startswith("Multiply-adds fell to 89%, but time is at 99%")


def test_where_widths_are_fine_the_likely_reason_is_named() -> None:
    assert "2 depthwise convolutions are probably bound by memory" in verdict_of(compared(1.0), groups=99)
    assert "at batch 1 and images of this size the time is probably spent on calling layers" in verdict_of(
        compared(1.0)
    )
    assert "spent on starting kernels" in verdict_of(compared(1.0, device="cuda:0"))


def test_more_threads_that_cost_time_are_the_first_reason() -> None:
    few, many = compared(0.4), compared(0.97, threads=8)
    assert "--threads 1 is faster than 8: the network is too small for more" in verdict_of(few, many, widths=(7,))
    assert "--threads" not in verdict_of(few, compared(0.97, threads=8, batch_size=2), widths=(7,))


def test_what_a_busy_machine_measured_is_not_judged() -> None:
    wild = compared(0.97, 0.3)
    text = verdict_of(compared(0.4), wild, compared(0.3))
    assert "faster in all 2 settings" in text
    assert (
        "In 1 of 3 settings the quartiles differ by more than a factor of 1.5, so that nothing can be concluded" in text
    )
    assert verdict_of(wild).startswith("In 1 of 1 settings the quartiles differ")
    assert "Repeat it on a quiet machine" in verdict_of(wild)


def test_settings_that_cannot_run_are_left_out_of_the_verdict() -> None:
    refusal = CannotRun(compared(1.0).setting, "pruned", "no")
    assert verdict_of(refusal) == "Nothing could be timed: none of the settings runs."
    assert "not faster in 1 of 1" in verdict_of(refusal, compared(1.0))
