"""Feature entropy (Zhao & Zhang, ICLR 2022): is the first hole of a unit's map born at the same time in every image?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers.base import LayerScore, MapScorer, Sums, check_choice, require_finite
from prune_fe.scorers.counts import Counts
from prune_fe.topology import birth_times, persistence
from prune_fe.topology.births import Rank, compile_kernel
from prune_fe.topology.padding import apply_to_squares
from prune_fe.topology.persistence import Characteristic, Complex
from prune_fe.tracing.layers import Layer

Normalise = Literal["births", "samples"]
By = Literal["entropy_per_rate", "entropy", "rate"]
Rectangular = Literal["refuse", "pad"]
Variant = Literal["paper", "program"]

LAST_STEP = 50
"""The last step at which the authors' program looks for a birth."""
LOWEST_RATIO = 0.1
"""Below this H/ε, a unit is among the worst for the authors' program."""
WORST_RATIO = 100 * math.log(100)
"""H/ε of such a unit: 100 images without any two alike would have ln 100."""


@dataclass(frozen=True)
class FeatureEntropy(MapScorer):
    """Feature entropy: the score is −(mean over the classes of H/ε) (eq. 15, appendix A.7).

    H is the entropy of the birth times of the first hole in the unit's maps over the images of a class, and ε, the
    selective rate, the share of these images whose map has a hole. A unit in disorder is pruned first.

    A class without any birth has H/ε = +∞. A unit with more such classes scores lower; between units with equally
    many, the mean of the finite classes decides. Both fit in one finite number: an infinite class counts N ln N,
    which no finite mean reaches (H/ε ≤ (N − 1) ln N, N the images of the largest class).

    The settings `characterise`, `dimension` and `complex` replace the birth time in H and ε by another characteristic,
    as `topology.characterise` defines it. All but the default are slow and need `pip install 'prune-fe[topology]'`.

    A map is read as a graph on its rows, so it has to be square. With `rectangular="pad"`, the shorter side of a map
    that is not square is filled up, on the right or at the bottom, with the smallest value of this map. The graph of an
    h×w map then has max(h, w) vertices, and the padding creates no edge between them before the end: an edge between
    two vertices beyond the first min(h, w) has this smallest value, at which the graph is complete and has no hole. So
    until then the vertices beyond the first min(h, w) are connected only to these, and a hole between two of them is
    filled by edges among the first min(h, w). The padding does not count in birth times either, which are numbered by
    the map's own elements. (For the maximum and the integral of the Betti curve, it counts as elements of the smallest
    value.)

    With `variant="program"`, the scores are those of the program that the authors published
    (github.com/liyueqiao/feature-entropy), to redo numbers that were made with it. There a birth is the number of
    different edge weights above it (`rank="edges"` less 1), and there is none at the first edge weight, where this
    number is 0, after step 50, or after 80 % of the possible edges. H is the entropy at every selective rate (p = 0).
    For each class, a unit with H/ε < 0.1, or without any birth, has H/ε = 100 ln 100, which puts it at the bottom (for
    up to 1,250 images of a class): there the paper's most effective units, with all births at one time, are the least.
    (The program's own "selective rate" is 1 − ε.)

    Attributes:
        rank: How a birth is numbered: by the elements above it (eqs. 3, 7) or by distinct edge weights.
        normalise: What divides the counts to give P: the number of births, or, as eq. 9 is printed, that of samples.
        p: Below this selective rate, H is (1 − ε) ln N (eq. 12).
        by: What the score is: "entropy_per_rate", −(mean over the classes of H/ε); "entropy", −(mean of H); "rate",
            the mean of ε.
        characterise: Of the Betti curve: its birth, maximum or integral (appendix A.3).
        dimension: Of the holes. 0 means components, which every map has (ε = 1), the first at birth 1 (H = 0).
        complex: Of the cliques in the map's graph, or of its pixels (appendix A.2).
        rectangular: What becomes of maps that are not square: "refuse" raises an error, "pad" fills them up to a
            square. A cubical complex takes them as they are.
        variant: "paper" for the formulas of the paper, "program" for the authors' program, see above, which has no
            other setting than `by`.
    """

    rank: Rank = "elements"
    normalise: Normalise = "births"
    p: float = 0.1
    by: By = "entropy_per_rate"
    characterise: Characteristic = "birth"
    dimension: int = 1
    complex: Complex = "clique"
    rectangular: Rectangular = "refuse"
    variant: Variant = "paper"
    later_settings: ClassVar[Mapping[str, Any]] = {"rectangular": "refuse", "variant": "paper"}

    def __post_init__(self) -> None:
        choices = {"rank": Rank, "normalise": Normalise, "by": By, "characterise": Characteristic, "complex": Complex}
        choices |= {"rectangular": Rectangular, "variant": Variant}
        for name, allowed in choices.items():
            check_choice("feature-entropy", name, getattr(self, name), get_args(allowed))
        if not (isinstance(self.p, int | float) and 0 <= self.p <= 1):
            raise InputError(f"feature-entropy: p is {self.p!r}, allowed are numbers from 0 to 1")
        try:
            persistence.check_dimension(self.dimension, self.complex)
        except InputError as error:
            raise InputError(f"feature-entropy: {error}") from error
        if self.pads and self.complex == "cubical":
            raise InputError(
                "feature-entropy: a cubical complex takes maps that are not square as they are; leave out rectangular"
            )
        if self.is_program:
            given = [
                entry.name
                for entry in dataclasses.fields(self)
                if entry.name not in ("by", "variant") and getattr(self, entry.name) != entry.default
            ]
            if given:
                raise InputError(
                    f"feature-entropy: variant: program has no {', '.join(given)}; leave out what it fixes"
                )

    @property
    def is_program(self) -> bool:
        """Whether the scores are those of the authors' program."""
        return self.variant == "program"

    @property
    def pads(self) -> bool:
        """Whether maps that are not square are filled up to a square."""
        return self.rectangular == "pad"

    @property
    def uses_birth_times(self) -> bool:
        """Whether the characteristic is the birth time, for which there is a fast kernel."""
        return (self.characterise, self.dimension, self.complex) == ("birth", 1, "clique")

    def why_unfit(self, layer: Layer) -> str | None:
        """Return why a layer cannot be scored: its units have no maps, or several of different sizes."""
        return "its units have no feature maps" if not layer.has_map else f"it runs {layer.runs} times"

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:
        """Raise an error for what cannot be scored, and compile the kernel so that no measurement includes that.

        Raises:
            InputError: Maps are too small for a hole, not square, or too large for the counts to be indexed.
            EnvironmentFault: The library that computes the homology is not installed.
        """
        faults = [fault for layer in layers if (fault := self.map_size_fault(layer))]
        if faults:
            more = f" (and {len(faults) - 1} more layers: leave all of them out)" if len(faults) > 1 else ""
            raise InputError(f"feature-entropy: {faults[0]}{more}")
        for layer in layers:
            try:
                self.counts_shape(max(labels, default=0) + 1, layer.units, *layer.map_size)
            except InputError as error:
                raise InputError(f"layer {layer.name!r}: {error}") from error
        if self.uses_birth_times:
            compile_kernel()
        else:
            persistence.import_library(self.complex)

    def map_size_fault(self, layer: Layer) -> str | None:
        """Return why the layer's maps cannot be characterised: they are too small for a hole, or not square."""
        height, width = layer.map_size
        maps = f"layer {layer.name!r}: maps are {height}×{width}"
        if self.complex == "clique" and height != width and not self.pads:
            return f"{maps}, a map must be square; use square images, or the setting rectangular: pad"
        # The smallest holes: a cross-polytope (points, 4-cycle, octahedron, …), a pixel, a ring of pixels.
        least = 2 * self.dimension + (2 if self.complex == "clique" else 1)
        # The vertices beyond the shorter side are not connected to each other, so that each can only fill or leave a
        # hole of one dimension less among the others.
        shorter = max(1, least - 2) if self.pads else least
        if min(height, width) >= shorter and max(height, width) >= least:
            return None
        hole = "a hole" if self.dimension == 1 else f"dimension {self.dimension}"
        return f"{maps}, {hole} needs at least {shorter}×{least}; use a larger input or leave the layer out"

    def counts_shape(self, classes: int, units: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape of the counts of height×width maps, (classes, units, largest characteristic + 1).

        Raises:
            InputError: int64 cannot index that many counts.
        """
        if self.pads:
            height = width = max(height, width)
        shape = (classes, units, self.largest_characteristic(height, width) + 1)
        if math.prod(shape) > torch.iinfo(torch.int64).max:
            raise InputError(
                f"the {self.characterise} in dimension {self.dimension} of {height}×{width} maps has "
                f"{math.prod(shape):.1e} counts of class, unit and value, allowed are 9.2e18; "
                "use a smaller input or leave the layer out"
            )
        return shape

    def largest_characteristic(self, height: int, width: int) -> int:
        """Return an upper bound of the characteristic: a Betti number is at most the number of simplices or pixels."""
        elements = height * width
        holes = math.comb(height, self.dimension + 1) if self.complex == "clique" else elements
        return {"birth": elements, "maximum": holes, "integral": elements * holes}[self.characterise]

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return `births`, counts (classes, units, largest characteristic + 1); entry 0 counts no hole."""
        shape = self.counts_shape(classes, *maps.shape[1:])
        return {"births": Counts.of(shape, labels.cpu().numpy(), self.characteristic(maps).cpu().numpy())}

    def characteristic(self, maps: Tensor) -> Tensor:
        """Return the characteristic of each map, a whole number, 0 for no hole.

        Args:
            maps: (images, units, height, width).

        Returns:
            (images, units).
        """
        if self.pads and maps.shape[-1] != maps.shape[-2]:
            require_finite(maps)  # before the padding, which would spread NaN and negative infinity
            return apply_to_squares(self._characteristic, maps)
        return self._characteristic(maps)

    def _characteristic(self, maps: Tensor) -> Tensor:
        """Return the birth time or other characteristic of each map, (images, units)."""
        if self.is_program:
            return program_births(maps)
        if self.uses_birth_times:
            return birth_times(maps, rank=self.rank)
        return persistence.characterise(maps, self.characterise, self.dimension, self.complex, self.rank)

    def score_layer(self, sums: Mapping[str, Counts]) -> LayerScore:
        """Return the feature entropy of each unit."""
        births = sums["births"].of_classes_with_images()
        entropy, rate = entropy_and_rate(births, p=0 if self.is_program else self.p, normalise=self.normalise)
        ratio = entropy / rate
        without_birth = rate == 0  # also where H = ln N = 0, of a single image: 0/0
        if self.is_program:
            ratio[without_birth | (ratio < LOWEST_RATIO)] = WORST_RATIO
        else:
            ratio[without_birth] = math.inf
        keep = {
            "entropy_per_rate": -mean_with_infinite(ratio, int(births.images.max())),
            "entropy": -entropy.mean(dim=0),
            "rate": rate.mean(dim=0),
        }
        raw = {
            "feature_entropy_nats": entropy,
            "selective_rate": rate,
            "entropy_per_rate_nats": ratio,
            "classes_without_birth": without_birth.sum(dim=0).double(),
        }
        return LayerScore(keep[self.by], raw)

    def keep_of_class(self, raw: Mapping[str, Tensor], row: int, images: int) -> Tensor:
        """Return the scores of one class: −H/ε, or what `by` names."""
        ratio = raw["entropy_per_rate_nats"][row : row + 1]
        keep = {
            "entropy_per_rate": -mean_with_infinite(ratio, images),
            "entropy": -raw["feature_entropy_nats"][row],
            "rate": raw["selective_rate"][row],
        }
        return keep[self.by]


def program_births(maps: Tensor) -> Tensor:
    """Return the birth of each map as the authors' program writes it, 0 for none.

    It is the number of different edge weights above that of the birth, if this number is from 1 to 50. The program adds
    no edges after the first ceil(0.8 · m (m − 1) / 2) different weights.

    Args:
        maps: (images, units, m, m).

    Returns:
        (images, units).
    """
    births = birth_times(maps, rank="edges")
    most = math.ceil(math.comb(maps.shape[-1], 2) * 0.8)  # in binary numbers, as the program computes it
    return torch.where(births <= min(most, LAST_STEP + 1), births - 1, 0).clamp(min=0)


def mean_with_infinite(ratio: Tensor, largest: int) -> Tensor:
    """Return the mean of H/ε over the finite classes, plus N ln N for each infinite class.

    Args:
        ratio: H/ε, (classes, units).
        largest: N, the number of images of the largest class.

    Returns:
        (units,), finite.
    """
    infinite = ratio.isinf()
    finite_mean = ratio.masked_fill(infinite, 0).sum(dim=0) / (~infinite).sum(dim=0).clamp(min=1)
    n = max(largest, 2)  # for one image, 1 · ln 1 = 0 would add nothing for an infinite class
    return infinite.sum(dim=0) * (n * math.log(n)) + finite_mean


def entropy_and_rate(births: Counts, p: float = 0.1, normalise: Normalise = "births") -> tuple[Tensor, Tensor]:
    """Return the entropy H in nats and the selective rate ε of each class and unit (eqs. 9 to 12).

    H = −Σ P(x) ln P(x) over the birth times x where ε ≥ p, and (1 − ε) ln N where ε < p. A class without images has
    H = ε = 0.

    Args:
        births: Counts of (classes, units, birth times); entry 0 counts the images without a birth.
        p: The smallest selective rate at which H is the entropy.
        normalise: What divides the counts to give P.

    Returns:
        H and ε, each (classes, units) float64.
    """
    births = births.counted()
    classes, units, size = births.shape
    counts = torch.from_numpy(births.counts).double()
    pairs = torch.from_numpy(births.entries // size)  # the number of each count's class and unit

    def total(values: Tensor, entries: Tensor) -> Tensor:
        """Return the sum of the values for each class and unit."""
        return torch.zeros(classes * units, dtype=torch.float64).index_add_(0, entries, values)

    is_birth = torch.from_numpy(births.entries % size > 0)
    samples, born = total(counts, pairs), total(counts[is_birth], pairs[is_birth])
    rate = born / samples.clamp(min=1)
    probability = counts[is_birth] / (born if normalise == "births" else samples)[pairs[is_birth]]
    entropy = total(-probability * probability.log(), pairs[is_birth])
    entropy = torch.where(rate < p, (1 - rate) * samples.clamp(min=1).log(), entropy)
    # −1 · ln 1 is −0; abs() turns it into 0, and no other entropy is negative.
    return entropy.abs().view(classes, units), rate.view(classes, units)
