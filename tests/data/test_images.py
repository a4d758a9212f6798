"""Images: the splits, the samples, and what happens to a folder, an archive or an image that is not as it should be."""

import io
import random
import shutil
import tarfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from prune_fe.data import images as data
from prune_fe.data.images import (
    checked,
    choose,
    class_names,
    digits,
    first_images,
    folder,
    image_names,
    loader,
    named,
    read_image,
    select,
    split,
    unpacked,
)
from prune_fe.errors import DataError, InputError


def picture(seed=0, mode="RGB", size=(12, 9)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def photos(root, classes=("cat", "dog"), train=4, val=2):
    """A folder of classes, each image another one."""
    for part, count in (("train", train), ("val", val)):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture(1000 * number + i + (500 if part == "val" else 0)).save(root / part / name / f"{i}.png")
    return root


def packed(path, root, prefix=""):
    with tarfile.open(path, "w:gz" if path.suffix in {".gz", ".tgz"} else "w") as tar:
        for part in ("train", "val"):
            tar.add(root / part, arcname=f"{prefix}{part}")
    return path


def images_of(dataset):
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


class Labelled(Dataset):
    """Image i is the number i."""

    def __init__(self, targets, classes=()):
        self.targets = list(targets)
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.full((1, 2, 2), float(index)), self.targets[index]


def numbers_in(batches):
    return [int(number) for images, _ in batches for number in images[:, 0, 0, 0]]


# Splits


def test_digits_have_the_size_that_is_asked_for_and_values_around_zero():
    splits = digits(16)
    image, label = splits.test[0]
    assert (image.shape, image.dtype, splits.channels, splits.size) == ((1, 16, 16), torch.float32, 1, 16)
    assert label in range(10)
    assert splits.classes == tuple("0123456789")
    everything = images_of(splits.train)
    assert -1 <= everything.min() < -0.9
    assert 0.9 < everything.max() <= 1


def test_digits_are_all_there_and_none_is_in_two_splits():
    splits: Any = digits(8)
    train, validation = set(splits.train.indices), set(splits.validation.indices)
    assert not train & validation
    assert len(train) + len(validation) + len(splits.test) == 1797
    assert splits.train.dataset is splits.validation.dataset is not splits.test


def test_the_test_images_do_not_depend_on_the_seed_and_the_validation_images_do():
    splits: list[Any] = [digits(8, seed=seed) for seed in (1, 2, 1)]
    one, two, again = splits
    assert torch.equal(one.test.pixels, two.test.pixels)
    assert one.validation.indices == again.validation.indices != two.validation.indices


@settings(max_examples=500, deadline=None)
@given(
    targets=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_split_is_stratified_disjoint_and_complete(targets, share, seed):
    kept, held_out = split(targets, share, seed)
    assert sorted(kept + held_out) == list(range(len(targets)))
    assert (kept, held_out) == split(targets, share, seed)
    held = Counter(targets[i] for i in held_out)
    for label, count in Counter(targets).items():
        assert held[label] == min(max(round(share * count), 1), count - 1)


# A folder of classes


def test_a_folder_of_classes_gives_its_classes_and_three_splits(tmp_path):
    splits: Any = folder(photos(tmp_path, ("dog", "<cat>"), train=10, val=3), 8, validation=0.2)
    assert splits.classes == ("<cat>", "dog")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (16, 4, 6)
    assert (splits.test[0][0].shape, splits.channels, splits.size) == ((3, 8, 8), 3, 8)


def test_decoding_once_and_each_time_give_the_same_bits(tmp_path):
    photos(tmp_path)
    once, each_time = folder(tmp_path, 7), folder(tmp_path, 7, memory_gib=0)
    assert isinstance(once.test, data.InMemory)
    assert not isinstance(each_time.test, data.InMemory)
    for ours, theirs in ((once.train, each_time.train), (once.test, each_time.test)):
        assert torch.equal(images_of(ours), images_of(theirs))
        assert data.targets_of(ours) == data.targets_of(theirs)


def test_images_are_normalised_as_torchvision_does(tmp_path):
    from torchvision.transforms import v2

    photos(tmp_path)
    steps = [v2.ToImage(), v2.Resize((7, 7), antialias=True), v2.ToDtype(torch.float32, scale=True)]
    theirs = v2.Compose([*steps, v2.Normalize(data.IMAGENET_MEAN, data.IMAGENET_STD)])
    expected = theirs(Image.open(tmp_path / "val" / "cat" / "0.png").resize((7, 7), Image.Resampling.BILINEAR))
    torch.testing.assert_close(folder(tmp_path, 7).test[0][0], expected, rtol=0, atol=2e-6)


def test_progress_counts_every_image_once(tmp_path):
    seen = []
    folder(photos(tmp_path), 8, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_a_class_that_is_only_in_train_or_only_in_val_is_named(tmp_path):
    photos(tmp_path)
    (tmp_path / "train" / "owl").mkdir()
    picture().save(tmp_path / "train" / "owl" / "0.png")
    with pytest.raises(DataError, match="class 'owl' is in train or in val, but not in both"):
        folder(tmp_path, 8)


def test_a_class_without_images_is_named(tmp_path):
    photos(tmp_path)
    (tmp_path / "train" / "owl").mkdir()
    (tmp_path / "train" / "owl" / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="train: class 'owl': 0 images, at least 1 is needed"):
        folder(tmp_path, 8)


def test_what_is_missing_from_the_layout_is_said(tmp_path):
    with pytest.raises(DataError, match="none: no such folder or tar file"):
        folder(tmp_path / "none", 8)
    with pytest.raises(DataError, match=r"train: no such folder; expected .*/train/<class>/\* and .*/val/<class>/\*"):
        folder(tmp_path, 8)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="Couldn't find any class folder"):
        folder(tmp_path, 8)


# One image


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "LA"])
def test_an_image_of_any_8_bit_mode_becomes_rgb(tmp_path, mode):
    suffix = "tiff" if mode == "CMYK" else "png"
    original = picture(mode=mode)
    original.save(tmp_path / f"image.{suffix}")
    image = read_image(str(tmp_path / f"image.{suffix}"))
    assert (image.mode, image.size) == ("RGB", (12, 9))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(original.convert("RGB")))


