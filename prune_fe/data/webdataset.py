"""WebDataset shards: tar files with an image and a label for each sample (KEY.jpg, KEY.cls).

Shards are read in place. The package `webdataset` is not used: it gives a stream, of which no image can be drawn by its
number, and its shards may hold pickles and name programs to run.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prune_fe.data.archive import HeaderReader
from prune_fe.data.assemble import Reading, make_splits, skip_unreadable
from prune_fe.data.image_files import EXTENSIONS
from prune_fe.data.options import DataOptions
from prune_fe.data.splits import Splits
from prune_fe.data.stored_images import StoredImages
from prune_fe.data.texts import PackedTexts
from prune_fe.data.transforms import decode_image, decode_image_fast
from prune_fe.errors import DataError
from prune_fe.file_types import open_regular_file

PICKLES = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".ckpt", ".joblib")
"""How the names of members end that could run a program when they are read; a shard with one is refused."""

MAX_LABEL_BYTES = 2**20
"""Largest size of a member that holds a label."""

MAX_CLASSES = 10**6
"""Labels are below this number."""

CLASS_NAMES = ("classes.txt", "classnames.txt")
"""Files beside the shards that name the classes, a line for each."""

TEST_PARTS = ("val", "validation", "valid", "test")
"""What the part with the test images is called; the first one that is there is taken."""


class ShardImages(StoredImages):
    """The images of some shards, ordered by class and key.

    Args:
        shards: The tar files.
        classes: The name of each class.
        samples: What was found in the shards.
        decode: Function from an encoded image and its name to the image.
    """

    per_image = (*StoredImages.per_image, "shard_of", "offsets")

    def __init__(
        self, shards: Sequence[Path], classes: Sequence[str], samples: Samples, decode: Callable[[bytes, str], Any]
    ) -> None:
        labels, sizes, self.shard_of, self.offsets = samples.tensors()
        super().__init__(classes, labels, PackedTexts(samples.names), sizes)
        self.shards, self.decode, self.root = list(shards), decode, shards[0].parent
        stats = [path.stat() for path in shards]
        self._state = repr(
            [
                (path.name, each.st_size, each.st_ino, each.st_mtime_ns, each.st_ctime_ns)
                for path, each in zip(shards, stats, strict=True)
            ]
        ).encode()
        self._opened: dict[int, int] = {}

    def load(self, index: int) -> Any:
        """Return an image as `decode` gives it."""
        return self.decode(self.read_bytes(index), self.where(index))

    def read_bytes(self, index: int, count: int | None = None) -> bytes:
        """Return the first `count` bytes of an encoded image; None is all of them."""
        size, shard = int(self.sizes[index]), int(self.shard_of[index])
        wanted = size if count is None else min(size, count)
        try:
            # Positional reads share no position, so that threads do not disturb each other.
            content = os.pread(self._open(shard), wanted, int(self.offsets[index]))
        except OSError as error:
            raise DataError(f"{self.where(index)}: cannot be read ({error.strerror})") from error
        if len(content) < wanted:
            raise DataError(f"{self.where(index)}: the shard is cut short")
        return content

    def where(self, index: int) -> str:
        """Return the shard and the name of an image."""
        return f"{self.shards[int(self.shard_of[index])]}: {self.names[index]}"

    def state(self) -> bytes:
        """Return names, sizes, inodes and times of the shards."""
        return self._state

    def _open(self, shard: int) -> int:
        if shard not in self._opened:
            self._opened[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return self._opened[shard]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": {}}  # each process opens the shards itself

    def __copy__(self) -> ShardImages:
        other = object.__new__(type(self))
        other.__dict__ |= self.__getstate__()
        return other

    def __del__(self) -> None:
        for descriptor in vars(self).get("_opened", {}).values():
            os.close(descriptor)


class Samples:
    """What was found in shards, in little memory.

    Attributes:
        names: Key and extension of each image, such as "n01440764_10026.jpg".
        columns: Label, size, number of the shard and offset of each image.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.columns = [array("q") for _ in range(4)]

    def add(self, name: str, label: int, size: int, shard: int, offset: int) -> None:
        """Add an image."""
        self.names.append(name)
        for column, value in zip(self.columns, (label, size, shard, offset), strict=True):
            column.append(value)

    def tensors(self) -> list[Tensor]:
        """Return the columns, (images,) int64 each."""
        return [torch.tensor(column, dtype=torch.int64) for column in self.columns]


def load(options: DataOptions, *, reading: Reading) -> Splits:
    """Read the images for `prune_fe.data.registry.load_data`.

    The folder holds shards such as train-000.tar and val-000.tar, or folders train/ and val/ of shards. A label is a
    whole number in KEY.cls, or under "label" or "cls" in KEY.json. classes.txt may name the classes.

    Raises:
        DataError: Shards are missing or damaged, or hold something else.
    """
    assert options.path is not None
    root = Path(options.path)
    if "::" in options.path or options.path.startswith("pipe:"):
        raise DataError(f"{options.path}: webdataset reads a folder of .tar files; pipe: and lists of URLs are refused")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; webdataset reads a folder of .tar files")
    shards = sorted(path for path in root.rglob("*.tar") if not path.name.startswith("."))
    names = options.splits or ("train", _find_test_part(root, shards))
    decode = decode_image_fast if options.decoder == "torchvision" else decode_bytes
    parts = [(chosen := _shards_of(root, shards, name), read_shards(chosen)) for name in names]
    highest = max(max(samples.columns[0], default=0) for _, samples in parts)
    classes = _class_names(root, highest + 1)
    train, test = (ShardImages(paths, classes, samples, decode).in_order_of_names() for paths, samples in parts)
    train, test, skipped = skip_unreadable(train, test, options.skip_bad, str(root), names)
    return make_splits(train, test, reading, skipped)


