"""Choose the images of a data set that are read: a number of each class, drawn with a seed, shared by processes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, Subset

from prune_fe.data.batches import Batches, Images, check_reading, make_loader
from prune_fe.data.labels import class_names, image_labels, image_names
from prune_fe.distributed import rank, world_size
from prune_fe.errors import DataError, InputError
from prune_fe.file_types import open_regular_file
from prune_fe.options import Count, Natural, Seed, validate_value


def select_batches(
    data: Images,
    classes: int | Sequence[int] | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    skip: int = 0,
) -> Batches:
    """Return batches of the chosen images of a data set; ready batches are returned as they are.

    Under torch.distributed each process gets an equal share of the chosen images. A DataLoader that reads a map-style
    data set in its order stands for that data set, read in the DataLoader's batches by its processes.

    Args:
        data: A map-style data set of (image, label), or batches that can be read more than once.
        classes: How many classes, drawn at random, or which; None means all of them. Not for other batches.
        samples: Images of each class, drawn at random; None means all of them. Not for other batches.
        seed: Seed of the draws.
        batch_size: Images a batch of a data set.
        workers: Processes that read images of a data set.
        skip: How many of this process's first images are left out.

    Raises:
        InputError: An argument is out of range or does not fit the data.
        DataError: There are too few images.
    """
    data_set = data_set_of(data)
    wants_some = classes is not None or samples is not None
    if data_set is None:
        _refuse_to_divide(data, wants_some=wants_some)
        return cast(Batches, data)
    if isinstance(data, DataLoader) and not (wants_some or skip or world_size() > 1):
        return data
    check_reading(batch_size, workers)
    indices = choose_images(data_set, classes, samples, seed)
    if not indices:
        raise DataError("no images: the data set is empty")
    if len(indices) < world_size():
        raise DataError(f"{len(indices)} images cannot be shared by {world_size()} processes")
    # Process r reads images r, r + world_size, …, so that evaluate() can restore the order of the data.
    share = Subset(data_set, indices[rank() :: world_size()][skip:])
    if isinstance(data, DataLoader):
        return _with_data_set(data, share)
    return make_loader(
        share,
        batch_size,
        workers,
        # Without one, a DataLoader draws from torch's global random state, which is the caller's.
        generator=torch.Generator(),
    )


def _refuse_to_divide(batches: Any, *, wants_some: bool) -> None:
    """Raise InputError where some of the images of ready batches are wanted, or they can be read only once.

    Args:
        batches: The batches.
        wants_some: Whether classes or a number of images are chosen.
    """
    if isinstance(batches, Iterator):
        raise InputError("data is a generator and can be read only once: pass a data set, a DataLoader or a list")
    other = "or a DataLoader that reads one in its order; other batches"
    if wants_some:
        raise InputError(f"classes= and samples= need a data set, {other} are used as they are")
    if world_size() > 1:
        raise InputError(f"several processes share a data set, {other} cannot be split")


def data_set_of(data: Any) -> Dataset[Any] | None:
    """Return the data set that images come from: `data` itself, or what a DataLoader reads in its order; else None."""
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset) or data.batch_size is None:
        return None
    # A DataLoader that was given a batch_sampler has None as its batch size.
    return data.dataset if isinstance(data.sampler, SequentialSampler) and not data.drop_last else None


def _with_data_set(loader: DataLoader[Any], data: Dataset[Any]) -> DataLoader[Any]:
    """Return a DataLoader like another one, of other images."""
    return DataLoader(
        data,
        loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        generator=torch.Generator(),
    )


def choose_images(data: Dataset[Any], classes: int | Sequence[int] | None, samples: int | None, seed: int) -> list[int]:
    """Choose images of each class at random.

    Which images of a class are chosen does not depend on the other classes that are chosen.

    Args:
        data: A map-style data set.
        classes: How many classes, drawn at random, or which; None means all of them.
        samples: Images of each class; None means all of them.
        seed: Seed of the draws.

    Returns:
        The indices of the chosen images, sorted.

    Raises:
        InputError: An argument is out of range, or the data set has no length.
        DataError: A class has fewer images than `samples`.
    """
    if not isinstance(data, Sized):
        raise InputError(f"{type(data).__name__} has no length: pass a map-style data set")
    seed = validate_value(Seed, seed, "seed")
    if samples is not None:
        samples = validate_value(Count, samples, "samples")
    if classes is None and samples is None:
        return list(range(len(data)))
    labels = torch.tensor(image_labels(data))
    chosen = _choose_classes(labels, classes, seed)
    names = class_names(data)
    indices: list[int] = []
    generator = torch.Generator().manual_seed(seed)
    for label in sorted({*labels.unique().tolist(), *chosen}):
        members = (labels == label).nonzero().flatten()
        # Drawn for the other classes too, so that the draw for this one does not depend on them.
        order = torch.randperm(len(members), generator=generator)
        if label not in chosen:
            continue
        wanted = max(len(members), 1) if samples is None else samples
        if wanted > len(members):
            name = names[label] if names and 0 <= label < len(names) else str(label)
            raise DataError(f"class {name!r}: {len(members)} images, {wanted} asked for")
        indices += members[order[:wanted]].tolist()
    return sorted(indices)


def _choose_classes(labels: Tensor, classes: int | Sequence[int] | None, seed: int) -> list[int]:
    """Return the labels of the chosen classes, sorted; see `choose_images`."""
    present = labels.unique().tolist()
    if classes is None:
        return present
    if isinstance(classes, Iterable):
        return sorted({validate_value(Natural, label, "classes") for label in classes})
    validate_value(Count, classes, "classes")
    if not 1 <= classes <= len(present):
        raise InputError(f"classes={classes}: the data has {len(present)} classes")
    order = torch.randperm(len(present), generator=torch.Generator().manual_seed(seed))
    return sorted(present[index] for index in order[:classes].tolist())


def select_by_name(data: Dataset[Any], names: Sequence[str]) -> Subset[Any]:
    """Return the images with these names (see `image_names`), each once, in the data set's order.

    Raises:
        DataError: The data set has no image of a name.
    """
    index_of = {name: index for index, name in enumerate(image_names(data, range(len(image_labels(data)))))}
    if missing := [name for name in names if name not in index_of]:
        raise DataError(f"image {missing[0]!r}: not among the {len(index_of)} images to choose from")
    return Subset(data, sorted({index_of[name] for name in names}))


def read_image_list(file: Path) -> list[str]:
    """Return the column "image" of a CSV file, such as the images.csv that `prune-fe score` writes.

    Raises:
        DataError: The file cannot be read, has no such column or no row.
    """
    try:
        with open_regular_file(file) as binary, io.TextIOWrapper(binary, encoding="utf-8", newline="") as content:
            rows = list(csv.DictReader(content))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a list of images that can be read ({error})") from error
    if not rows or any(row.get("image") is None for row in rows):
        raise DataError(f"{file}: a list of images has a column 'image' and at least one row")
    return [row["image"].removeprefix("'") for row in rows]  # io.csv_cell puts the apostrophe there.