def test_a_16_bit_image_is_refused_and_not_clipped_to_white(tmp_path):
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: pixels of mode 'I;16'; images have 8 bits"):
        read_image(str(tmp_path / "deep.png"))


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_a_damaged_image_stops_with_its_path(tmp_path, content, memory_gib):
    photos(tmp_path)
    bad = tmp_path / "train" / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:-40] if content is None else content)
    with pytest.raises(DataError, match=r"train/dog/2\.png: not an image that can be read"):
        splits: Any = folder(tmp_path, 8, memory_gib=memory_gib)
        images_of(splits.train.dataset)


@pytest.mark.parametrize("form", ["jpeg", "png", "bmp", "gif", "tiff", "webp", "ppm"])
def test_whatever_a_decoder_raises_at_damage_becomes_one_error(tmp_path, form):
    stream = io.BytesIO()
    picture(size=(24, 20)).save(stream, form.upper())
    whole, chance, path = stream.getvalue(), random.Random(0), tmp_path / f"image.{form}"
    refused = 0
    for number in range(60):
        content = bytearray(whole if number % 2 else whole[: chance.randrange(len(whole))])
        for _ in range(number % 5 if content else 0):
            content[chance.randrange(min(len(content), 60))] = chance.randrange(256)
        path.write_bytes(content)
        try:
            with warnings.catch_warnings(action="ignore"):
                read_image(str(path))
        except DataError as error:
            refused += str(error).startswith(f"{path}: ")
    assert refused >= 20


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    picture().save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"bomb\.png: not an image that can be read .*exceeds limit"):
        read_image(str(tmp_path / "bomb.png"))


# A tar file


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz", "set.tgz"])
@pytest.mark.parametrize("prefix", ["", "set-1.0/"])
def test_a_tar_file_is_unpacked_beside_itself(tmp_path, name, prefix):
    photos(tmp_path / "src")
    archive = packed(tmp_path / name, tmp_path / "src", prefix)
    splits = folder(archive, 8)
    assert torch.equal(images_of(splits.test), images_of(folder(tmp_path / "src", 8).test))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "set", "src"])


