"""scripts/zoo.py on one network of every kind of difficulty."""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prune_fe
from zoos.networks import build_network, draw_inputs, list_networks
from zoos.report import find_rows_behind, format_report
from zoos.rival import check_cut
from zoos.tested import SMALL, TESTED, is_tested


@pytest.fixture(scope="module")
def zoo(load_script: Callable[[str], Any]) -> Any:
    return load_script("zoo")


@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet20",
        "unet",
        "yolo",
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


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("tested/test_cascaded_concat", "same bits"),
        ("tested/test_multiple_inputs_and_outputs", "refused"),
        ("tested/test_split", "same bits"),
        ("timm/ghostnet_100", "same bits"),
    ],
)
def test_both_engines_have_columns(zoo: Any, name: str, outcome: str) -> None:
    first = zoo.cut(name, 32)
    columns = zoo.cut_with_engine(name, 32, first.get("digest", ""))
    assert first.keys().isdisjoint(columns)
    assert columns["engine_outcome"] == outcome, columns
    assert bool(columns.get("engine_why")) == (outcome != "same bits")


def test_a_digest_is_of_names_shapes_and_bits(zoo: Any) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4))
    first = zoo.find_digest(model)
    assert zoo.find_digest(copy.deepcopy(model)) == first
    model.get_parameter("0.bias").data[1] = -0.0
    assert zoo.find_digest(model) != first
    assert zoo.find_digest(nn.BatchNorm2d(4)) != first


