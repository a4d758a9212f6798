"""Random draws of images: the difference of feature entropy between two draws, and the number of images that suffices.

The birth times of all images are measured once. Any choice of images can then be scored without the network.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from prune_fe.data.batches import make_loader, validate_batches
from prune_fe.data.labels import image_labels, image_names
from prune_fe.measure.statistics import spearman
from prune_fe.records import damaged, read_npz, write_npz
from prune_fe.scorers.base import LayerScore
from prune_fe.scorers.counts import Counts
from prune_fe.scorers.feature_entropy import FeatureEntropy, mean_with_infinite
from prune_fe.scoring.collection import SNAPSHOT_SECONDS
from prune_fe.scoring.fingerprint import hash_architecture, hash_tensors, hash_weights
from prune_fe.scoring.scores import Array
from prune_fe.tracing.feature_maps import observe
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.watching import evaluating

SAME, ANEW = "same classes", "classes drawn anew"
"""How the second draw of a pair chooses its classes: as the first one, or among the other classes."""

GOALS = (0.9, 0.95)
"""Rank correlations between two draws for which `recommend_sizes` names the number of images."""


@dataclass(frozen=True)
class BirthTimes:
    """The birth times of one layer, image by image, so that any choice of images can be scored.

    Attributes:
        scorer: The feature entropy that measured them.
        values: Birth times, shape (images, units), integer; 0 means that the map has no hole.
        labels: Class of each image, shape (images,).
    """

    scorer: FeatureEntropy
    values: Array
    labels: Array

    @classmethod
    def measure(
        cls,
        network: nn.Module,
        layer: Layer,
        images: Dataset[Any],
        scorer: FeatureEntropy,
        batch_size: int = 64,
        workers: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
        file: Path | None = None,
    ) -> BirthTimes:
        """Run every image through the network once and measure the maps of `layer`.

        Args:
            network: The network; its mode is restored afterwards.
            layer: The layer whose maps are measured.
            images: Data set of (image, label).
            scorer: Feature entropy, whose settings say how a map is characterised.
            batch_size: Images that go through the network together.
            workers: Processes that load images.
            progress: Called with (images measured, images in all).
            file: File to which the birth times so far are written every `SNAPSHOT_SECONDS` and at the end. If it holds
                those of the same network, layer, images and settings, only the remaining images are measured.
        """
        device = next(network.parameters()).device
        total = len(image_labels(images))
        key = "" if file is None else _key(network, layer, images, scorer)
        measured = _read_births(file, key)
        values, labels = ([], []) if measured is None else ([torch.from_numpy(measured[0])], measured[1].tolist())

        def read(layer: Layer, maps: Tensor) -> None:
            values.append(scorer.characteristic(maps).cpu().long())

        def write() -> None:
            if file is not None and values:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_npz(file, {"key": key}, {"values": torch.cat(values).numpy(), "labels": np.array(labels)})

        remaining, last_written = Subset(images, range(len(labels), total)), time.monotonic()
        with evaluating(network), torch.no_grad(), observe(network, [layer], read):
            for batch, batch_labels in validate_batches(make_loader(remaining, batch_size, workers), device):
                network(batch.to(device, non_blocking=True))
                labels += batch_labels.tolist()
                progress(len(labels), total)
                if time.monotonic() - last_written >= SNAPSHOT_SECONDS or len(labels) == total:
                    write()
                    last_written = time.monotonic()
        return cls(scorer, torch.cat(values).numpy(), np.array(labels))

    @cached_property
    def images_by_class(self) -> list[Array]:
        """The image indices of each class that occurs, in the order of the classes."""
        return [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]

    @cached_property
    def codes(self) -> tuple[Array, int]:
        """The values numbered in ascending order, shape (images, units), and how many different ones there are.

        Entropy only asks which values are equal and which are 0. The numbers are small where the values themselves,
        such as integrals of Betti curves, can be too large for an array of counts.
        """
        known, codes = np.unique(np.append(self.values, 0), return_inverse=True)
        return codes[:-1].reshape(self.values.shape), len(known)

    def score(self, images: Array) -> LayerScore:
        """Return what `prune_fe.score` gives for the images with these indices, shape (n,)."""
        codes, n_values = self.codes
        present, classes = np.unique(self.labels[images], return_inverse=True)
        counts = Counts.of((len(present), codes.shape[1], n_values), classes, codes[images])
        return self.scorer.score_layer({"births": counts})

    def entropies(self, images: Array) -> tuple[Array, Array]:
        """Return H in nats and H/ε of images of one class, each of shape (units,)."""
        raw = self.score(images).raw
        return raw["feature_entropy_nats"][0].numpy(), raw["entropy_per_rate_nats"][0].numpy()


@dataclass(frozen=True)
class DrawComparison:
    """How far random draws of `size` images of each class differ.

    Attributes:
        size: Images of each class in a draw.
        disjoint: Whether the two draws of a pair have no image in common.
        mean: Mean of H over the draws in nats, shape (classes, units).
        spread: Standard deviation of H over the draws in nats, shape (classes, units).
        layer_mean: Mean of H over the units in nats, shape (draws, classes).
        agreement: Number of classes -> SAME or ANEW -> Spearman's ρ of the units' H/ε for each pair of draws, shape
            (pairs,). ANEW is missing where fewer than that many other classes remain.
    """

    size: int
    disjoint: bool
    mean: Array
    spread: Array
    layer_mean: Array
    agreement: Mapping[int, Mapping[str, Array]]

    @property
    def draws(self) -> int:
        """How many draws were compared."""
        return len(self.layer_mean)

    def mean_agreements(self) -> Iterator[tuple[int, str, float]]:
        """Yield (number of classes, SAME or ANEW, mean of Spearman's ρ over the pairs)."""
        for n_classes, columns in self.agreement.items():
            for column, values in columns.items():
                yield n_classes, column, float(values.mean())


def _key(network: nn.Module, layer: Layer, images: Dataset[Any], scorer: FeatureEntropy) -> str:
    """Return a text that identifies everything that birth times depend on."""
    names = image_names(images, range(len(image_labels(images))))
    maps = {"name": layer.name, "map_size": layer.map_size, "steps": layer.steps}
    # Names do not say how the images were resized, but the pixels of one of them do.
    digests = [hash_weights(network), hash_architecture(network), hash_tensors({"first": images[0][0]})]
    return json.dumps([digests, maps, hashlib.sha256("\n".join(names).encode()).hexdigest(), scorer.settings])


def _read_births(file: Path | None, key: str) -> tuple[Array, Array] | None:
    """Return the birth times and labels in a file; None where it is missing or holds others."""
    if file is None or not file.exists():
        return None
    about, arrays = read_npz(file)
    if about.get("key") != key:
        return None
    try:
        return arrays["values"], arrays["labels"]
    except KeyError as error:
        raise damaged(file, error) from error


def compare_draws(
    births: BirthTimes,
    size: int,
    draws: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DrawComparison:
    """Draw `size` images of each class without replacement, `draws` times, in pairs, and compare the draws.

    Args:
        births: Birth times of the images to draw from.
        size: Images of each class in a draw.
        draws: Number of draws, at least 2.
        seed: Seed of the random numbers; each size has its own.
        progress: Called with (draws made, draws in all).
    """
    generator = np.random.default_rng([seed, size])
    shape = (draws, len(births.images_by_class), births.values.shape[1])
    entropy, ratio = np.empty(shape), np.empty(shape)
    # Draws come in pairs without common images: only such draws say how well two samples agree.
    for first in range(0, draws, 2):
        for c, members in enumerate(births.images_by_class):
            pair = _draw_pair(members, size, generator)
            # An odd number of draws leaves the second one of the last pair out.
            for draw, images in zip(range(first, min(first + 2, draws)), pair, strict=False):
                entropy[draw, c], ratio[draw, c] = births.entropies(images)
        progress(min(first + 2, draws), draws)
    return DrawComparison(
        size=size,
        disjoint=2 * size <= min(map(len, births.images_by_class)),
        mean=entropy.mean(axis=0),
        spread=entropy.std(axis=0, ddof=1),
        layer_mean=entropy.mean(axis=2),
        agreement={k: _rank_correlations(ratio, k, size, generator) for k in ladder(shape[1])},
    )


def _draw_pair(members: Array, size: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Draw twice `size` of the image indices `members`, without common images where there are enough."""
    order = generator.permutation(members)
    # A class with too few images for two draws is shuffled again, and the draws overlap.
    rest = order[size:] if 2 * size <= len(members) else generator.permutation(members)
    return order[:size], rest[:size]


def _rank_correlations(ratio: Array, k: int, size: int, generator: np.random.Generator) -> dict[str, Array]:
    """Return Spearman's ρ between the two draws of each pair, for `k` random classes.

    Args:
        ratio: H/ε, shape (draws, classes, units).
        k: Number of classes whose mean ranks the units.
        size: Images of a class, which bounds the mean where H/ε is infinite.
        generator: Source of the random classes.

    Returns:
        SAME or ANEW -> correlations, shape (pairs,).
    """

    def rank_by(draw: int, classes: Array) -> Array:
        return mean_with_infinite(torch.from_numpy(ratio[draw, classes]), size).numpy()

    correlations: dict[str, list[float]] = {SAME: []}
    for first in range(0, len(ratio) - 1, 2):
        order = generator.permutation(ratio.shape[1])
        classes, others = order[:k], order[k : 2 * k]
        reference = rank_by(first, classes)
        correlations[SAME].append(spearman(reference, rank_by(first + 1, classes)))
        if len(others) == k:
            correlations.setdefault(ANEW, []).append(spearman(reference, rank_by(first + 1, others)))
    return {column: np.array(values) for column, values in correlations.items()}


def ladder(most: int) -> list[int]:
    """Return the numbers 1, 2, 5, 10, 20, 50, … below `most`, and `most`.

    >>> ladder(30)
    [1, 2, 5, 10, 20, 30]
    """
    steps = (digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5))
    return sorted({step for step in steps if step < most} | {most})


def recommend_sizes(comparisons: Sequence[DrawComparison]) -> str:
    """Return a text that names the least number of images for which two draws agree, for each of GOALS."""
    sharing = {comparison.size for comparison in comparisons if not comparison.disjoint}
    sentences = []
    for column in (SAME, ANEW):
        means = {
            (comparison.size, k): mean
            for comparison in comparisons
            for k, drawn_from, mean in comparison.mean_agreements()
            if drawn_from == column
        }
        if not means:
            sentences.append(f"{column}: there are no other classes")
        sentences += [_recommend(column, means, goal, sharing) for goal in GOALS if means]
    return "; ".join(sentences) + "."


def _recommend(column: str, means: Mapping[tuple[int, int], float], goal: float, sharing: set[int]) -> str:
    """Return the text for one column and goal.

    Args:
        column: SAME or ANEW.
        means: (images of a class, number of classes) -> mean correlation.
        goal: The correlation to reach.
        sharing: Sizes at which two draws have common images.
    """
    enough = [pair for pair, mean in means.items() if mean >= goal]
    if not enough:
        return f"{column}: none reaches a mean correlation of {goal}, the best is {max(means.values()):.2f}"
    # Draws with common images agree for that reason alone: they count only where no others reach the goal.
    separate = [pair for pair in enough if pair[0] not in sharing]
    size, k = min(separate or enough, key=lambda pair: (math.prod(pair), -means[pair]))
    classes = "one class" if k == 1 else f"each of {k} classes"
    note = ", where two draws share images" if size in sharing else ""
    return f"{column}: a mean correlation of {goal} takes {size * k} images, {size} of {classes}{note}"
