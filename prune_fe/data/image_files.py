"""The image files in folders of classes: which there are, which are left out, and which are refused."""

from __future__ import annotations

import os
import stat
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prune_fe.data.stored_images import StoredImages
from prune_fe.data.texts import PackedTexts
from prune_fe.errors import DataError, InputError
from prune_fe.io import nearest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""How the names of files end that are read as images; they are torchvision's."""

Identity = tuple[int, int]
"""Device and inode, which are one file's or folder's however many names it has."""


class ImageFiles(StoredImages):
    """The images of the folders root/<class>/*, of any depth, in torchvision's order.

    Args:
        root: The folder of the class folders.
        classes: The name of each class.
        names: The path of each image, relative to `root`.
        labels: The label of each image.
        status: What the disk says of each image file.
        loader: Function that reads an image file.
        transform: Function from what `loader` returns to the network's input.
        left_out: Files that are not read, relative to `root`.

    Attributes:
        identities: Identity of each image file, (images, 2) int64.
        times: When each image file was written, and when it was last changed, in ns, (images, 2) int64.
    """

    per_image = (*StoredImages.per_image, "identities", "times")

    def __init__(
        self,
        root: Path,
        classes: Sequence[str],
        names: PackedTexts,
        labels: Sequence[int],
        status: FileStatus,
        loader: Callable[[str], Any],
        transform: Callable[[Any], Any],
        left_out: Sequence[str] = (),
    ) -> None:
        sizes, devices, inodes, written, changed = status.tensors()
        super().__init__(classes, torch.tensor(labels, dtype=torch.int64), names, sizes, transform)
        self.root, self.loader, self.left_out = root, loader, list(left_out)
        self.identities, self.times = torch.stack((devices, inodes), dim=1), torch.stack((written, changed), dim=1)

    @property
    def samples(self) -> list[tuple[str, int]]:
        """(path, label) of each image, as torchvision's `ImageFolder` has them."""
        return [(f"{self.root}/{name}", label) for name, label in zip(self.names, self.targets, strict=True)]

    def load(self, index: int) -> Any:
        """Return an image as `loader` reads it."""
        return self.loader(self.where(index))

    def read_bytes(self, index: int, count: int | None = None) -> bytes:
        """Return the first `count` bytes of an image file; None is all of them."""
        path = self.where(index)
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read(-1 if count is None else count)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error

    def where(self, index: int) -> str:
        """Return the path of an image file."""
        return f"{self.root}/{self.names[index]}"

    def state(self) -> bytes:
        """Return names, sizes, identities and times of the files, which change whenever a file does."""
        tensors = (*self.names.tensors, self.sizes, self.identities, self.times)
        return b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)