def test_rows_are_measured_once(zoo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def run(part: str, entry: str, *limits: Any, digest: str) -> dict[str, Any]:
        calls.append((part, entry, *limits, digest))
        return found[part]

    found: dict[str, dict[str, Any]] = {
        "theirs": {"their_left": 0.5},
        "cut": {"name": "timm/a", "digest": "d"},
        "engine": {"engine_left": 1},
    }
    calls: list[Any] = []
    monkeypatch.setattr(zoo, "run_in_a_process", run)
    arguments = argparse.Namespace(rows=tmp_path, compare=True, seconds=9, gib=2, kept=False)
    row = {"name": "timm/a", "their_left": 0.5, "digest": "d", "engine_left": 1}
    for _ in range(2):
        assert zoo.measure("timm/a:96", arguments) == row
        assert [call[0] for call in calls] == ["theirs", "cut", "engine"]
        assert [call[1:4] for call in calls] == 3 * [("timm/a:96", 9, 2)]
        assert [call[4] for call in calls] == ["", "", "d"]
    monkeypatch.setattr(zoo, "find_versions", lambda: "others")
    zoo.measure("timm/a:96", arguments)
    assert len(calls) == 6
    arguments.kept = True
    assert zoo.measure("timm/b", arguments) == {}
    assert zoo.measure("timm/a", arguments) == row
    assert len(calls) == 6


def test_a_row_with_both_engines_stays_as_it_is(zoo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(zoo, "run_in_a_process", None)
    row = {"name": "a", "outcome": "cut", "engine_outcome": "same bits"}
    (tmp_path / "a-cut.json").write_text(json.dumps({"versions": zoo.find_versions(), "row": row}))
    arguments = argparse.Namespace(rows=tmp_path, compare=False, seconds=9, gib=2, kept=False)
    assert zoo.measure("a", arguments) == row


def test_how_a_process_ended_is_the_outcome_of_its_part(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        stdout, stderr, returncode = "", "noise\nMemoryError: much\n", 1

    monkeypatch.setattr(zoo.subprocess, "run", lambda *_, **__: Ended)
    assert zoo.run_in_a_process("cut", "a:64", 1, 1) == {"name": "a", "outcome": "FAILED", "why": "MemoryError: much"}
    assert zoo.run_in_a_process("engine", "a:64", 1, 1) == {"engine_outcome": "MemoryError: much"}
    assert zoo.run_in_a_process("theirs", "a:64", 1, 1) == {"their_outcome": "MemoryError: much"}
    Ended.stdout = 'noise\n{"their_left": 1}\n'
    assert zoo.run_in_a_process("theirs", "a:64", 1, 1) == {"their_left": 1}


def test_the_networks_of_torch_prunings_tests_are_counted() -> None:
    names = [name for name in (entry.partition(":")[0] for entry in list_networks()) if is_tested(name)]
    assert len(names) == len(set(names)) == len(SMALL) + len(TESTED) + 20
    rows = [ROWS[0] | {"name": "tested/test_split"}, ROWS[0] | {"name": "torchvision/resnet34"}, ROWS[1]]
    assert 'Of these 2 networks: engine "trace" 2 cut; engine "torch-pruning" 2 same bits;' in format_report(rows, "")


def test_a_network_that_hangs_or_dies_is_a_row_of_the_table(zoo: Any) -> None:
    assert zoo.run_in_a_process("cut", "timm/resnet18:64", seconds=0.1, gib=32)["why"] == "not done in 0.1 s"
    row = zoo.run_in_a_process("cut", "timm/nothing:64", seconds=120, gib=32)
    assert row["outcome"] == "FAILED"
    assert "unknown model 'timm/nothing'" in row["why"]


ROWS: list[dict[str, Any]] = [
    {
        "name": "timm/a",
        "outcome": "cut",
        "parameters": [2e6, 1e6],
        "macs": [4e6, 1e6],
        "units": [10, 5],
        "why": "2× held",
        "difference": [1e-7, 0.0],
        "seconds": 1.0,
        "engine_outcome": "same bits",
        "engine_left": 0.5,
        "engine_seconds": 1.2,
        "their_outcome": "right",
        "their_left": 0.25,
        "their_seconds": 0.5,
    },
    {
        "name": "timm/b",
        "outcome": "refused",
        "why": "layer 'x' | odd",
        "engine_outcome": "refused",
        "engine_why": 'engine torch-pruning: it cannot; the engine "trace" may be able to cut it',
        "their_outcome": "KeyError: 3",
    },
    {"name": "c", "outcome": "refused", "why": "no", "their_outcome": "right", "their_left": 0.3, "their_seconds": 1},
]


def test_the_report_counts_every_outcome() -> None:
    text = format_report(ROWS, "columns", "rival")
    assert "## timm: 1 of 2 cut, 1 refused, 0 failed" in text
    row = "| timm/a | cut | 2.00 → 1.00 | 50% | 4.00 → 1.00 | 5 of 10 | 1e-07, 0e+00 | 1.0 "
    assert f"{row}| same bits | 50% | 1.2 | right | 25% | 0.5 | 2× held |" in text
    cells = "|  |  |  |  |  |  | refused: it cannot |  |  | KeyError: 3 |  |  | layer 'x' / odd |"
    assert f"| timm/b | refused {cells}" in text
    assert "## The engine torch-pruning: of 3 networks, 1 same bits, 1 refused, 1 not tried" in text
    assert "of 3 networks, 2 cut right, 1 ended by an error" in text
    assert "or leaves more of: 2." in text
    assert "## Against torch-pruning" not in format_report(ROWS, "columns")
    assert "zoo" not in sys.modules


def test_what_torch_pruning_cuts_right_and_more_is_listed_with_the_reason() -> None:
    assert find_rows_behind(ROWS) == [
        "- timm/a: 50% are left, by torch-pruning 25%. 2× held",
        "- c: refused, torch-pruning leaves 30%. no",
    ]
    assert find_rows_behind([ROWS[0] | {"their_left": 0.485}]) == []
    assert find_rows_behind([ROWS[0] | {"their_outcome": "WRONG by 1e-01"}]) == []


def test_a_cut_of_another_program_is_compared_with_masking() -> None:
    torch.manual_seed(1)
    model: Any = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(), nn.ConvTranspose2d(8, 8, 2, groups=2), nn.Conv2d(8, 2, 1)
    )
    model = model.double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    pruned = prune_fe.prune(model, prune_fe.score(model, None, scorer="l1-filter"), 0.5, images[:1]).model
    assert check_cut(model, pruned, images, 1e-9) == "right"
    swapped: Any = copy.deepcopy(pruned)
    swapped[4].weight.data = swapped[4].weight.data.flip(1)
    assert check_cut(model, swapped, images, 1e-9).startswith("WRONG by ")
    swapped[0].weight.data *= 2
    assert check_cut(model, swapped, images, 1e-9) == "not checked (it has weights that the original has not)"


def test_a_bias_in_front_of_a_norm_has_no_gradient_in_any_network(zoo: Any) -> None:
    # As the biases of hgnetv2's affine blocks, whose gradient is a rounding error in the whole network and exactly
    # zero in the pruned one.
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 2)).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    assert zoo.find_unreached(zoo.find_gradients(model, images)) == {"0.bias"}
    assert model[0].bias.grad is not None
    assert model[0].bias.grad.abs().max() > 0


def test_every_network_can_be_built_and_runs_on_its_inputs() -> None:
    names = [entry.partition(":")[0] for entry in list_networks()]
    assert len(set(names)) == len(names)
    for name in ("yolo", "unet", "torchvision/lraspp_mobilenet_v3_large"):
        with torch.no_grad():
            build_network(name).eval()(draw_inputs(name, 64, 1))