def decode_bytes(content: bytes, where: str) -> Any:
    """Return the PIL image of an encoded one; see `decode_image`."""
    return decode_image(io.BytesIO(content), where)


def _words(root: Path, shard: Path) -> list[str]:
    """Return the words in a shard's path below the folder: "imagenet/train-001.tar" has imagenet and train."""
    return re.findall("[a-z]+", shard.relative_to(root).as_posix().lower())


def _find_test_part(root: Path, shards: Sequence[Path]) -> str:
    for name in TEST_PARTS:
        if any(name in _words(root, shard) for shard in shards):
            return name
    raise DataError(f"{root}: no shards of test images; their names hold {', '.join(TEST_PARTS)}, as val-000.tar")


def _shards_of(root: Path, shards: Sequence[Path], part: str) -> list[Path]:
    """Return the shards of a part, such as "train"."""
    chosen = [shard for shard in shards if part.lower() in _words(root, shard)]
    if not chosen:
        raise DataError(f"{root}: no shards of {part}; their names hold the word, as {part}-000.tar")
    return chosen


def _class_names(root: Path, count: int) -> list[str]:
    """Return the names of the classes: those of classes.txt, or the numbers of the labels."""
    file = next((root / name for name in CLASS_NAMES if (root / name).is_file()), None)
    if file is None:
        digits = len(str(count - 1))
        return [f"{number:0{digits}}" for number in range(count)]
    try:
        with open_regular_file(file) as opened:
            names = opened.read().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    names = [name.strip() for name in names if name.strip()]
    if len(names) < count or len(set(names)) < len(names):
        raise DataError(f"{file}: {len(names)} names, {len(set(names))} of them different; labels go up to {count - 1}")
    return names


def read_shards(shards: Sequence[Path]) -> Samples:
    """Return where the images of some shards lie, and their labels; no image is read.

    Raises:
        DataError: A shard is damaged or holds pickles, links or headers beyond reason, or a sample has no image, two
            images or no label.
    """
    samples, keys = Samples(), set[str]()
    for number, path in enumerate(shards):
        try:
            for key, (name, offset, size), label in _read_shard(path):
                if key in keys:
                    raise DataError(f"{path}: {key} is there twice")
                keys.add(key)
                samples.add(name, label, size, number, offset)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{path}: not a tar file that can be read ({error})") from error
    return samples


def _read_shard(path: Path) -> Iterator[tuple[str, tuple[str, int, int], int]]:
    """Yield for each sample of a shard its key, its image's name, offset and size, and its label."""
    with open_regular_file(path) as file, HeaderReader(path, file) as stream:
        if stream.is_packed:
            raise DataError(f"{path}: packed by gzip, so that no image can be read by itself; unpack it with gunzip")
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            key, image, label = "", None, None
            while member := stream.read_header(tar):
                if member.isdir() or os.path.basename(member.name).startswith("."):
                    continue
                _require_plain(path, member)
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if (own_key := f"{folder}/{stem}" if folder else stem) != key:
                    if key:
                        yield _complete(path, key, image, label)
                    key, image, label = own_key, None, None
                extension = f".{extension.lower()}"
                if extension in EXTENSIONS:
                    if image is not None:
                        raise DataError(f"{path}: {key} has two images")
                    image = (member.name, member.offset_data, member.size)
                elif extension in (".cls", ".json") and (label is None or extension == ".cls"):
                    found = _read_label(path, member, stream)
                    label = label if found is None else found
            # tarfile reads an archive that was cut behind a member without an error.
            if stream.tell() < tar.offset + tarfile.BLOCKSIZE:
                raise DataError(f"{path}: is cut short, its end is missing")
            if key:
                yield _complete(path, key, image, label)


def _require_plain(path: Path, member: tarfile.TarInfo) -> None:
    """Raise DataError unless a member of a shard is a file with a readable name, and no pickle."""
    if not member.isfile() or member.issparse() or member.size < 0:
        raise DataError(f"{path}: {member.name!r} is a link or a device, refused")
    if not member.name.isprintable() or "\0" in member.name:
        raise DataError(f"{path}: {member.name!a}: its name cannot be printed")
    if member.name.lower().endswith(PICKLES):
        raise DataError(f"{path}: {member.name!r} may hold a pickle, which can run a program; refused")


def _read_label(path: Path, member: tarfile.TarInfo, stream: HeaderReader) -> int | None:
    """Return the label that a member holds; None for a JSON text without one."""
    if member.size > MAX_LABEL_BYTES:
        raise DataError(f"{path}: {member.name!r} has {member.size} bytes, which is too large for a label")
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    try:
        value: Any = content.decode().strip()
        if member.name.lower().endswith(".json"):
            found = json.loads(value)
            value = found.get("label", found.get("cls")) if isinstance(found, dict) else None
            if value is None:
                return None
        label = int(value)
    except (ValueError, TypeError, RecursionError):
        raise DataError(f"{path}: {member.name!r} holds {content[:40]!r}; a label is a whole number") from None
    if not 0 <= label < MAX_CLASSES:
        raise DataError(f"{path}: {member.name!r} holds the label {label}; allowed are 0 to {MAX_CLASSES - 1}")
    return label


def _complete(
    path: Path, key: str, image: tuple[str, int, int] | None, label: int | None
) -> tuple[str, tuple[str, int, int], int]:
    if image is None:
        raise DataError(f"{path}: {key} has no image; images end with {', '.join(EXTENSIONS)}")
    if label is None:
        raise DataError(f"{path}: {key} has no label, a whole number in {key}.cls or under label in {key}.json")
    return key, image, label
