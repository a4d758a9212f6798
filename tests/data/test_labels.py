"""Labels and names are found through subsets and loaders."""

import hashlib

import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from prune_fe.data import labels
from prune_fe.data.datasets import InMemory
from prune_fe.data.image_folder import folder
from prune_fe.data.labels import class_names, hash_images, image_labels, image_names
from prune_fe.data.sampling import select_by_name
from prune_fe.data.transforms import Normalise
from prune_fe.errors import DataError
from tests.data.pictures import Labelled, picture


def test_images_are_named_by_their_path_or_their_number(tmp_path):
    for seed, name in enumerate(("train/b/2.png", "train/a/1.png", "train/b/10.png")):
        for other in (name, name.replace("train", "val")):
            (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
            picture(seed + 10 * (other == name)).save(tmp_path / other)
    for memory in (1.0, 0.0):  # decoded, and read from the disk each time
        test = folder(tmp_path, 8, memory_gib=memory).test
        assert image_names(test, [0, 2]) == ["a/1.png", "b/2.png"]
        assert image_names(Subset(test, [2, 1]), [1]) == ["b/10.png"]
        assert list(select_by_name(test, ["b/2.png", "a/1.png", "b/2.png"]).indices) == [0, 2]
    assert image_names(TensorDataset(torch.zeros(4)), [3, 1]) == ["3", "1"]
    with pytest.raises(DataError, match="image 'c': not among the 3 images to choose from"):
        select_by_name(test, ["c"])


def test_names_and_labels_are_found_through_subset_and_loader():
    subset = Subset(Labelled([0, 1, 1], classes=("a", "b")), [2, 0])
    assert class_names(DataLoader(subset)) == ("a", "b")
    assert class_names([]) == ()
    assert image_labels(subset) == [1, 0]
    assert image_labels(TensorDataset(torch.zeros(2, 1), torch.tensor([4, 5]))) == [4, 5]


def test_the_hash_of_images_is_of_their_names_labels_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    data = InMemory(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), [0, 1, 1], "ab", Normalise((0.0,), (1.0,)), "xyz")
    hashes = [hash_images(Subset(data, indices)) for indices in ([0, 1, 2], [0, 1], [1, 0], [0, 2], [0, 1])]
    assert len(set(hashes)) == 4
    assert hashes[1] == hashes[4]
    assert hash_images(data) == hashlib.sha256(b'[["x", "y", "z"], [0, 1, 1]]').hexdigest() == hashes[0]
    monkeypatch.setattr(labels, "HASHED_AT_ONCE", 2)
    assert hash_images(data) == hashes[0]
