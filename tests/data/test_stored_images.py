"""What all sources of encoded images share: choosing some, their order, and how little memory they take."""

from typing import Any

import pytest
import torch
from torch.utils.data import Subset

from prune_fe.data.image_files import find_image_files
from prune_fe.data.registry import load_data
from prune_fe.data.stored_images import StoredImages
from prune_fe.errors import DataError
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.scoring.score import score_all
from tests.data.containers import write_parquet, write_shards
from tests.data.pictures import images_of, photos


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same images in each container, as settings of `load_data`."""
    root = tmp_path_factory.mktemp("images")
    folder = photos(root / "photos", ("cat", "dog", "owl"), train=6, val=3)
    paths = {"folder": folder, "webdataset": write_shards(folder, root / "shards")}
    paths["parquet"] = write_parquet(folder, root / "parquet")
    return {source: {"source": source, "path": str(path)} for source, path in paths.items()}


@pytest.mark.parametrize("source", ["webdataset", "parquet"])
@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_the_same_images_have_the_same_scores_to_the_bit_in_any_container(
    containers: dict[str, dict[str, Any]], source: str, memory_gib: float
) -> None:
    torch.manual_seed(0)
    model, found = SmallVGG(3, 3), []
    for name in ("folder", source):
        splits = load_data(size=32, memory_gib=memory_gib, seed=1, **containers[name])
        assert splits.classes == ("cat", "dog", "owl")
        found.append((splits, score_all(model, splits.train, ["feature-entropy", "taylor"], samples=3, seed=2)))
    (folder, ours), (other, theirs) = found
    for part in ("train", "validation", "test"):
        assert torch.equal(images_of(getattr(folder, part)), images_of(getattr(other, part)))
    assert ours.keys() == theirs.keys()
    for scorer, scores in ours.items():
        for layer, keep in scores.keep.items():
            assert keep.tobytes() == theirs[scorer].keep[layer].tobytes()


@pytest.mark.parametrize("source", ["folder", "webdataset", "parquet"])
def test_processes_read_the_same_as_one(containers: dict[str, dict[str, Any]], source: str) -> None:
    from prune_fe.data.batches import make_loader

    splits = load_data(size=8, memory_gib=0.0, **containers[source])
    alone, two = (torch.cat([images for images, _ in make_loader(splits.test, 4, workers)]) for workers in (0, 1))
    assert torch.equal(alone, two)


@pytest.mark.parametrize("source", ["folder", "webdataset", "parquet"])
def test_every_container_gives_names_sizes_and_bytes(containers: dict[str, dict[str, Any]], source: str) -> None:
    splits: Any = load_data(size=8, memory_gib=0.0, **containers[source])
    images = splits.test
    assert isinstance(images, StoredImages)
    assert list(images.names) == [f"{name}/{number}.png" for name in ("cat", "dog", "owl") for number in range(3)]
    assert splits.stored_sizes == ((12, 9),) * 18
    for index in (0, 8):
        content = images.read_bytes(index)
        assert len(content) == images.sizes[index]
        assert content[:5] == images.read_bytes(index, 5)
    fewer = images.select([8, 1])
    assert torch.equal(fewer[0][0], images[8][0])
    assert (list(fewer.names), fewer.targets) == (["owl/2.png", "cat/1.png"], [2, 0])


@pytest.mark.parametrize("source", ["webdataset", "parquet"])
def test_equal_images_are_found_in_every_container(tmp_path: Any, source: str) -> None:
    folder = photos(tmp_path / "photos")
    (folder / "val" / "dog" / "9.png").write_bytes((folder / "train" / "cat" / "1.png").read_bytes())
    path = {"webdataset": write_shards, "parquet": write_parquet}[source](folder, tmp_path / "container")
    with pytest.raises(DataError, match=r"1 test images are training images too.*cat/1\.png.* and .*dog/9\.png"):
        load_data(source=source, path=str(path), size=8)


@pytest.mark.parametrize("source", ["folder", "webdataset", "parquet"])
def test_a_damaged_image_is_named_or_skipped(tmp_path: Any, source: str) -> None:
    folder = photos(tmp_path / "photos", train=6)
    (folder / "train" / "dog" / "2.png").write_bytes(b"<html>")
    writers = {"webdataset": write_shards, "parquet": write_parquet}
    path = writers[source](folder, tmp_path / "container") if source in writers else folder
    with pytest.raises(DataError, match=r"dog/2\.png.*: not an image that can be read"):
        load_data(source=source, path=str(path), size=8)
    with pytest.warns(UserWarning, match=r"1 images cannot be read and are left out: train/dog/2\.png"):
        splits: Any = load_data(source=source, path=str(path), size=8, skip_bad=1)
    assert len(splits.train) + len(splits.validation) == 11


def test_an_image_takes_some_hundred_bytes_at_most(tmp_path: Any) -> None:
    files = find_image_files(photos(tmp_path, train=20) / "train", str, str)
    tensors = [*files.names.tensors, *(getattr(files, name) for name in files.per_image)]
    assert sum(tensor.nbytes for tensor in tensors) / len(files) < 100
    assert not any(
        isinstance(value, list | tuple | dict) and len(value) >= len(files) for value in vars(files).values()
    )
    assert isinstance(Subset(files, [0]).dataset, StoredImages)