def test_a_tar_file_is_unpacked_once(tmp_path):
    archive = packed(tmp_path / "set.tar", photos(tmp_path / "src"))
    (unpacked(archive) / "train" / "cat" / "0.png").unlink()
    assert not (unpacked(archive) / "train" / "cat" / "0.png").exists()


def test_folders_beside_the_top_one_do_not_hide_it(tmp_path):
    archive = packed(tmp_path / "set.tar", photos(tmp_path / "src"), "set-1.0/")
    (unpacked(archive).parent / "__MACOSX").mkdir()
    assert unpacked(archive).name == "set-1.0"


def member(name, **fields):
    entry = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("../escaped"), "outside the destination"),
        (member("train/../../escaped"), "outside the destination"),
        (member("train/l", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "'train/l' is a link or a device, refused"),
        (member("train/l", type=tarfile.SYMTYPE, linkname="a"), "'train/l' is a link or a device, refused"),
        (member("train/l", type=tarfile.LNKTYPE, linkname="train/a"), "'train/l' is a link or a device, refused"),
        (member("train/d", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "'train/d' is a link or a device, refused"),
        (member("train/f", type=tarfile.FIFOTYPE), "'train/f' is a link or a device, refused"),
    ],
)
def test_a_member_that_could_reach_outside_is_refused_and_nothing_stays(tmp_path, bad, message):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.addfile(member("train/a", size=3), io.BytesIO(b"abc"))
        tar.addfile(bad)
    with pytest.raises(DataError, match=message):
        unpacked(tmp_path / "set.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar"]


@pytest.mark.parametrize("members", [[2**20], [0] * 2000], ids=["one large file", "very many empty ones"])
def test_an_archive_that_unpacks_to_far_too_much_is_refused(tmp_path, monkeypatch, members):
    monkeypatch.setattr(data, "SLACK_BYTES", 2**19)
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz", compresslevel=9) as tar:
        for number, size in enumerate(members):
            tar.addfile(member(f"train/{number}", size=size), io.BytesIO(bytes(size)))
    with pytest.raises(DataError, match=r"unpacks to more than \d+ MiB, refused"):
        unpacked(tmp_path / "set.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz"]


@pytest.mark.parametrize("name", ["set.tar", "set.tar.gz"])
def test_a_truncated_archive_leaves_nothing_behind(tmp_path, name):
    archive = packed(tmp_path / name, photos(tmp_path / "src"))
    whole = archive.read_bytes()
    if name == "set.tar":
        with tarfile.open(archive) as tar:
            end = max(entry.offset_data + (entry.size + 511) // 512 * 512 for entry in tar)
        cuts = [*range(0, end, 512), *range(100, end, 1300), end, end + 100]  # between two members, too
    else:
        cuts = list(range(0, len(whole) - 1, len(whole) // 40))
    for cut in cuts:
        archive.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cannot be unpacked|is cut short"):
            unpacked(archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "src"])


def test_a_damaged_archive_is_refused_or_whole(tmp_path):
    archive = packed(tmp_path / "set.tar.gz", photos(tmp_path / "src"))
    whole, chance = archive.read_bytes(), random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        content[chance.randrange(10, len(whole))] ^= 1 << chance.randrange(8)
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"set\.tar\.gz: cannot be unpacked"):
            unpacked(archive)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "set.zip").touch()
    with pytest.raises(DataError, match=r"set\.zip: not a folder, \.tar, \.tar\.gz or \.tgz"):
        unpacked(tmp_path / "set.zip")


# The images to score with


def test_choose_draws_so_many_of_each_class_and_the_same_for_the_same_seed():
    labelled = Labelled([i % 3 for i in range(60)])
    numbers = choose(labelled, None, 5, seed=1)
    assert Counter(labelled.targets[i] for i in numbers) == {0: 5, 1: 5, 2: 5}
    assert numbers == sorted(set(numbers)) == choose(labelled, None, 5, seed=1) != choose(labelled, None, 5, seed=2)


def test_choose_takes_so_many_classes_or_the_named_ones():
    labelled = Labelled([i % 4 for i in range(40)])
    drawn = {labelled.targets[i] for i in choose(labelled, 2, None, seed=0)}
    assert len(drawn) == 2
    assert drawn == {labelled.targets[i] for i in choose(labelled, 2, 3, seed=0)}
    assert len({tuple(sorted({labelled.targets[i] for i in choose(labelled, 2, 1, seed=s)})) for s in range(20)}) > 1
    assert choose(labelled, [3], None, seed=0) == list(range(3, 40, 4))
    assert choose(labelled, [3, 3], 10, seed=0) == list(range(3, 40, 4))


