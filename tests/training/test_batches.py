"""Which images each process takes in a step."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prune_fe.errors import DataError, InputError
from prune_fe.training import batches
from prune_fe.training.batches import (
    EpochOrder,
    ReadyBatches,
    UnpackedBatches,
    UnpackedSamples,
    first_image,
    is_ready,
    require_batch,
    unpacked,
)
from tests.training.helpers import pictures


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    monkeypatch.setattr(batches, "rank", lambda: rank)
    monkeypatch.setattr(batches, "world_size", lambda: count)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("n_images", "batch_size"), [(70, 32), (70, 17), (7, 7), (3, 20)])
def test_the_processes_share_what_one_takes(
    monkeypatch: pytest.MonkeyPatch, count: int, n_images: int, batch_size: int
) -> None:
    whole = list(EpochOrder(n_images, batch_size, seed=4))
    shares = []
    for rank in range(count):
        as_process(monkeypatch, rank, count)
        order = EpochOrder(n_images, batch_size, seed=4)
        parts = list(order)
        assert len(parts) == len(order) == len(whole)
        for number, (part, batch) in enumerate(zip(parts, whole, strict=True)):
            n_own, n_all, rows = order.rows(number)
            assert [batch[row] for row in rows] == part
            assert (n_all, n_own) == (len(batch), len(part) if rank < len(batch) else 0)
            assert part  # Every process has something to do in every step.
        shares.append([part[: order.rows(number)[0]] for number, part in enumerate(parts)])
    for number, batch in enumerate(whole):
        assert sorted(image for share in shares for image in share[number]) == sorted(batch)


def test_a_small_last_batch_is_left_out_but_not_an_only_one() -> None:
    assert [len(part) for part in EpochOrder(25, 12, 0, smallest=2)] == [12, 12]
    assert [len(part) for part in EpochOrder(26, 12, 0, smallest=2)] == [12, 12, 2]
    assert [len(part) for part in EpochOrder(1, 12, 0, smallest=2)] == [1]
    assert [len(part) for part in EpochOrder(5, 1, 0, smallest=2)] == [1] * 5


def test_the_loaders_of_several_processes_need_their_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    as_process(monkeypatch, 0, 2)
    with pytest.raises(InputError, match=r"needs a torch.utils.data.DistributedSampler"):
        ReadyBatches(DataLoader(pictures(6), 2))
    sampler: Any = torch.utils.data.DistributedSampler(pictures(6), 2, 0)
    monkeypatch.setattr(batches, "all_gather", lambda length: [length, 5])
    with pytest.raises(InputError, match=r"the processes have \[2, 5\] batches; they need equally many"):
        ReadyBatches(DataLoader(pictures(6), 2, sampler=sampler))
    ready = object.__new__(ReadyBatches)
    ready.batches = DataLoader(pictures(6), 2, sampler=sampler)
    ready.begin(3)
    assert sampler.epoch == 3


def test_no_batches_are_refused() -> None:
    with pytest.raises(DataError, match="no images to train on"):
        ReadyBatches([])


def test_a_list_is_batches_if_its_entries_have_several_labels() -> None:
    pairs = [pictures(6)[index] for index in range(6)]
    assert not is_ready(pairs)
    assert is_ready(list(DataLoader(pictures(6), 2)))
    assert not is_ready(pictures(6))
    named = [{"x": torch.rand(2, 1, 4, 4), "y": torch.tensor([0, 1])}]

    def unpack(batch: Any) -> Any:
        return batch["x"], batch["y"]

    assert isinstance(unpacked(named, unpack), UnpackedBatches)
    assert isinstance(unpacked([{"x": torch.rand(1, 4, 4), "y": 1}], unpack), UnpackedSamples)
    assert first_image(unpacked(named, unpack)).shape == (1, 1, 4, 4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (torch.rand(2, 1, 4, 4), "a batch is a Tensor; unpack=FUNCTION"),
        ((torch.rand(2, 1, 4, 4), ["a", "b"]), "a batch is a tuple; unpack=FUNCTION"),
        ((torch.rand(2, 1, 4, 4), torch.rand(2)), r"the labels are torch.float32 \(2,\)"),
        ((torch.rand(2, 1, 4, 4), torch.zeros(2, 3, dtype=torch.long)), r"the labels are torch.int64 \(2, 3\)"),
        ((torch.rand(3, 1, 4, 4), torch.zeros(2, dtype=torch.long)), r"a batch has 2 labels for images \(3, 1, 4, 4\)"),
    ],
)
def test_a_batch_of_something_else_is_refused(batch: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        require_batch(batch)


def test_the_first_image_leaves_the_random_numbers_alone() -> None:
    data = TensorDataset(*pictures(6).tensors)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first_image(DataLoader(data, 2, shuffle=True))
    assert torch.equal(first_image(data), data[0][0][None])  # type: ignore[arg-type]
    assert torch.equal(torch.rand(2), expected)
