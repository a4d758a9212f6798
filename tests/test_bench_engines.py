"""scripts/bench_engines.py: three ways to cut a network give the same bits, also after fine-tuning."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prune_fe

pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

RECIPE = """name: small
data: {source: digits, size: 32}
model: {name: vgg-small, arguments: {stages: [[8], [8]]}}
train: {epochs: 1}
score: {samples: 5}
scorers: [l1-filter]
finetune: {lr: 0.01, batch_size: 16}
"""


def test_the_three_ways_give_the_same_bits(
    load_script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    bench = load_script("bench_engines")
    recipe, network, output = tmp_path / "recipe.yaml", tmp_path / "trained", tmp_path / "engines.md"
    recipe.write_text(RECIPE)
    prune_fe.save(prune_fe.build("vgg-small", 10, stages=[[8], [8]], in_channels=1), network)
    command = ["bench_engines.py", "--trained", recipe, network, "data.validation=0.3", "--untrained", "--repeats", 2]
    command += ["--samples", 2, "--output", output]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    monkeypatch.setattr(bench, "measure_peak", lambda *_: 7.0)
    bench.main()
    rows = [line.split(" | ") for line in output.read_text().splitlines() if line.startswith(("| own", "| engine"))]
    assert [row[0] for row in rows] == ["| own pruner", "| engine torch-pruning", "| engine trace"]
    for row in rows:
        assert row[3:6] == ["7", rows[0][4], "same bits"]
        assert row[6:8] == rows[0][6:8]
        assert row[8] == "same bits |"
    assert re.fullmatch(r"1.000 \(1.000–1.000\)", rows[0][2])
    assert rows[0][6] != rows[0][7]  # fine-tuning changes the accuracy
    assert "own pruner" in capsys.readouterr().out


def test_other_bits_are_seen(load_script: Callable[[str], Any]) -> None:
    import torch

    bench = load_script("bench_engines")
    first = {"a": torch.ones(2), "b": torch.zeros(3)}
    assert bench.have_same_bits(first, {key: tensor.clone() for key, tensor in first.items()})
    assert not bench.have_same_bits(first, first | {"b": torch.tensor([0, 0, 1e-30])})
    assert not bench.have_same_bits(first, {"a": first["a"]})


def test_the_memory_of_a_process_of_its_own(load_script: Callable[[str], Any], tmp_path: Path) -> None:
    bench = load_script("bench_engines")
    peak = bench.measure_peak(bench.make_untrained_case("squeezenet1_1"), "engine trace", tmp_path)
    assert 0 < peak < 500