def test_the_images_of_a_class_do_not_depend_on_the_other_classes():
    labelled = Labelled([i % 4 for i in range(80)])
    whole = choose(labelled, None, 5, seed=2)
    for classes in (1, 2, 3, 4, [2], [1, 3], [0, 1, 2, 3]):
        part = choose(labelled, classes, 5, seed=2)
        assert set(part) <= set(whole)
        assert len(part) == 5 * (classes if isinstance(classes, int) else len(classes))
    assert choose(labelled, None, 5, seed=3) != whole


def test_choose_without_a_wish_takes_everything_and_asks_for_no_label():
    assert choose(TensorDataset(torch.zeros(5, 1)), None, None, seed=0) == [0, 1, 2, 3, 4]


def test_a_class_with_too_few_images_is_named_with_what_it_has_and_what_is_needed():
    labelled = Labelled([0, 0, 0, 1], classes=("many", "few"))
    with pytest.raises(DataError, match="class 'few': 1 images, 2 asked for"):
        choose(labelled, None, 2, seed=0)
    with pytest.raises(DataError, match="class '7': 0 images, 1 asked for"):
        choose(labelled, [7], None, seed=0)


@pytest.mark.parametrize("samples", [0, -3])
def test_less_than_one_image_of_a_class_is_refused(samples):
    with pytest.raises(InputError, match=f"samples={samples}: at least one image of each class is needed"):
        choose(Labelled([0, 1]), None, samples, seed=0)


@pytest.mark.parametrize("classes", [0, -1, 3])
def test_a_number_of_classes_that_the_data_has_not_is_refused(classes):
    with pytest.raises(InputError, match=f"classes={classes}: the data has 2 classes"):
        choose(Labelled([0, 1]), classes, None, seed=0)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_several_processes_share_the_images_without_repetition(monkeypatch, world):
    labelled = Labelled([i % 2 for i in range(30)])
    monkeypatch.setattr(data, "world", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(data, "rank", lambda rank=rank: rank)
        shares.append(numbers_in(select(labelled, samples=10, seed=3, batch_size=4)))
    together = [number for share in shares for number in share]
    assert sorted(together) == choose(labelled, None, 10, seed=3)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_images_are_refused(monkeypatch):
    monkeypatch.setattr(data, "world", lambda: 3)
    with pytest.raises(DataError, match="2 images cannot be shared by 3 processes"):
        select(Labelled([0, 1]))


def test_ready_batches_are_taken_as_they_are():
    batches = [(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))]
    assert select(batches) is batches
    with pytest.raises(InputError, match="classes= and samples= need a data set"):
        select(batches, samples=1)


def test_ready_batches_cannot_be_split_over_processes(monkeypatch):
    monkeypatch.setattr(data, "world", lambda: 2)
    with pytest.raises(InputError, match="a DataLoader or a list cannot be split"):
        select([])


def test_a_generator_is_refused_since_it_can_be_read_only_once():
    with pytest.raises(InputError, match="data is a generator and can be read only once"):
        select(iter([]))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": -1}])
def test_a_loader_needs_a_batch_and_no_negative_number_of_workers(wrong):
    with pytest.raises(InputError, match="at least 1 image and 0 workers"):
        loader(Labelled([0]), **{"batch_size": 1} | wrong)


