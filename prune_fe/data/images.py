"""Images: scikit-learn's digits, folders of classes, tar files of such folders; splits, samples and batches."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from prune_fe.distributed import rank, world_size
from prune_fe.errors import DataError, EnvironmentFault, InputError

Batch = tuple[Tensor, Tensor]
Batches = Iterable[Batch]
"""(images (n, channels, height, width) float, labels (n,) int64), readable more than once."""

Images = Dataset[Any] | Batches

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


SLACK_BYTES = 2**26
"""Images hardly compress: what unpacks to 20 times its size and this much more is no archive of images."""


@dataclass(frozen=True)
class Splits:
    """train and validation come from the training images, test is never trained on or chosen by."""

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    classes: tuple[str, ...]
    channels: int
    size: int
    normalised: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (1.0,))

    @property
    def about(self) -> dict[str, Any]:
        """What somebody needs who wants to use a network that was trained on these images."""
        mean, std = self.normalised
        steps = {"resize": [self.size, self.size], "antialias": True, "scale": 1 / 255, "mean": mean, "std": std}
        return {"classes": self.classes, "size": self.size, "channels": self.channels, "preprocessing": steps}


class Normalise:
    """uint8 (channels, height, width) in, (x / 255 − mean) / std out."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.scale = 1 / (255 * torch.tensor(std).view(-1, 1, 1))
        self.shift = torch.tensor(mean).view(-1, 1, 1) / torch.tensor(std).view(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels * self.scale - self.shift


class InMemory(Dataset[Any]):
    """uint8 images (n, channels, height, width), normalised as they are read."""

    def __init__(
        self,
        pixels: Tensor,
        targets: Sequence[int],
        classes: Sequence[str],
        normalise: Normalise,
        names: Sequence[str] = (),
    ) -> None:
        self.pixels, self.targets, self.classes = pixels, list(targets), tuple(classes)
        self.normalise, self.names = normalise, tuple(names)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.normalise(self.pixels[index]), self.targets[index]


class Rescaled(Dataset[Any]):
    """The same images, multiplied by `factors` as the network gets them: one for all, or one for each."""

    def __init__(self, data: Dataset[Any], factors: float | Sequence[float]) -> None:
        self.data, self.targets, self.classes = data, targets_of(data), class_names(data)
        self.factors = [float(factors)] * len(self.targets) if isinstance(factors, int | float) else list(factors)
        self.names = image_names(data, range(len(self.targets)))

    @classmethod
    def at_random(cls, data: Dataset[Any], low: float, high: float, seed: int) -> Self:
        """Every image by a factor of its own, evenly drawn from [low, high)."""
        generator = torch.Generator().manual_seed(seed)
        factors = low + (high - low) * torch.rand(len(targets_of(data)), generator=generator, dtype=torch.float64)
        return cls(data, factors.tolist())

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        return image * self.factors[index], label


def digits(size: int = 32, validation: float = 0.2, seed: int = 0) -> Splits:
    """scikit-learn's 1,797 scanned digits (8×8, one channel), enlarged to size×size; every fifth one is for testing."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = torch.from_numpy(scans.images).float()[:, None] * (255 / 16)
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    pixels, targets = pixels.round().to(torch.uint8), scans.target.tolist()
    names = tuple(str(name) for name in scans.target_names)
    tested = set(range(0, len(targets), 5))

    normalised = ((0.5,), (0.5,))

    def part(numbers: Sequence[int]) -> InMemory:
        return InMemory(pixels[list(numbers)], [targets[i] for i in numbers], names, Normalise(*normalised))

    train = part([i for i in range(len(targets)) if i not in tested])
    return held_out(Splits(train, train, part(sorted(tested)), names, 1, size, normalised), validation, seed)


def cifar10(path: str | Path, size: int = 32, validation: float = 0.1, seed: int = 0) -> Splits:
    """CIFAR-10 (Krizhevsky 2009), as torchvision keeps it in the folder `path`, which it is downloaded to once."""
    from torchvision.datasets import CIFAR10

    root = Path(path)
    try:
        parts = [
            CIFAR10(root, train=train, download=not (root / CIFAR10.base_folder).exists()) for train in (True, False)
        ]
    except (OSError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise DataError(f"{root}: no CIFAR-10 that can be read or downloaded ({why})") from error
    normalise = Normalise(CIFAR_MEAN, CIFAR_STD)

    def part(images: CIFAR10) -> InMemory:
        pixels = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()
        if size != pixels.shape[-1]:
            pixels = torch.stack([_resized(image, size) for image in pixels])
        return InMemory(pixels, images.targets, images.classes, normalise)

    train, test = map(part, parts)
    return held_out(Splits(train, train, test, train.classes, 3, size, (CIFAR_MEAN, CIFAR_STD)), validation, seed)


def _resized(image: Tensor, size: int) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.resize(image, [size, size], antialias=True)


def folder(
    path: str | Path,
    size: int,
    validation: float = 0.1,
    seed: int = 0,
    memory_gib: float = 4.0,
    progress: Callable[[int, int], None] | None = None,
) -> Splits:
    """PATH/train/<class>/* and PATH/val/<class>/*, or a tar file of that; images resized to size×size, RGB.

    val/ serves as the test images; the validation images are held out from train/. Images that fit into
    `memory_gib` are decoded once, others each time they are read.
    """
    root = unpacked(Path(path))
    train, test = _image_folder(root / "train", size), _image_folder(root / "val", size)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        raise DataError(f"{root}: class {odd!r} is in train or in val, but not in both")
    total = len(train) + len(test)
    if total * 3 * size * size <= memory_gib * 2**30:
        done = count(1)

        def tick() -> None:
            if progress is not None:
                progress(next(done), total)

        train, test = _decoded(train, size, tick), _decoded(test, size, tick)
    splits = Splits(train, train, test, tuple(train.classes), 3, size, (IMAGENET_MEAN, IMAGENET_STD))
    return held_out(splits, validation, seed)


def held_out(splits: Splits, validation: float, seed: int) -> Splits:
    """The same images, with a share of the training images held out for validation that depends on `seed` alone."""
    every = splits.train.dataset if isinstance(splits.train, Subset) else splits.train
    kept, out = split(targets_of(every), validation, seed)
    return replace(splits, train=Subset(every, kept), validation=Subset(every, out))


def split(targets: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the images to keep and of those held out: round(share · n) of each class, at least one of two."""
    generator = torch.Generator().manual_seed(seed)
    labels, out = torch.tensor(targets), []
    for label in sorted(set(targets)):
        members = (labels == label).nonzero().flatten()
        taken = min(max(round(share * len(members)), 1), len(members) - 1) if share > 0 else 0
        out += members[torch.randperm(len(members), generator=generator)[:taken]].tolist()
    chosen = set(out)
    return [i for i in range(len(targets)) if i not in chosen], sorted(out)


def select(
    data: Images,
    classes: int | Sequence[int] | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    skip: int = 0,
) -> Batches:
    """Batches of `data`: of a data set `samples` images of each of `classes`, of ready batches all of them.

    Under torch.distributed each process gets an equal share of the selection; `skip` leaves out
    as many of its first ones.
    """
    if not isinstance(data, Dataset):
        if isinstance(data, Iterator):
            raise InputError("data is a generator and can be read only once: pass a data set, a DataLoader or a list")
        if classes is not None or samples is not None:
            raise InputError("classes= and samples= need a data set; a DataLoader or a list is used as it is")
        if world_size() > 1:
            raise InputError("several processes share a data set; a DataLoader or a list cannot be split")
        return data
    numbers = choose(data, classes, samples, seed)
    if not numbers:
        raise DataError("no images: the data set is empty")
    if len(numbers) < world_size():
        raise DataError(f"{len(numbers)} images cannot be shared by {world_size()} processes")
    numbers = numbers[rank() :: world_size()][skip:]
    return loader(Subset(data, numbers), batch_size, workers)


def loader(data: Dataset[Any], batch_size: int, workers: int = 0, **options: Any) -> DataLoader[Any]:
    """A DataLoader; its workers are spawned, since the threads of numba and OpenMP do not survive a fork."""
    if batch_size < 1 or workers < 0:
        raise InputError(f"batch_size={batch_size}, workers={workers}: there must be at least 1 image and 0 workers")
    context = "spawn" if workers else None
    return DataLoader(
        data, batch_size, num_workers=workers, multiprocessing_context=context, persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(), **options,
    )  # fmt: skip


def choose(data: Dataset[Any], classes: int | Sequence[int] | None, samples: int | None, seed: int) -> list[int]:
    """Numbers of the images to score with, in order: `samples` of each class, drawn with `seed`. Which of a class's
    images these are does not depend on the other classes that are chosen."""
    if not isinstance(data, Sized):
        raise InputError(f"{type(data).__name__} has no length: pass a map-style data set")
    if samples is not None and samples < 1:
        raise InputError(f"samples={samples}: at least one image of each class is needed")
    if classes is None and samples is None:
        return list(range(len(data)))
    labels = torch.tensor(targets_of(data))
    names = class_names(data)
    present = labels.unique().tolist()
    if classes is None:
        chosen = present
    elif isinstance(classes, int):
        if not 1 <= classes <= len(present):
            raise InputError(f"classes={classes}: the data has {len(present)} classes")
        order = torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))
        chosen = sorted(present[i] for i in order[:classes].tolist())
    else:
        chosen = sorted(set(classes))
    numbers: list[int] = []
    generator = torch.Generator().manual_seed(seed)
    for label in sorted({*present, *chosen}):
        name = names[label] if names and 0 <= label < len(names) else str(label)
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        if label not in chosen:
            continue
        wanted = max(len(members), 1) if samples is None else samples
        if wanted > len(members):
            raise DataError(f"class {name!r}: {len(members)} images, {wanted} asked for")
        numbers += members[order[:wanted]].tolist()
    return sorted(numbers)


def targets_of(data: Dataset[Any]) -> list[int]:
    """The label of every image, from the data set's `targets` where it has them."""
    if isinstance(data, Subset):
        labels = targets_of(data.dataset)
        return [labels[i] for i in data.indices]
    if hasattr(data, "targets"):
        return [int(label) for label in data.targets]
    return [int(data[i][1]) for i in range(len(data))]  # type: ignore[arg-type]


def has_targets(data: Dataset[Any]) -> bool:
    """Whether targets_of knows the labels without reading the images."""
    return has_targets(data.dataset) if isinstance(data, Subset) else hasattr(data, "targets")


def image_names(data: Dataset[Any], numbers: Sequence[int]) -> list[str]:
    """What tells the images `numbers` apart: their paths from the data set's root on if it has any, or the numbers."""
    if isinstance(data, Subset):
        return image_names(data.dataset, [data.indices[number] for number in numbers])
    if names := getattr(data, "names", ()):
        return [names[number] for number in numbers]
    if hasattr(data, "samples") and hasattr(data, "root"):
        return [Path(data.samples[number][0]).relative_to(data.root).as_posix() for number in numbers]
    return [str(number) for number in numbers]


def named(data: Dataset[Any], names: Sequence[str]) -> Subset[Any]:
    """The images with these names, in the data set's order; DataError for a name that there is not."""
    numbers = {name: number for number, name in enumerate(image_names(data, range(len(targets_of(data)))))}
    if missing := [name for name in names if name not in numbers]:
        raise DataError(f"image {missing[0]!r}: not among the {len(numbers)} images to choose from")
    return Subset(data, sorted({numbers[name] for name in names}))


def checked(batches: Batches) -> Iterator[Batch]:
    """The batches, their labels as int64 on the CPU; InputError for what is no batch of (images, labels)."""
    if isinstance(batches, Splits):
        raise InputError("data is Splits: pass its .train, .validation or .test")
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Tensor):
        raise InputError(f"data is a {type(batches).__name__}; it must be a data set or batches of (images, labels)")
    for number, batch in enumerate(batches):
        pair = list(batch) if isinstance(batch, tuple | list) else []
        if [isinstance(part, Tensor) for part in pair] != [True, True]:
            kind = type(batch).__name__
            raise InputError(f"data: batch {number} is a {kind}; it must be two tensors, images and labels")
        images, labels = pair
        if images.ndim < 2 or labels.shape != images.shape[:1] or labels.is_floating_point():
            shapes = f"images {tuple(images.shape)} and labels {tuple(labels.shape)} of {labels.dtype}"
            raise InputError(f"data: batch {number} holds {shapes}; every image needs one whole number as its label")
        if len(images):
            yield images, labels.cpu().long()


def class_names(data: Any) -> tuple[str, ...]:
    """The data set's own names, looked for through Subset and DataLoader; () when it has none."""
    while not hasattr(data, "classes"):
        if not hasattr(data, "dataset"):
            return ()
        data = data.dataset
    return tuple(map(str, data.classes))


def images_in(batches: Batches) -> int:
    """How many images there are, 0 when the batches do not say."""
    data = getattr(batches, "dataset", None)
    return len(data) if isinstance(data, Sized) else 0


def first_images(batches: Batches) -> Tensor:
    """One image (1, channels, height, width)."""
    for images, _ in checked(batches):
        return images[:1]
    raise DataError("no images: the data is empty")


def unpacked(path: Path) -> Path:
    """The folder that holds train/ and val/, here or one level below; a tar file is unpacked beside itself once."""
    if not path.exists():
        raise DataError(f"{path}: no such folder or tar file")
    target = path
    if not path.is_dir():
        target = path.with_name(path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar"))
        if target == path:
            raise DataError(f"{path}: not a folder, .tar, .tar.gz or .tgz")
        if not target.exists():
            _unpack(path, target)
    inner = [entry for entry in sorted(target.iterdir()) if (entry / "train").is_dir()]
    return inner[0] if inner and not (target / "train").is_dir() else target


def _unpack(archive: Path, target: Path) -> None:
    """All or nothing: unpack into a temporary folder on the same disk, then rename."""
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise EnvironmentFault(
            f"{archive}: cannot be unpacked beside itself ({error.strerror}); unpack it elsewhere"
        ) from error
    try:
        _extract(archive, partial)
        partial.chmod(0o755)
        try:
            os.replace(partial, target)
        except OSError:
            if not target.is_dir():  # another process was faster
                raise
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(target.parent).free >> 20
            raise EnvironmentFault(f"{archive}: no space left while unpacking ({free} MiB free)") from error
        raise DataError(f"{archive}: cannot be unpacked ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    """Files and folders only, inside `folder`, and not more of them than an archive of images can hold."""
    bound, total = 20 * archive.stat().st_size + SLACK_BYTES, 0

    def count_bytes(number: int) -> None:
        nonlocal total
        total += number
        if total > bound:
            raise DataError(f"{archive}: unpacks to more than {bound >> 20} MiB, refused")

    with tarfile.open(archive) as tar:
        for member in tar:
            count_bytes(tarfile.BLOCKSIZE + member.size)
            if not (member.isfile() or member.isdir()):
                raise DataError(f"{archive}: {member.name!r} is a link or a device, refused")
            tar.extract(member, folder, filter="data")
        stream: Any = tar.fileobj
        # tarfile takes an archive that was cut behind a member for a whole one. A whole one ends with a block of zeros,
        # which it has read beyond its last offset; and gzip's checksum stands behind them.
        if stream.tell() < tar.offset + tarfile.BLOCKSIZE:
            raise DataError(f"{archive}: is cut short, its end is missing")
        while chunk := stream.read(2**20):
            count_bytes(len(chunk))


def _image_folder(root: Path, size: int) -> Any:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected {root.parent}/train/<class>/* and {root.parent}/val/<class>/*"
        )
    try:
        transform = v2.Compose([Pixels(size), Normalise(IMAGENET_MEAN, IMAGENET_STD)])
        found = ImageFolder(root, transform=transform, loader=read_image, allow_empty=True)
    except FileNotFoundError as error:
        raise DataError(f"{root}: {error}") from error
    empty = sorted(set(range(len(found.classes))) - set(found.targets))
    if empty:
        raise DataError(f"{root}: class {found.classes[empty[0]]!r}: 0 images, at least 1 is needed")
    return found


@dataclass(frozen=True)
class Pixels:
    """An image, resized, as uint8 (channels, size, size)."""

    size: int

    def __call__(self, image: Any) -> Tensor:
        from torchvision.transforms.v2 import functional

        return functional.pil_to_tensor(functional.resize(image, [self.size, self.size], antialias=True))


def read_image(path: str) -> Any:
    """The image as RGB; DataError with its path when it cannot be decoded to the end."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                # convert() would clip these to white
                raise DataError(f"{path}: pixels of mode {image.mode!r}; images have 8 bits a channel, convert it")
            return image.convert("RGB")
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image that can be read") from error
    except Exception as error:  # decoders raise nearly everything at a damaged file
        raise DataError(f"{path}: not an image that can be read ({error})") from error


def _decoded(images: Any, size: int, tick: Callable[[], None]) -> InMemory:
    pixels = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    resized = Pixels(size)
    for number, (path, _) in enumerate(images.samples):
        pixels[number] = resized(read_image(path))
        tick()
    names = image_names(images, range(len(images)))
    return InMemory(pixels, images.targets, images.classes, Normalise(IMAGENET_MEAN, IMAGENET_STD), names)