class FileStatus:
    """What the disk says of some files, in little memory.

    Attributes:
        columns: Size, device, inode, time of writing and time of the last change of each file, the times in ns.
    """

    def __init__(self) -> None:
        self.columns = [array("q") for _ in range(5)]

    def add(self, status: os.stat_result) -> None:
        """Add what `os.stat` says of one more file."""
        values = (status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        for column, value in zip(self.columns, values, strict=True):
            # Devices and inodes may have 64 bits without a sign.
            column.append((value + 2**63) % 2**64 - 2**63)

    def tensors(self) -> list[Tensor]:
        """Return the columns, (files,) int64 each."""
        return [torch.tensor(column, dtype=torch.int64) for column in self.columns]


def find_image_files(
    root: Path,
    loader: Callable[[str], Any],
    transform: Callable[[Any], Any],
    classes: int | Sequence[str] | None = None,
) -> ImageFiles:
    """Find the images of the folders root/<class>/*.

    Links to folders are followed, except upwards.

    Args:
        root: The folder of the class folders.
        loader: Function that reads an image file.
        transform: Function from what `loader` returns to the network's input.
        classes: Read only the folders of these classes; see `choose_classes`.

    Raises:
        InputError: There are fewer classes, or none of a name.
        DataError: There is no class folder, a class folder or an image has a name that is not UTF-8, an image is no
            regular file, or a link leads to a folder above it.
    """
    entries = _entries(root)
    every = sorted(entry.name for entry in entries if entry.is_dir())
    if not every:
        raise DataError(f"{root}: Couldn't find any class folder")
    chosen = choose_classes(root, every, classes)
    beside = [entry.name for entry in entries if not entry.is_dir() and _is_image(entry.name)]
    left_out, labels, status = sorted(_readable(name, root) for name in beside), array("q"), FileStatus()

    def list_names() -> Iterator[str]:
        above = {_identity(folder) for folder in (root, *root.resolve().parents)}
        for label, name in enumerate(chosen):
            # The order of torchvision's ImageFolder: folder by folder, each sorted by name.
            folder = root / _readable(name, root)
            for path, properties in sorted(_walk(folder, above), key=lambda file: (os.path.dirname(file[0]), file[0])):
                relative = path.removeprefix(f"{root}{os.sep}")
                if not _is_image(path):
                    left_out.append(relative)
                    continue
                if not stat.S_ISREG(properties.st_mode):
                    raise DataError(f"{path}: not a regular file")
                labels.append(label)
                status.add(properties)
                yield _readable(relative, root)

    names = PackedTexts(list_names())
    return ImageFiles(root, chosen, names, labels, status, loader, transform, left_out)


def choose_classes(root: Path, names: Sequence[str], wanted: int | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the classes that are read, sorted.

    Args:
        root: The folder of the class folders, for errors.
        names: The names of all classes, sorted.
        wanted: How many, which are taken at equal distances; or their names; None means all.

    Raises:
        InputError: There are fewer classes, or none of a name.

    >>> choose_classes(Path("train"), ["ant", "bee", "cat", "dog", "eel"], 2)
    ('ant', 'cat')
    """
    if wanted is None:
        return tuple(names)
    if isinstance(wanted, int):
        if wanted > len(names):
            raise InputError(f"classes={wanted}: {root} has {len(names)} classes")
        return tuple(names[number * len(names) // wanted] for number in range(wanted))
    for name in wanted:
        if name not in names:
            raise InputError(f"classes: {root} has no class {name!r}; {nearest(name, names[:20])}")
    return tuple(sorted(set(wanted)))


def refuse_repeated_files(*parts: ImageFiles) -> None:
    """Check that no file is there twice, as two links to one file are.

    Raises:
        DataError: A file is; the text names both paths.
    """
    devices, inodes = torch.cat([part.identities for part in parts]).T.numpy()
    # A stable sort puts equal files side by side, in the order of the parts.
    order = np.lexsort((inodes, devices))
    before, after = order[:-1], order[1:]
    equal = ((inodes[before] == inodes[after]) & (devices[before] == devices[after])).nonzero()[0]
    if len(equal):
        first = equal[after[equal].argmin()]
        paths = [part.where(index) for part in parts for index in range(len(part))]
        raise DataError(f"{paths[after[first]]} and {paths[before[first]]} are the same file; keep one of them")


def describe_left_out(names: Sequence[str]) -> str:
    """Return how many files of each format there are, with an example of each: ".gif 2 (cat/0.gif), .svg 1 (…)"."""
    by_format = defaultdict(list)
    for name in names:
        by_format[os.path.splitext(name)[1].lower() or "without an ending"].append(name)
    counts = Counter({form: len(files) for form, files in by_format.items()})
    return ", ".join(f"{form} {count} ({by_format[form][0]})" for form, count in counts.most_common())


def _walk(folder: Path, above: set[Identity]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and the status of each file in a folder, at any depth; hidden files are left out.

    Args:
        folder: The folder.
        above: Identities of the folders above it.
    """
    pending = [(folder, _extend_chain(above, folder))]
    while pending:
        path, chain = pending.pop()
        for entry in _entries(path):
            try:
                # A link that leads nowhere matters only if it should be an image.
                status = entry.stat(follow_symlinks=_is_image(entry.name) or entry.is_dir())
            except OSError as error:
                raise DataError(f"{entry.path}: cannot be read ({error.strerror})") from error
            if stat.S_ISDIR(status.st_mode):
                pending.append((Path(entry.path), _extend_chain(chain, Path(entry.path))))
            elif not entry.name.startswith(".") or _is_image(entry.name):
                yield entry.path, status


def _extend_chain(chain: set[Identity], folder: Path) -> set[Identity]:
    """Return the identities of the folders above what is in `folder`, of which `chain` are those above it."""
    identity = _identity(folder)
    if identity in chain:
        raise DataError(f"{folder} is a link to {os.path.realpath(folder)}, a folder above it; remove the link")
    return chain | {identity}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def _identity(folder: Path) -> Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _readable(name: str, folder: Path) -> str:
    """Return the name of a file in a folder, which must be UTF-8 as it becomes part of results."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{f'{folder}/{name}'!a}: its name is not UTF-8; rename it") from None
    return name