def test_images_are_named_by_their_path_or_their_number(tmp_path):
    for name in ("b/2.png", "a/1.png", "b/10.png"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    for memory in (1.0, 0.0):  # decoded, and read from the disk each time
        test = folder(tmp_path, 8, memory_gib=memory).test
        assert image_names(test, [0, 2]) == ["a/1.png", "b/2.png"]
        assert image_names(Subset(test, [2, 1]), [1]) == ["b/10.png"]
        assert list(named(test, ["b/2.png", "a/1.png", "b/2.png"]).indices) == [0, 2]
    assert image_names(TensorDataset(torch.zeros(4)), [3, 1]) == ["3", "1"]
    with pytest.raises(DataError, match="image 'c': not among the 3 images to choose from"):
        named(test, ["c"])


def test_names_and_labels_are_found_through_subset_and_loader():
    subset = Subset(Labelled([0, 1, 1], classes=("a", "b")), [2, 0])
    assert class_names(DataLoader(subset)) == ("a", "b")
    assert class_names([]) == ()
    assert data.targets_of(subset) == [1, 0]
    assert data.targets_of(TensorDataset(torch.zeros(2, 1), torch.tensor([4, 5]))) == [4, 5]


def test_no_images_at_all_is_said():
    with pytest.raises(DataError, match="no images: the data is empty"):
        first_images([])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (digits(8), "data is Splits: pass its .train, .validation or .test"),
        ([{"image": 1}], "data: batch 0 is a dict; it must be two tensors, images and labels"),
        ([(torch.zeros(2, 1, 8, 8), [0, 1])], "data: batch 0 is a tuple; it must be two tensors"),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64))], "every image needs one whole number"),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(2))], "of torch.float32; every image needs one whole number"),
        (7, "data is a int; it must be a data set or batches"),
    ],
)
def test_what_is_no_batch_of_images_and_labels_is_refused(batches, message):
    with pytest.raises(InputError, match=message):
        list(checked(batches))


def test_empty_batches_are_passed_over_and_labels_become_int64():
    good = (torch.zeros(2, 1, 8, 8), torch.ones(2, dtype=torch.int32))
    empty = (torch.zeros(0, 1, 8, 8), torch.ones(0, dtype=torch.int64))
    (batch,) = checked([good, empty])
    assert batch[1].dtype == torch.int64


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder with 50 training and 20 test images in the format of CIFAR-10; its checksums are other ones."""
    import pickle

    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)
    for parts in (CIFAR10.train_list, CIFAR10.test_list):
        for name, _ in parts:
            count = 10 if parts is CIFAR10.train_list else 20
            batch = {
                "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
                "labels": list(range(10)) * (count // 10),
            }
            (base / name).write_bytes(pickle.dumps(batch))
    (base / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": [f"name {i}" for i in range(10)]}))
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, attribute, [[name, None] for name, _ in getattr(CIFAR10, attribute)])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})
    return tmp_path


def test_cifar10_is_read_as_torchvision_keeps_it(cifar):
    from torchvision.datasets import CIFAR10

    splits = data.cifar10(cifar)
    plain = CIFAR10(cifar, train=False)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (40, 10, 20)  # type: ignore[arg-type]
    assert splits.classes == tuple(f"name {i}" for i in range(10))
    image, label = splits.test[3]
    assert label == plain[3][1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in splits.normalised)
    pixels = torch.from_numpy(plain.data[3]).permute(2, 0, 1)
    torch.testing.assert_close(image * std + mean, pixels / 255, atol=1e-6, rtol=0)
    assert data.cifar10(cifar, size=40).test[0][0].shape == (3, 40, 40)


def test_cifar10_that_cannot_be_read_is_named(cifar):
    next(cifar.glob("*/data_batch_3")).unlink()
    with pytest.raises(DataError, match="no CIFAR-10 that can be read or downloaded"):
        data.cifar10(cifar)


def test_the_recipe_of_nnis_comparison_has_its_cost(cifar, tmp_path):
    """79 M multiply-adds and nearly 3.8 M parameters are left at half of every layer; a cell runs on this format."""
    from prune_fe import build, cost, prune, score
    from prune_fe.experiment.recipe import load_recipe

    recipe = load_recipe(Path(__file__).parents[2] / "recipes/nni-vgg16-bn-cifar10.yaml", {"data.path": str(cifar)})
    splits = data.cifar10(cifar, recipe.data.size)
    model, example = build(recipe.model.name, 10, **recipe.model.arguments), splits.test[0][0][None]
    assert round(cost(model, example).macs / 1e6) == 313
    for entry in recipe.scorers:
        scores = score(model, splits.train, entry.name, samples=2)
    half = cost(prune(model, scores, ratio=0.5, example=example).model, example)
    assert abs(half.macs / 1e6 - 78.9) < 0.5
    assert abs(half.parameters / 1e6 - 3.81) < 0.2
