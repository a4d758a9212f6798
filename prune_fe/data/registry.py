"""The data sources by name. To add one: write its file, with a function `load`, and add its line here.

Nothing here loads torch: a source's file is imported when its images are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from prune_fe.errors import InputError
from prune_fe.io import nearest

if TYPE_CHECKING:
    from prune_fe.data.options import DataOptions
    from prune_fe.data.splits import Splits

Progress = Callable[[int, int], None]
"""Called with the number of images that have been read and the number of all images."""


class Loader(Protocol):
    """The function `load` of a data source's file."""

    def __call__(self, options: DataOptions, *, seed: int, progress: Progress | None) -> Splits:
        """Read the images that `options` describes, and hold out validation images that depend on `seed`."""


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Attributes:
        module: The module that reads them; it has a function `load` like `Loader`.
        needs_path: Whether the images lie in a file or folder that the user names.
        default_size: Height and width of the images where the user gives none, in pixels.
    """

    module: str
    needs_path: bool = True
    default_size: int = 224

    @property
    def load(self) -> Loader:
        """The source's loader; its module is imported on first use."""
        loader: Loader = import_module(self.module).load
        return loader


SOURCES: Mapping[str, Source] = {
    "digits": Source("prune_fe.data.digits", needs_path=False, default_size=32),
    "folder": Source("prune_fe.data.image_folder"),
    "cifar10": Source("prune_fe.data.cifar", default_size=32),
}

PATH_SOURCE = "folder"
"""The source of a path for which the user names no source."""


def find_source(name: str) -> Source:
    """Return the data source called `name`.

    Raises:
        InputError: There is no such source.
    """
    if name not in SOURCES:
        raise InputError(f"unknown data source {name!r}; {nearest(name, SOURCES)}")
    return SOURCES[name]


def load_data(options: DataOptions, *, seed: int, progress: Progress | None = None) -> Splits:
    """Read the images of a data source.

    Args:
        options: Which source, where it lies, and the size of the images.
        seed: Decides which training images are held out for validation.
        progress: Called with (images read, all images); only sources that decode images call it.

    Raises:
        InputError: The source is unknown or needs a path.
        DataError: Images are missing or unreadable.
    """
    source = find_source(options.source)
    if source.needs_path and options.path is None:
        raise InputError(f"data.path is missing, and source {options.source} reads images from there: pass --data PATH")
    return source.load(options, seed=seed, progress=progress)


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
    if source is None:
        return (data, None) if needs_no_path else (PATH_SOURCE, data)
    if find_source(source).needs_path:
        if needs_no_path:
            raise InputError(f"source {source} reads images from a path, but the data is {data!r}, another source")
        return source, data
    if data != source:
        raise InputError(f"source {source} needs no path, but the data is {data!r}; source {PATH_SOURCE} reads a path")
    return source, None
