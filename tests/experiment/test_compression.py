"""What is said of a compression in three lines."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_fe.experiment.compression import Compression
from prune_fe.experiment.results import Result, Row

ROW = Row("taylor", 0, 0.0, None, None, 0.5, 1.0, 1000, 10_000, 1.0, 1.0, 1.0, "cpu", None)
SETTING = {"batch_size": 1, "threads": 2, "dtype": "float32", "memory_format": "contiguous", "device": "cpu"}
TIMED = {
    "setting": SETTING,
    "original": {"median_ms": 12.34},
    "pruned": {"median_ms": 8.0},
    "ratio": 1.5,
    "ratio_low": 1.45,
    "ratio_high": 1.55,
    "faster": True,
    "steady": True,
}


def result(right: int, parameters: int = 1000, macs: int = 10_000, shift: int = 0) -> Result:
    correct = np.arange(1000) < right
    row = dataclasses.replace(ROW, accuracy_before=right / 1000, parameters=parameters, macs=macs)
    return Result("net", row, np.roll(correct, shift))


def lines(
    asked: tuple[str, Any] = ("target_macs", 0.5), *, macs: int = 5020, latency: Any = None, after: int = 661
) -> Any:
    pruned = result(after, 440, macs, shift=44)
    return str(Compression(Path("x"), asked, result(685), pruned, [TIMED] if latency is None else latency, None)).split(
        "\n"
    )


def test_cost_time_and_accuracy_with_the_interval_of_the_change() -> None:
    cost, time, accuracy = lines()
    assert cost == "50.2 % of the multiply-adds, 44 % of the parameters"
    assert time == "1.50× as fast (batch 1, 2 threads; 12.3 → 8 ms, medians)"
    # 44 images are lost and 20 gained: the standard error of the change is sqrt(64 - 24²/1000) / 1000 = 0.8 %.
    assert accuracy == "accuracy 68.5 → 66.1 % (−2.4 ± 1.6; 95 % interval, 1,000 test images)"


def test_what_was_asked_for_stands_beside_what_was_reached() -> None:
    assert lines(macs=7930)[0].startswith("79.3 % of the multiply-adds (asked for: 50 %, which the network's widths or")
    assert lines(("target_params", 0.44))[0] == "44 % of the parameters, 50.2 % of the multiply-adds"
    assert "asked" not in lines(("ratio", 0.5), macs=7930)[0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"faster": False, "ratio": 1.02}, "not faster: 1.02× as fast (batch 1"),
        ({"steady": False}, "times not comparable: this machine was busy with other work (batch 1"),
        ({"setting": SETTING | {"device": "cuda:0"}}, "1.50× as fast (batch 1, cuda:0;"),
        ({"setting": SETTING | {"threads": 1}}, "1.50× as fast (batch 1, 1 thread;"),
        ({"pruned": {"median_ms": 12.5}}, "1.50× as fast (batch 1, 2 threads; median of pairs timed in turn, on a"),
    ],
)
def test_a_network_that_is_not_faster_is_not_called_so(changes: dict[str, Any], text: str) -> None:
    assert lines(latency=[TIMED | changes])[1].startswith(text)


def test_a_network_that_could_not_be_timed_says_why() -> None:
    assert (
        lines(latency=[{"setting": SETTING, "network": "pruned", "reason": "no kernel"}])[1] == "not timed: no kernel"
    )


def test_a_gain_has_a_plus() -> None:
    assert lines(after=700)[2].startswith("accuracy 68.5 → 70.0 % (+1.5 ± ")
