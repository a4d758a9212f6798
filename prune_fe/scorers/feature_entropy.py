"""Feature entropy (Zhao & Zhang, ICLR 2022): is the first hole of a unit's map born at the same time in every image?"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers.base import LayerScore, MapScorer, Sums, one_of
from prune_fe.topology import birth_times, persistence
from prune_fe.topology.births import Rank
from prune_fe.topology.persistence import Characteristic, Complex
from prune_fe.tracing.feature_maps import Layer

Normalise = Literal["births", "samples"]
By = Literal["entropy_per_rate", "entropy", "rate"]


@dataclass(frozen=True)
class FeatureEntropy(MapScorer):
    """keep = −(mean over the classes of H/ε), so that a unit in disorder is pruned first (eq. 15, appendix A.7).

    A class without any birth has H/ε = +∞. A unit with more such classes is worse; among equals the mean of the
    finite classes decides. `keep` says both in one finite number: an infinite class counts N ln N, which no finite
    mean reaches (H/ε ≤ (N − 1) ln N, N the images of the largest class).

    rank: how a birth is numbered, by the elements above it (eqs. 3, 7) or by distinct edge weights.
    normalise: P divides by the number of births, or as eq. 9 is printed by the number of samples.
    p: below this selective rate H is (1 − ε) ln N (eq. 12).
    by: what keep is made of: H/ε, or −(mean over the classes of H), or the mean over the classes of ε.

    What the paper compares the birth of the first hole with takes its place in H and ε as `topology.characterise`
    defines it; all but the default is slow and needs `pip install 'prune-fe[topology]'`:
    characterise: of the Betti curve, its birth, maximum or integral (appendix A.3).
    dimension: of the holes; 0 = components, of which every map has some (ε = 1), the first at birth 1 (H = 0).
    complex: of the cliques in the map's graph, or of its pixels (appendix A.2).
    """

    rank: Rank = "elements"
    normalise: Normalise = "births"
    p: float = 0.1
    by: By = "entropy_per_rate"
    characterise: Characteristic = "birth"
    dimension: int = 1
    complex: Complex = "clique"

    def __post_init__(self) -> None:
        kinds = {"rank": Rank, "normalise": Normalise, "by": By, "characterise": Characteristic, "complex": Complex}
        for name, kind in kinds.items():
            one_of("feature-entropy", name, getattr(self, name), get_args(kind))
        if not (isinstance(self.p, int | float) and 0 <= self.p <= 1):
            raise InputError(f"feature-entropy: p is {self.p!r}, allowed are numbers from 0 to 1")
        try:
            persistence.check_dimension(self.dimension, self.complex)
        except InputError as error:
            raise InputError(f"feature-entropy: {error}") from error

    @property
    def compiled(self) -> bool:
        """Whether the compiled kernel gives the characteristic; homology gives all others."""
        return (self.characterise, self.dimension, self.complex) == ("birth", 1, "clique")

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:
        faults = [fault for layer in layers if (fault := self.map_size_fault(layer))]
        if faults:
            more = f" (and {len(faults) - 1} more layers: leave all of them out)" if len(faults) > 1 else ""
            raise InputError(f"feature-entropy: {faults[0]}{more}")
        for layer in layers:
            try:
                self.table(max(labels, default=0) + 1, layer.units, *layer.map_size)
            except InputError as error:
                raise InputError(f"layer {layer.name!r}: {error}") from error
        if self.compiled:
            # The kernel is compiled once an installation, for few and for many rows; that is no time of scoring.
            for rows in (4, 65):
                birth_times(torch.zeros(1, rows, rows))
        else:
            persistence.library(self.complex)

    def map_size_fault(self, layer: Layer) -> str | None:
        """What is wrong with maps that are too small for a hole, or that are no adjacency matrix."""
        height, width = layer.map_size
        if self.complex == "clique" and height != width:
            return f"layer {layer.name!r}: maps are {height}×{width}, a map must be square; use square images"
        # The smallest holes: a cross-polytope (points, 4-cycle, octahedron, …), a pixel, a ring of pixels.
        least = 2 * self.dimension + (2 if self.complex == "clique" else 1)
        if min(height, width) >= least:
            return None
        hole = "a hole" if self.dimension == 1 else f"dimension {self.dimension}"
        return (
            f"layer {layer.name!r}: maps are {height}×{width}, {hole} needs at least {least}×{least}; "
            "use a larger input or leave the layer out"
        )

    def table(self, classes: int, units: int, height: int, width: int) -> tuple[int, int, int]:
        """The shape of the counts: (classes, units, largest + 1). InputError if int64 cannot number the entries."""
        shape = (classes, units, self.largest(height, width) + 1)
        if math.prod(shape) > torch.iinfo(torch.int64).max:
            raise InputError(
                f"the {self.characterise} in dimension {self.dimension} of {height}×{width} maps has "
                f"{math.prod(shape):.1e} counts of class, unit and value, allowed are 9.2e18; "
                "use a smaller input or leave the layer out"
            )
        return shape

    def largest(self, height: int, width: int) -> int:
        """No map has a larger characteristic: a Betti number is at most the number of simplices, or of pixels."""
        elements = height * width
        holes = math.comb(height, self.dimension + 1) if self.complex == "clique" else elements
        return {"birth": elements, "maximum": holes, "integral": elements * holes}[self.characterise]

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """births: (classes, units, largest + 1), sparse counts of (class, unit, characteristic), 0 = no hole."""
        units, (height, width) = maps.shape[1], maps.shape[2:]
        births = self.characteristic(maps).cpu().long()  # (images, units)
        where = torch.stack(torch.broadcast_tensors(labels.cpu()[:, None], torch.arange(units), births)).flatten(1)
        ones, shape = torch.ones(where.shape[1], dtype=torch.int64), self.table(classes, units, height, width)
        return {"births": torch.sparse_coo_tensor(where, ones, shape, check_invariants=True).coalesce()}

    def characteristic(self, maps: Tensor) -> Tensor:
        """(images, units, height, width) -> (images, units), whole numbers, 0 = no hole."""
        if self.compiled:
            return birth_times(maps, rank=self.rank)
        return persistence.characterise(maps, self.characterise, self.dimension, self.complex, self.rank)

    def score_layer(self, sums: Mapping[str, Tensor]) -> LayerScore:
        entropy, rate = entropy_and_rate(sums["births"], p=self.p, normalise=self.normalise)
        images = sums["births"].sum(dim=(1, 2)).to_dense() // sums["births"].shape[1]
        chosen = images > 0  # classes that were left out of the sample
        entropy, rate = entropy[chosen], rate[chosen]
        ratio = entropy / rate  # ε = 0: H = ln N, so +∞ (and 0/0 for a single image)
        ratio[rate == 0] = math.inf
        keep = {
            "entropy_per_rate": -mean_with_infinite(ratio, int(images.max())),
            "entropy": -entropy.mean(dim=0),
            "rate": rate.mean(dim=0),
        }
        raw = {
            "feature_entropy_nats": entropy,
            "selective_rate": rate,
            "entropy_per_rate_nats": ratio,
            "classes_without_birth": ratio.isinf().sum(dim=0).double(),
        }
        return LayerScore(keep[self.by], raw)


def mean_with_infinite(ratio: Tensor, largest: int) -> Tensor:
    """H/ε (classes, units) -> (units,): the mean of the finite classes, and N ln N more for each infinite one.

    largest: N, the images of the largest class.
    """
    infinite = ratio.isinf()
    finite_mean = ratio.masked_fill(infinite, 0).sum(dim=0) / (~infinite).sum(dim=0).clamp(min=1)
    n = max(largest, 2)
    return infinite.sum(dim=0) * (n * math.log(n)) + finite_mean


def entropy_and_rate(births: Tensor, p: float = 0.1, normalise: Normalise = "births") -> tuple[Tensor, Tensor]:
    """H in nats and ε, each (classes, units), from counts (classes, units, birth times), 0 = no birth.

    Equations 9 to 12: H = −Σ P(x) ln P(x) over the birth times x when ε ≥ p, (1 − ε) ln N when ε < p. A class
    without images has H = ε = 0.
    """
    births = births.coalesce() if births.is_sparse else births.to_sparse().coalesce()
    classes, units, _ = births.shape
    where, counts = births.indices(), births.values().double()
    pairs = where[0] * units + where[1]

    def total(values: Tensor, entries: Tensor) -> Tensor:
        return torch.zeros(classes * units, dtype=torch.float64).index_add_(0, entries, values)

    born = where[2] > 0
    samples, born_total = total(counts, pairs), total(counts[born], pairs[born])
    rate = born_total / samples.clamp(min=1)
    probability = counts[born] / (born_total if normalise == "births" else samples)[pairs[born]]
    entropy = total(-probability * probability.log(), pairs[born])
    entropy = torch.where(rate < p, (1 - rate) * samples.clamp(min=1).log(), entropy)
    # −1 · ln 1 is −0; an entropy is never negative.
    return entropy.abs().view(classes, units), rate.view(classes, units)
