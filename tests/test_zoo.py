"""scripts/zoo.py on one network of every kind of difficulty."""

import sys
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def zoo(load_script: Callable[[str], Any]) -> Any:
    return load_script("zoo")


@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet20",
        "torchvision/shufflenet_v2_x0_5",
        "torchvision/mobilenet_v3_small",
        "timm/ghostnet_100",
        "timm/cs3darknet_s",
        "timm/dpn68",
        "timm/densenetblur121d",
        "timm/poolformer_s12",
        "timm/resnest14d",
    ],
)
def test_cut_proved_saved_and_loaded(zoo: Any, name: str) -> None:
    row = zoo.cut(name, 32)
    assert row["outcome"] == "cut", row["why"]
    assert row["difference"][0] < 1e-3
    assert row["difference"][1] < 1e-9
    assert row["macs"][1] < 0.6 * row["macs"][0]


def test_a_network_that_hangs_or_dies_is_a_row_of_the_table(zoo: Any) -> None:
    assert zoo.run_in_a_process("cut", "timm/resnet18", 64, seconds=0.1, gib=32)["why"] == "not done after 0.1 s"
    row = zoo.run_in_a_process("cut", "timm/nothing", 64, seconds=120, gib=32)
    assert row["outcome"] == "FAILED"
    assert "unknown model 'timm/nothing'" in row["why"]


def test_the_report_counts_every_outcome(zoo: Any) -> None:
    rows = [
        {
            "name": "timm/a",
            "outcome": "cut",
            "parameters": [2e6, 1e6],
            "macs": [4e6, 1e6],
            "units": [10, 5],
            "why": "",
            "difference": [1e-7, 0.0],
            "seconds": 1.0,
            "torch_pruning": "25% left",
        },
        {"name": "timm/b", "outcome": "refused", "why": "layer 'x' | odd", "torch_pruning": "KeyError"},
    ]
    text = zoo.format_report(rows)
    assert "## timm: 1 of 2 cut, 1 refused, 0 failed" in text
    assert "| timm/a | cut | 2.00 → 1.00 | 4.00 → 1.00 | 5 of 10 | 1e-07, 0e+00 | 1.0 | 25% left |  |" in text
    assert "| timm/b | refused |  |  |  |  |  | KeyError | layer 'x' / odd |" in text
    assert "zoo" not in sys.modules
