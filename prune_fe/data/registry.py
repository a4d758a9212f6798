"""The data sources by name. To add one: write its file, with a function `load`, and add its line here.

Nothing here loads torch: a source's file is imported when its images are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from prune_fe.errors import DataError, InputError
from prune_fe.io import nearest
from prune_fe.options import Seed, validate_options, validate_value

if TYPE_CHECKING:
    from prune_fe.data.assemble import Reading
    from prune_fe.data.options import DataOptions
    from prune_fe.data.splits import Splits

Progress = Callable[[int, int], None]
"""Called with the number of images that have been read and the number of all images."""


class Loader(Protocol):
    """The function `load` of a data source's file."""

    def __call__(self, options: DataOptions, *, reading: Reading) -> Splits:
        """Read the images that `options` describes, and hold out validation images, as `reading` says."""


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Attributes:
        module: The module that reads them; it has a function `load` like `Loader`.
        needs_path: Whether the images lie in a file or folder that the user names.
        default_size: Height and width of the images where the user gives none, in pixels.
        is_stored: Whether its images are encoded files that are decoded as they are read, and not in memory.
        mean: Mean of each channel that is subtracted, where the user gives none.
        std: Standard deviation of each channel that is divided by.
        takes_hub: Whether the path may be a data set on the Hugging Face hub.
    """

    module: str
    needs_path: bool = True
    default_size: int = 224
    is_stored: bool = True
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    takes_hub: bool = False

    @property
    def load(self) -> Loader:
        """The source's loader; its module is imported on first use."""
        loader: Loader = import_module(self.module).load
        return loader


TORCHVISION, CIFAR = "prune_fe.data.torchvision_sets", "prune_fe.data.cifar"

SOURCES: Mapping[str, Source] = {
    "digits": Source(
        "prune_fe.data.digits", needs_path=False, default_size=32, is_stored=False, mean=(0.5,), std=(0.5,)
    ),
    "folder": Source("prune_fe.data.image_folder"),
    "parquet": Source("prune_fe.data.parquet", takes_hub=True),
    "webdataset": Source("prune_fe.data.webdataset"),
    "imagenet": Source("prune_fe.data.imagenet"),
    "cifar10": Source(
        CIFAR, default_size=32, is_stored=False, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
    ),
    "cifar100": Source(
        CIFAR, default_size=32, is_stored=False, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)
    ),
    "flowers102": Source(TORCHVISION),
    "food101": Source(TORCHVISION),
    "oxford-pets": Source(TORCHVISION),
    "dtd": Source(TORCHVISION),
}

HUB = "hf://"
"""How the path of a data set on the Hugging Face hub begins."""

IN_MEMORY = "memory"
"""The source of images that a Python program has given."""

PATH_SOURCE = "folder"
"""The source of a path for which the user names no source."""


def find_source(name: str) -> Source:
    """Return the data source called `name`.

    Raises:
        InputError: There is no such source.
    """
    if name == IN_MEMORY:  # not for users to choose
        return Source("prune_fe.data.memory", needs_path=False)
    if name not in SOURCES:
        raise InputError(f"unknown data source {name!r}; {nearest(name, SOURCES)}")
    return SOURCES[name]


def load_data(
    options: DataOptions | Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> Splits:
    """Read the images of a data source.

    Args:
        options: Which source, where it lies, and the size of the images.
        seed: Decides which training images are held out for validation.
        progress: Called with (images read, all images); only sources that decode images call it.
        settings: Single options instead of those of `options`, such as `source="folder"`; see `DataOptions`.

    Raises:
        InputError: The source is unknown or needs a path, or an option is wrong.
        DataError: Images are missing or unreadable.
    """
    from prune_fe.data.assemble import Reading
    from prune_fe.data.options import DataOptions
    from prune_fe.data.preprocessing import Preprocessing

    chosen = validate_options(DataOptions, options, "data", **settings)
    source = find_source(chosen.source)
    if source.needs_path and chosen.path is None:
        raise InputError(f"data.path is missing, and source {chosen.source} reads images from there: pass --data PATH")
    if is_on_hub(chosen.path) and not source.takes_hub:
        raise InputError(f"data.path: {chosen.path} is on the Hugging Face hub, which source parquet reads")
    _require_validation(chosen.validation_path)
    default = Preprocessing(chosen.size, mean=source.mean, std=source.std)
    steps = chosen.preprocessing(default)
    steps.require_channels(len(source.mean), chosen.source)
    reading = Reading(
        steps=steps,
        crops_in_training=chosen.transform == "imagenet",
        validation=0.0 if chosen.validation_path is not None else chosen.validation,
        seed=validate_value(Seed, seed, "seed"),
        memory_gib=chosen.memory_gib,
        images_per_class=chosen.images_per_class,
        progress=progress,
    )
    splits = source.load(chosen, reading=reading)
    if chosen.holds_out_of_train:
        return splits
    if chosen.validation_path is not None:
        return _with_validation_folder(splits, chosen, reading)
    from prune_fe.data.splits import hold_out_of_test

    return hold_out_of_test(splits, chosen.validation)


def _require_validation(path: str | None) -> None:
    """Raise DataError, before any image is read, where `data.validation_path` names nothing."""
    from pathlib import Path

    if path is not None and not Path(path).exists():
        raise DataError(f"data.validation_path: {path}: no such folder or tar file")


def _with_validation_folder(splits: Splits, options: DataOptions, reading: Reading) -> Splits:
    """Return the images with the validation images of `options.validation_path`."""
    from pathlib import Path

    from prune_fe.data.transforms import read_image, read_image_fast
    from prune_fe.data.validation_images import with_validation_folder

    return with_validation_folder(
        splits,
        Path(str(options.validation_path)),
        reading,
        read_image_fast if options.decoder == "torchvision" else read_image,
        skip_bad=options.skip_bad,
        some_classes=options.classes is not None,
    )


def is_on_hub(path: str | None) -> bool:
    """Return whether a path is that of a data set on the Hugging Face hub."""
    return path is not None and path.startswith(HUB)


def parse_data(data: str, source: str | None = None) -> tuple[str, str | None]:
    """Return the source and the path that a command's `--data` and `--source` mean.

    Args:
        data: The name of a source that needs no path, or a path.
        source: The source of the path; None means a folder of classes, or a tar file of one.

    Raises:
        InputError: The source is unknown, or it needs a path and gets none, or the other way round.

    >>> parse_data("digits")
    ('digits', None)
    >>> parse_data("photos")
    ('folder', 'photos')
    >>> parse_data("photos", "cifar10")
    ('cifar10', 'photos')
    """
    needs_no_path = data in SOURCES and not SOURCES[data].needs_path
    if source is None and is_on_hub(data):
        return "parquet", data
    if source is None:
        return (data, None) if needs_no_path else (PATH_SOURCE, data)
    if find_source(source).needs_path:
        if needs_no_path:
            raise InputError(f"source {source} reads images from a path, but the data is {data!r}, another source")
        return source, data
    if data != source:
        raise InputError(f"source {source} needs no path, but the data is {data!r}; source {PATH_SOURCE} reads a path")
    return source, None
