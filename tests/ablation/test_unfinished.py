"""An interrupted ablation goes on to the bits of one that was not interrupted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prune_fe.ablation import trial as trial_module
from prune_fe.ablation import unfinished
from prune_fe.ablation.ablate import masks_without_first
from prune_fe.ablation.curves import MaskedPredictions
from prune_fe.ablation.tally import Tally
from prune_fe.ablation.trial import Run, Trial
from prune_fe.errors import CheckpointError
from prune_fe.tracing.layers import find_layers

UNITS = 6


class Net(nn.Module):
    """Behind `second` there is a convolution, behind `third` only a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.second = nn.Conv2d(3, UNITS, 3, padding=1)
        self.third = nn.Conv2d(UNITS, UNITS, 3, padding=1)
        self.classify = nn.Linear(UNITS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.third(self.second(x).relu()).relu().mean((2, 3)))


class Branching(Net):
    """Cannot be traced, so that the whole network is run for each mask."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > -1e9 else -x)


@pytest.fixture(autouse=True)
def _write_always_and_run_little_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(trial_module, "ROWS", 10)


def new_trial(network: type[Net], layer: str) -> Trial:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % 3) for n in (7, 4)]
    model = network()
    return Trial(model, batches, find_layers(model, batches[0][0][:1], [layer]))


def bits(result: MaskedPredictions) -> list[Any]:
    parts: list[MaskedPredictions] = [result, *result.halves]
    return [(part.images.tolist(), part.all_images, part.classes) for part in parts] + [
        getattr(part, name).tobytes() for part in parts for name in ("hits", "called", "loss")
    ]


def work(trial: Trial, path: Path | None) -> list[MaskedPredictions]:
    """Mask single units, and run two orders together."""
    orders = [list(range(UNITS)), list(range(UNITS))[::-1]]
    runs = [Run([masks_without_first(order, range(UNITS + 1))], order, [number]) for number, order in enumerate(orders)]
    single = trial.run_single_units(unfinished=path)
    return [single, *trial.run_all(runs, unfinished=path and path.with_name("several"))]


def stop_after(monkeypatch: pytest.MonkeyPatch, n_parts: int) -> Callable[[], int]:
    """Let the part after so many end in an interruption; return what counts the parts."""
    add, counted = Tally.add, [0]

    def stopping(tally: Tally, *arguments: Any) -> None:
        if counted[0] == n_parts:
            raise KeyboardInterrupt
        counted[0] += 1
        add(tally, *arguments)

    monkeypatch.setattr(Tally, "add", stopping)
    return lambda: counted[0]


@pytest.mark.parametrize("network", [Net, Branching])
@pytest.mark.parametrize("layer", ["second", "third"])
def test_interrupted_anywhere_and_resumed_gives_the_bits_of_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: type[Net], layer: str
) -> None:
    with monkeypatch.context() as patch:
        count = stop_after(patch, -1)
        expected = [bits(result) for result in work(new_trial(network, layer), None)]
        n_parts = count()
    assert n_parts >= 10
    for n_before in range(0, n_parts, 1 if n_parts < 20 else 7):
        path = tmp_path / str(n_before) / "single"
        with monkeypatch.context() as patch:
            count = stop_after(patch, n_before)
            with pytest.raises(KeyboardInterrupt):
                work(new_trial(network, layer), path)
        with monkeypatch.context() as patch:
            count = stop_after(patch, -1)
            assert [bits(result) for result in work(new_trial(network, layer), path)] == expected
            assert count() == n_parts - n_before  # nothing that was counted is done again


def test_the_file_of_other_work_is_ignored_and_a_damaged_one_named(tmp_path: Path) -> None:
    path, expected = tmp_path / "single", bits(new_trial(Net, "second").run_single_units())
    new_trial(Net, "third").run_single_units(unfinished=path)
    assert bits(new_trial(Net, "second").run_single_units(unfinished=path)) == expected
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"single: damaged .*; delete it, and these units are masked again"):
        new_trial(Net, "second").run_single_units(unfinished=path)


def test_it_is_written_only_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 30.0)
    new_trial(Net, "second").run_single_units(unfinished=tmp_path / "single")
    assert not list(tmp_path.iterdir())


def test_tallies_without_counts_are_left_out(tmp_path: Path) -> None:
    tallies = [Tally(2, (), None), Tally(2, (), None)]
    tallies[1].add(slice(0, 2), torch.randn(6, 3), torch.arange(3), torch.zeros(3, dtype=torch.long), range(3))
    unfinished.UnfinishedRuns(tmp_path / "file", "key").write_if_due(1, tallies)
    restored = [Tally(2, (), None), Tally(2, (), None)]
    assert unfinished.UnfinishedRuns(tmp_path / "file", "key").restore(restored) == 1
    assert restored[0].images.shape == (2, 0)
    np.testing.assert_array_equal(restored[1].loss, tallies[1].loss)
