"""What is interrupted goes on, to the same bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prune_fe.data import sampling
from prune_fe.scorers.counts import Counts
from prune_fe.scorers.feature_entropy import FeatureEntropy
from prune_fe.scoring import collection as collecting
from prune_fe.scoring import execution
from prune_fe.scoring.scores import load_scores
from prune_fe.scoring.snapshot import Snapshot, _pack, _unpack
from prune_fe.scoring.sums import RunningSum
from tests.scoring.sample import BATCH, READERS, Counting, Net, assert_same_bits, interrupt, scored


def by_an_image(net: Net, images: Counting, folder: Path) -> None:
    interrupt(net, images, folder)


def by_the_network(net: Net, images: Counting, folder: Path) -> None:
    """In the middle of a batch: one layer is measured and the other not."""

    def progress(done: int, total: int) -> None:
        net.fails = done == 2 * BATCH

    with pytest.raises(KeyboardInterrupt):
        scored(net, images, folder, progress=progress)
    net.fails = False
    images.reads.clear()


def by_the_user(net: Net, images: Counting, folder: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done == 2 * BATCH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(net, images, folder, progress=progress)
    images.reads.clear()


@pytest.mark.parametrize("stop", [by_an_image, by_the_network, by_the_user])
def test_interrupted_and_resumed_gives_the_bits_of_a_run_in_one_go(
    net: Net, images: Counting, tmp_path: Path, stop: Callable[[Net, Counting, Path], None]
) -> None:
    whole = scored(net, images, None)
    stop(net, images, tmp_path)
    images.reads.clear()
    seen: list[tuple[int, int]] = []
    resumed = scored(net, images, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert images.reads == list(range(2 * BATCH, 23))  # what is done is not read again
    assert seen == [(12, 23), (16, 23), (20, 23), (23, 23)]
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])
        assert_same_bits(load_scores(tmp_path / name), whole[name])


def test_it_can_be_interrupted_again_and_after_the_last_image(net: Net, images: Counting, tmp_path: Path) -> None:
    whole = scored(net, images, None)

    def stop_at(number: int) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if done == number:
                raise KeyboardInterrupt

        return progress

    for number in (4, 16, 23):
        with pytest.raises(KeyboardInterrupt):
            scored(net, images, tmp_path, progress=stop_at(number))
    images.reads.clear()
    resumed = scored(net, images, tmp_path)
    assert images.reads == []
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])


def test_a_sample_of_the_classes_is_resumed_too(net: Net, images: Counting, tmp_path: Path) -> None:
    options: dict[str, Any] = {"classes": [0, 2], "samples": 6, "seed": 4}
    whole = scored(net, images, None, **options)
    images.reads.clear()
    scored(net, images, None, **options)
    order = images.reads.copy()
    assert len(order) == 12
    images.broken = order[-1]
    with pytest.raises(KeyboardInterrupt):
        scored(net, images, tmp_path, **options)
    images.broken = 1000
    images.reads.clear()
    resumed = scored(net, images, tmp_path, **options)
    assert images.reads == order[2 * BATCH :]
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])


def test_what_is_unfinished_is_also_written_now_and_then(
    net: Net, images: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "SNAPSHOT_SECONDS", 0.0)
    there: list[bool] = []
    scored(net, images, tmp_path, progress=lambda done, total: there.append((tmp_path / ".unfinished-0").exists()))
    assert there == [False, True, True, True, True, True]
    assert not list(tmp_path.glob(".unfinished*"))


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "rubbish"])
def test_a_damaged_unfinished_file_is_ignored_and_everything_starts_again(
    net: Net, images: Counting, tmp_path: Path, damage: str
) -> None:
    whole = scored(net, images, None)
    interrupt(net, images, tmp_path)
    path = tmp_path / ".unfinished-0"
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"empty": b"", "short": content[:middle], "flipped": flipped, "rubbish": b"x" * 99}[damage])
    resumed = scored(net, images, tmp_path)
    assert images.reads == list(range(23))
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"batch_size": 4}, {"batch_size": 5}),
        ({"scorers": ["apoz", "hrank"]}, {"scorers": ["hrank", "apoz"]}),
        ({"scorers": ["apoz", "hrank"]}, {"scorers": ["apoz"]}),
        ({"scorers": {"a": "apoz"}}, {"scorers": {"b": "apoz"}}),
        ({"scorers": ["feature-entropy"]}, {"scorers": [FeatureEntropy(p=0.2)]}),
        ({"seed": 0, "samples": 5}, {"seed": 1, "samples": 5}),
        ({"layers": ["first"]}, {"layers": ["second"]}),
    ],
    ids=["batches", "order", "fewer", "labels", "settings", "sample", "layers"],
)
def test_what_other_work_left_unfinished_is_not_gone_on_with(
    net: Net, images: Counting, tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    interrupt(net, images, tmp_path, **before)
    assert (tmp_path / ".unfinished-0").exists()
    resumed, whole = scored(net, images, tmp_path, **after), scored(net, images, None, **after)
    for label in whole:
        assert_same_bits(resumed[label], whole[label])


def test_what_two_processes_left_is_not_gone_on_with_by_one(
    net: Net, images: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scored(net, images, None)
    with monkeypatch.context() as patch:
        for module in (sampling, execution):
            patch.setattr(module, "world_size", lambda: 2)
        interrupt(net, images, tmp_path)
    resumed = scored(net, images, tmp_path)
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])


def test_an_interruption_while_a_batch_is_added_costs_that_batch_and_nothing_else(
    net: Net, images: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, add, calls = scored(net, images, None), RunningSum.add, 0
    a_batch = 2 * len(READERS) - 1  # totals that it is added to: nisp has one layer, all others two

    def add_in_part(total: RunningSum, sums: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2 * a_batch + 3:
            raise KeyboardInterrupt
        add(total, sums)

    monkeypatch.setattr(collecting, "SNAPSHOT_SECONDS", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunningSum, "add", add_in_part)
        scored(net, images, tmp_path)
    images.reads.clear()
    resumed = scored(net, images, tmp_path)
    assert images.reads == list(range(2 * BATCH, 23))
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])


def test_an_interruption_without_a_folder_leaves_nothing(
    net: Net, images: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    interrupt(net, images, None)
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_of_the_machine_left_is_another_file(
    net: Net, images: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(net, images, tmp_path)
    snapshot = Snapshot(tmp_path, "work")
    assert [path.name for path in tmp_path.iterdir()] == [snapshot.path.name] == [".unfinished-0"]
    monkeypatch.setattr("prune_fe.scoring.snapshot.rank", lambda: 3)
    assert Snapshot(tmp_path, "work").path.name == ".unfinished-3"
    snapshot.remove()
    snapshot.remove()
    assert not list(tmp_path.iterdir())


def test_counts_are_stored_as_the_indices_and_values_of_a_sparse_tensor() -> None:
    """As they were when they were one, so that its files are still read."""
    counts = Counts.of((4, 2, 9), np.array([3, 0, 3]), np.array([[5, 8], [0, 8], [5, 1]]))
    packed = _pack(counts)
    sparse = {(0, 0, 0): 1, (0, 1, 8): 1, (3, 0, 5): 2, (3, 1, 1): 1, (3, 1, 8): 1}
    assert [tuple(index) for index in packed["indices"].T.tolist()] == list(sparse)
    assert packed["values"].tolist() == list(sparse.values())
    assert packed["shape"] == (4, 2, 9)
    assert {value.dtype for value in packed.values() if isinstance(value, Tensor)} == {torch.int64}
    again: Any = _unpack(packed)
    assert again.entries.tolist() == counts.counted().entries.tolist()
    assert again.counts.tolist() == [1, 1, 2, 1, 1]
