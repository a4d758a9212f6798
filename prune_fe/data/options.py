"""The options that say which images are read, and how they become a network's input."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, StrictFloat, StrictInt

from prune_fe.data.registry import PATH_SOURCE, find_source
from prune_fe.errors import InputError
from prune_fe.options import (
    SINGLE_OR_SEVERAL,
    Count,
    Natural,
    NonNegative,
    Positive,
    Several,
    Single,
    Size,
    options,
)

if TYPE_CHECKING:
    from prune_fe.data.preprocessing import Preprocessing

VALIDATION = 0.1
"""The share of the training images that is held out for validation unless the user says otherwise."""

MEMORY_GIB = 4.0
"""Images that take at most this much memory are decoded once, unless the user says otherwise."""

Transform = Literal["paper", "imagenet", "crop", "weights"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Channels = Annotated[tuple[StrictFloat, ...], Field(min_length=1)]
Deviations = Annotated[tuple[Positive, ...], Field(min_length=1)]


def _require_source(name: str) -> str:
    """Return the name of a data source; an error in one option alone is reported with that option's name."""
    find_source(name)
    return name


@options
class DataOptions:
    """Which images are read: the section `data` of a recipe."""

    source: Annotated[str, AfterValidator(_require_source)]
    """Where the images come from: digits, folder (also a tar file), parquet, webdataset, or a data set of torchvision:
    imagenet, cifar10, cifar100, flowers102, food101, oxford-pets or dtd."""

    path: str | None = None
    """The folder or file of the images; a source that is part of a package needs none. For parquet also
    hf://OWNER/NAME, a data set on the Hugging Face hub."""

    size: Annotated[Size, Field(ge=4)]
    """Height and width of the network's input, in pixels."""

    transform: Transform = "paper"
    """How an image gets this size. paper: it is resized to a square. crop: its short side is resized and the centre cut
    out. imagenet: the same, and training reads random crops, flipped at random; with crop it does so with `augment`.
    weights: paper or crop, as the network's pretrained weights ask for."""

    resize: Size | None = None
    """For transform imagenet and crop: pixels to which the short side is resized before the centre is cut out; by
    default size / 0.875 (256 for 224). The options from here to `std` take precedence over what weights ask for."""

    interpolation: Interpolation | None = None
    """How images are resized; by default bilinear."""

    mean: Channels | None = None
    """Mean of each channel that is subtracted, for pixel values from 0 to 1; by default the source's, which are
    ImageNet's for photographs."""

    std: Deviations | None = None
    """Standard deviation of each channel that is divided by; the default is as for `mean`."""

    decoder: Literal["pil", "torchvision"] = "pil"
    """What decodes and resizes images. torchvision is about twice as fast, with pixels that differ by up to 2 of
    255."""

    validation: Annotated[StrictFloat, Field(gt=0, lt=1)] = VALIDATION
    """Share of the training images that is held out for validation, of each class."""

    validation_from: Literal["train", "test"] = "train"
    """Where the validation images come from: a share of train/, or of val/ ("test"), whose other images are the test
    images. For weights that were trained on all of train/, only the latter have not been seen."""

    validation_path: str | None = None
    """Validation images of your own: a folder CLASS/* with the classes of the training images, or a tar file of one. No
    training or test images are held out then. For image files."""

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
    stops. All images are decoded once more to find them. Not for digits and CIFAR."""

    splits: tuple[str, str] | None = None
    """For parquet and webdataset: names of the parts with the training and the test images. By default train, and the
    first of val, validation, valid and test that has labels."""

    columns: tuple[str, str] | None = None
    """For parquet: names of the columns of images and labels. By default the only column of images, and label."""

    def __post_init__(self) -> None:
        source = find_source(self.source)
        if not source.needs_path and self.path is not None:
            raise ValueError(
                f"source {self.source} needs no path, but path is {self.path!r}; source: {PATH_SOURCE} reads a path"
            )
        if self.classes is not None and self.source != PATH_SOURCE:
            raise ValueError(f"classes: source {self.source} is read whole; source: {PATH_SOURCE} reads some classes")
        if self.skip_bad and not source.is_stored:
            raise ValueError(f"skip_bad: source {self.source} reads no image files; source: {PATH_SOURCE} does")
        if not source.is_stored and (
            # What the weights ask for is known later; of images in memory, only their normalisation is changed.
            self.transform not in ("paper", "weights")
            or self.decoder != "pil"
            or self.interpolation not in (None, "bilinear")
        ):
            raise ValueError(
                f"source {self.source} has images in memory, which are resized to a square; transform, interpolation "
                "and decoder are for image files"
            )
        if self.validation_path is not None:
            self._check_validation_path(is_stored=source.is_stored)
        if self.resize is not None and self.transform == "paper":
            raise ValueError("resize: transform paper resizes to size×size; transform: crop resizes the short side")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize: {self.resize} is less than size, {self.size}, which is cut out of it")
        if self.decoder == "torchvision" and self.interpolation == "lanczos":
            raise ValueError("interpolation: torchvision's decoder has no lanczos; decoder: pil has it")
        for name, sources in {"splits": ("parquet", "webdataset"), "columns": ("parquet",)}.items():
            if getattr(self, name) is not None and self.source not in sources:
                raise ValueError(f"{name}: source {self.source} has none; it is for {' and '.join(sources)}")

    def _check_validation_path(self, *, is_stored: bool) -> None:
        if not is_stored:
            raise ValueError(
                f"validation_path: source {self.source} has images in memory; source: {PATH_SOURCE} reads files"
            )
        if self.validation_from != "train":
            raise ValueError("validation_path and validation_from: test both say which validation images; give one")
        if self.validation != VALIDATION:
            raise ValueError("validation: no share is held out where validation_path names the validation images")

    @property
    def holds_out_of_train(self) -> bool:
        """Whether the validation images are a share of the training images, which are not trained on."""
        return self.validation_from == "train" and self.validation_path is None

    def with_weights(self, asked: Preprocessing | None) -> DataOptions:
        """Return the options with what the network's weights ask for in the place of `transform: weights`.

        Args:
            asked: What they ask for; None where that is not known.

        Raises:
            InputError: `transform` is weights, and what they ask for is not known.
        """
        if self.transform != "weights":
            return self
        if asked is None:
            raise InputError(
                "data.transform: it is not known what the network's weights ask for; write paper, crop or imagenet"
            )
        steps = asked.at_size(self.size)
        found = {"resize": steps.resize, "interpolation": steps.interpolation, "mean": steps.mean, "std": steps.std}
        given = {name: value for name in found if (value := getattr(self, name)) is not None}
        return dataclasses.replace(self, transform="crop" if steps.keeps_shape else "paper", **found | given)

    def preprocessing(self, default: Preprocessing) -> Preprocessing:
        """Return the steps from an image to a network's input.

        Args:
            default: The source's size, mean and standard deviation.

        Raises:
            InputError: `transform` is weights, which only a network says.
        """
        if self.transform == "weights":
            raise InputError("data.transform: weights is for a network; write paper, crop or imagenet")
        steps = (
            default if self.transform == "paper" else default.cropping(self.size, mean=default.mean, std=default.std)
        )
        given = {name: getattr(self, name) for name in ("resize", "interpolation", "mean", "std")}
        return dataclasses.replace(steps, **{name: value for name, value in given.items() if value is not None})
