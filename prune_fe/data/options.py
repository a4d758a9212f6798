"""The options that say which images are read."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, StrictFloat, StrictInt

from prune_fe.data.registry import PATH_SOURCE, find_source
from prune_fe.options import (
    SINGLE_OR_SEVERAL,
    Count,
    Natural,
    NonNegative,
    Several,
    Single,
    Size,
    options,
)

VALIDATION = 0.1
"""The share of the training images that is held out for validation unless the user says otherwise."""

MEMORY_GIB = 4.0
"""Images that take at most this much memory are decoded once, unless the user says otherwise."""


def _require_source(name: str) -> str:
    """Return the name of a data source; an error in one option alone is reported with that option's name."""
    find_source(name)
    return name


@options
class DataOptions:
    """Which images are read: the section `data` of a recipe."""

    source: Annotated[str, AfterValidator(_require_source)]
    """Where the images come from: digits, folder or cifar10."""

    path: str | None = None
    """The folder or file of the images; a source that is part of a package needs none."""

    size: Annotated[Size, Field(ge=4)]
    """Height and width of the images, in pixels."""

    validation: Annotated[StrictFloat, Field(gt=0, lt=1)] = VALIDATION
    """Share of the training images that is held out for validation, of each class."""

    memory_gib: NonNegative = MEMORY_GIB
    """Images that take at most this much memory are decoded once; others each time they are read."""

    images_per_class: Annotated[StrictInt, Field(ge=2)] | None = None
    """Use at most this many training images of each class, drawn with the seed before validation images are held out
    of them; a class with fewer keeps all of its images. By default all. Test images are never limited."""

    classes: (
        Annotated[
            Annotated[Count, Single] | Annotated[tuple[str, ...], Field(min_length=1), Several], SINGLE_OR_SEVERAL
        ]
        | None
    ) = None
    """Read only so many classes, taken at equal distances from the sorted names, or the classes of these names. By
    default all. Only for folders of images."""

    skip_bad: Natural = 0
    """Leave out at most this many image files that cannot be read, and list them in the results; with more the run
    stops. All images are decoded once more to find them. Only for folders of images."""

    def __post_init__(self) -> None:
        if not find_source(self.source).needs_path and self.path is not None:
            raise ValueError(
                f"source {self.source} needs no path, but path is {self.path!r}; source: {PATH_SOURCE} reads a path"
            )
        if self.classes is not None and self.source != PATH_SOURCE:
            raise ValueError(f"classes: source {self.source} is read whole; source: {PATH_SOURCE} reads some classes")
        if self.skip_bad and self.source != PATH_SOURCE:
            raise ValueError(f"skip_bad: source {self.source} reads no image files; source: {PATH_SOURCE} does")
