"""The image files of a folder are those of torchvision, in its order."""

import pytest
from torchvision.datasets import ImageFolder

from prune_fe.data.image_files import EXTENSIONS, describe_left_out, find_image_files
from prune_fe.errors import InputError
from tests.data.pictures import photos, picture


def test_files_and_order_are_torchvisions(tmp_path):
    root = photos(tmp_path, ("b", "a", "a b")) / "train"
    for name in ("a/x/0.png", "a/x-1/0.JPEG", "a/x/y/0.png", "a/Z.png", "a/.hidden.png"):
        (root / name).parent.mkdir(exist_ok=True)
        picture().save(root / name)
    ours, theirs = find_image_files(root, str, str), ImageFolder(str(root), transform=str, loader=str)
    assert ours.samples == theirs.samples
    assert list(ours.classes) == theirs.classes
    assert (ours.targets, ours[3], len(ours)) == (theirs.targets, theirs[3], len(theirs))
    assert not ours.left_out


def test_extensions_are_torchvisions():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(EXTENSIONS) == set(IMG_EXTENSIONS)


def test_left_out_files_are_counted_by_format():
    assert describe_left_out(["a/x.gif", "b/y.txt", "c/z.txt", "README"]) == (
        ".txt 2 (b/y.txt), .gif 1 (a/x.gif), without an ending 1 (README)"
    )


def test_images_can_be_left_out_by_index(tmp_path):
    files = find_image_files(photos(tmp_path) / "train", str, str)
    fewer = files.without([1, 6])
    assert fewer.samples == [files.samples[index] for index in (0, 2, 3, 4, 5, 7)]
    assert (len(fewer), len(fewer.names), len(fewer.sizes), len(fewer.identities), len(fewer.times)) == (6,) * 5


@pytest.mark.parametrize(
    ("classes", "names"),
    [(None, "abcde"), (5, "abcde"), (2, "ac"), (1, "a"), (("d", "b"), "bd"), (["e", "e"], "e")],
)
def test_some_classes_can_be_read_alone(tmp_path, classes, names):
    root = photos(tmp_path, tuple("abcde")) / "train"
    files = find_image_files(root, str, str, classes)
    assert files.classes == tuple(names)
    every = find_image_files(root, str, str)
    by_name = [path for path, label in every.samples if every.classes[label] in names]
    assert [path for path, _ in files.samples] == by_name
    assert sorted(set(files.targets)) == list(range(len(names)))


def test_a_class_that_is_not_there_is_named(tmp_path):
    root = photos(tmp_path, ("ant", "bee")) / "train"
    with pytest.raises(InputError, match="classes=3: .*train has 2 classes"):
        find_image_files(root, str, str, 3)
    with pytest.raises(InputError, match="train has no class 'bea'; did you mean 'bee'"):
        find_image_files(root, str, str, ["bea"])
