"""The image files in folders of classes: which there are, which are left out, and which are refused."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from prune_fe.errors import DataError, InputError
from prune_fe.io import nearest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""How the names of files end that are read as images; they are torchvision's."""

Identity = tuple[int, int]
"""Device and inode, which are one file's or folder's however many names it has."""


@dataclass
class ImageFiles(Dataset[Any]):
    """The images of the folders root/<class>/*, of any depth, in torchvision's order.

    Attributes:
        root: The folder of the class folders.
        classes: The names of the classes, sorted.
        samples: (path, label) of each image.
        loader: Function that reads an image file.
        transform: Function from what `loader` returns to the network's input.
        sizes: Size of each image file in bytes.
        identities: Identity of each image file.
        left_out: Files that are not read, relative to `root`.
    """

    root: Path
    classes: tuple[str, ...]
    samples: list[tuple[str, int]]
    loader: Callable[[str], Any]
    transform: Callable[[Any], Any]
    sizes: list[int] = field(default_factory=list)
    identities: list[Identity] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def targets(self) -> list[int]:
        """The label of each image."""
        return [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        return self.transform(self.loader(path)), label

    def without(self, indices: Iterable[int]) -> ImageFiles:
        """Return the files but those with some indices."""
        excluded = set(indices)
        kept = [index for index in range(len(self)) if index not in excluded]
        return replace(
            self,
            samples=[self.samples[index] for index in kept],
            sizes=[self.sizes[index] for index in kept],
            identities=[self.identities[index] for index in kept],
        )


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
    names = tuple(sorted(entry.name for entry in _entries(root) if entry.is_dir()))
    if not names:
        raise DataError(f"{root}: Couldn't find any class folder")
    names = choose_classes(root, names, classes)
    files = ImageFiles(root, names, [], loader, transform)
    beside = [entry.name for entry in _entries(root) if not entry.is_dir() and _is_image(entry.name)]
    files.left_out += sorted(_readable(root / name).name for name in beside)
    above = {_identity(folder) for folder in (root, *root.resolve().parents)}
    for label, name in enumerate(names):
        # The order of torchvision's ImageFolder: folder by folder, each sorted by name.
        listed = sorted(_walk(_readable(root / name), above), key=lambda file: (os.path.dirname(file[0]), file[0]))
        for path, status in listed:
            if not _is_image(path):
                files.left_out.append(os.path.relpath(path, root))
                continue
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: not a regular file")
            files.samples.append((str(_readable(Path(path))), label))
            files.sizes.append(status.st_size)
            files.identities.append((status.st_dev, status.st_ino))
    return files


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
    known: dict[Identity, str] = {}
    for part in parts:
        for (path, _), identity in zip(part.samples, part.identities, strict=True):
            if identity in known:
                raise DataError(f"{path} and {known[identity]} are the same file; keep one of them")
            known[identity] = path


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


def _readable(path: Path) -> Path:
    """Return a path, which must be UTF-8 as it becomes part of results."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!a}: its name is not UTF-8; rename it") from None
    return path
