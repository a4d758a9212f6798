"""Which images are read: so many of each class, the same for the same seed, shared by the processes."""

from collections import Counter

import pytest
import torch
from torch.utils.data import TensorDataset

from prune_fe.data import sampling
from prune_fe.data.sampling import choose_images, select_batches
from prune_fe.errors import DataError, InputError
from tests.data.pictures import Labelled


def numbers_in(batches):
    return [int(number) for images, _ in batches for number in images[:, 0, 0, 0]]


def test_choose_draws_so_many_of_each_class_and_the_same_for_the_same_seed():
    labelled = Labelled([i % 3 for i in range(60)])
    numbers = choose_images(labelled, None, 5, seed=1)
    assert Counter(labelled.targets[i] for i in numbers) == {0: 5, 1: 5, 2: 5}
    assert (
        numbers
        == sorted(set(numbers))
        == choose_images(labelled, None, 5, seed=1)
        != choose_images(labelled, None, 5, seed=2)
    )


def test_choose_takes_so_many_classes_or_the_named_ones():
    labelled = Labelled([i % 4 for i in range(40)])
    drawn = {labelled.targets[i] for i in choose_images(labelled, 2, None, seed=0)}
    assert len(drawn) == 2
    assert drawn == {labelled.targets[i] for i in choose_images(labelled, 2, 3, seed=0)}
    assert (
        len({tuple(sorted({labelled.targets[i] for i in choose_images(labelled, 2, 1, seed=s)})) for s in range(20)})
        > 1
    )
    assert choose_images(labelled, [3], None, seed=0) == list(range(3, 40, 4))
    assert choose_images(labelled, [3, 3], 10, seed=0) == list(range(3, 40, 4))


def test_the_images_of_a_class_do_not_depend_on_the_other_classes():
    labelled = Labelled([i % 4 for i in range(80)])
    whole = choose_images(labelled, None, 5, seed=2)
    for classes in (1, 2, 3, 4, [2], [1, 3], [0, 1, 2, 3]):
        part = choose_images(labelled, classes, 5, seed=2)
        assert set(part) <= set(whole)
        assert len(part) == 5 * (classes if isinstance(classes, int) else len(classes))
    assert choose_images(labelled, None, 5, seed=3) != whole


def test_choose_without_a_wish_takes_everything_and_asks_for_no_label():
    assert choose_images(TensorDataset(torch.zeros(5, 1)), None, None, seed=0) == [0, 1, 2, 3, 4]


def test_a_class_with_too_few_images_is_named_with_what_it_has_and_what_is_needed():
    labelled = Labelled([0, 0, 0, 1], classes=("many", "few"))
    with pytest.raises(DataError, match="class 'few': 1 images, 2 asked for"):
        choose_images(labelled, None, 2, seed=0)
    with pytest.raises(DataError, match="class '7': 0 images, 1 asked for"):
        choose_images(labelled, [7], None, seed=0)


@pytest.mark.parametrize("samples", [0, -3])
def test_less_than_one_image_of_a_class_is_refused(samples):
    with pytest.raises(InputError, match="samples: input should be greater than or equal to 1"):
        choose_images(Labelled([0, 1]), None, samples, seed=0)


@pytest.mark.parametrize(
    ("classes", "text"),
    [(0, "greater than or equal to 1"), (-1, "greater than or equal to 1"), (3, "classes=3: the data has 2 classes")],
)
def test_a_number_of_classes_that_the_data_has_not_is_refused(classes, text):
    with pytest.raises(InputError, match=text):
        choose_images(Labelled([0, 1]), classes, None, seed=0)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_several_processes_share_the_images_without_repetition(monkeypatch, world):
    labelled = Labelled([i % 2 for i in range(30)])
    monkeypatch.setattr(sampling, "world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(sampling, "rank", lambda rank=rank: rank)
        shares.append(numbers_in(select_batches(labelled, samples=10, seed=3, batch_size=4)))
    together = [number for share in shares for number in share]
    assert sorted(together) == choose_images(labelled, None, 10, seed=3)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_images_are_refused(monkeypatch):
    monkeypatch.setattr(sampling, "world_size", lambda: 3)
    with pytest.raises(DataError, match="2 images cannot be shared by 3 processes"):
        select_batches(Labelled([0, 1]))


def test_ready_batches_are_taken_as_they_are():
    batches = [(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))]
    assert select_batches(batches) is batches
    with pytest.raises(InputError, match="classes= and samples= need a data set"):
        select_batches(batches, samples=1)


def test_ready_batches_cannot_be_split_over_processes(monkeypatch):
    monkeypatch.setattr(sampling, "world_size", lambda: 2)
    with pytest.raises(InputError, match="several processes share a data set, or a DataLoader"):
        select_batches([])


def test_a_generator_is_refused_since_it_can_be_read_only_once():
    with pytest.raises(InputError, match="data is a generator and can be read only once"):
        select_batches(iter([]))
