"""The images of a command without a recipe: which its flags name, and what is said about their size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_fe.cli.output import reporter
from prune_fe.cli.parameters import ModelFlags, RequiredDataFlags
from prune_fe.errors import DataError, InputError

if TYPE_CHECKING:
    from prune_fe.data.options import DataOptions
    from prune_fe.data.preprocessing import Preprocessing
    from prune_fe.data.splits import Splits

COPIED = (
    "validation_from",
    "images_per_class",
    "skip_bad",
    "resize",
    "interpolation",
    "mean",
    "std",
    "decoder",
    "memory_gib",
    "splits",
    "columns",
)
"""Flags that set the option of the same name."""


def choose_images(
    model: ModelFlags, data: RequiredDataFlags, notes: Mapping[str, Any], known: Preprocessing | None
) -> DataOptions | None:
    """Return the section `data` of a recipe that reads the images of a command; None without --data.

    Args:
        model: Which network.
        data: Which images.
        notes: What was saved with a saved model.
        known: What the network's weights ask for; None where that is not known.

    Raises:
        InputError: A flag is wrong, or two contradict each other.
    """
    if data.data is None:
        return None
    from prune_fe.data.options import DataOptions
    from prune_fe.data.registry import find_source, parse_data
    from prune_fe.options import validate_options

    name, path = parse_data(data.data, data.source)
    source = find_source(name)
    if None not in (model.size, data.crop) and model.size != data.crop:
        raise InputError(f"--size {model.size} and --crop {data.crop}: they are the same, give one of them")
    size = model.size or data.crop or int(notes.get("size", known.size if known else source.default_size))
    transform = data.transform
    if transform is None and (data.crop or data.resize):
        transform = "crop"
    if known is not None and len(known.mean) != len(source.mean):
        known = None  # of images with other channels, which the network says
    values = {"source": name, "path": path, "size": size} | {key: getattr(data, key) for key in COPIED}
    values |= validation_keys(data.validation)
    if known is not None and not source.is_stored and transform is None:
        # Images in memory can be given the mean and the standard deviation only.
        values |= {"mean": data.mean or known.mean, "std": data.std or known.std}
        known = None
    if transform is None:
        transform = "paper" if known is None else "weights"
    if known is not None and transform != "paper" and source.is_stored:
        # What the weights ask for holds for a crop that the user names as well.
        options = validate_options(DataOptions, values | {"resize": None}, "--data", transform="weights")
        asked = options.with_weights(known)
        chosen = asked.transform if transform == "weights" else transform
        resize = None if chosen == "paper" else data.resize or asked.resize
        return validate_options(DataOptions, dataclasses.asdict(asked), "--data", transform=chosen, resize=resize)
    return validate_options(DataOptions, values, "--data", transform=transform)


def validation_keys(value: float | str) -> dict[str, Any]:
    """Return the keys of the section `data` that `--validation` stands for: a share, or the path of a folder.

    Raises:
        DataError: There is nothing at the path.
    """
    if not isinstance(value, str):
        return {"validation": value}
    if not Path(value).exists():
        raise DataError(f"--validation {value}: no such folder or tar file")
    return {"validation_path": value}


def describe_images(splits: Splits, model: ModelFlags, notes: Mapping[str, Any], known: Preprocessing | None) -> None:
    """Say how large the images are, what is made of them, and what the network was trained with.

    Args:
        splits: The images.
        model: Which network.
        notes: What was saved with a saved model.
        known: What the network's weights ask for; None where that is not known.
    """
    from prune_fe.data.preprocessing import Preprocessing, describe_sizes

    if not splits.stored_sizes:
        return
    text = f"images: {describe_sizes(splits.stored_sizes, splits.steps or Preprocessing(splits.size))}"
    trained = notes.get("size", None if known is None else known.size)
    if trained is not None:
        text += f"; {model.model} was trained with {trained}×{trained}"
        if trained != splits.size:
            text += f" (--size {trained})"
    elif model.checkpoint is not None and model.size is None:
        text += f"; {model.checkpoint} does not say what it was trained with (--size N)"
    reporter.say(text)
