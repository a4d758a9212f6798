"""Feature entropy (Zhao & Zhang, ICLR 2022): is the first hole of a unit's map born at the same time in every image?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.layers import Layer
from prune_fe.scorers.base import LayerScore, MapScorer, Sums
from prune_fe.topology import birth_times

Rank = Literal["elements", "edges"]
Normalise = Literal["births", "samples"]


@dataclass(frozen=True)
class FeatureEntropy(MapScorer):
    """keep = −(mean over the classes of H/ε), so that a unit in disorder is pruned first (eq. 15, appendix A.7).

    A class without any birth has H/ε = +∞. A unit with more such classes is worse; among equals the mean of the
    finite classes decides. `keep` says both in one finite number: an infinite class counts N ln N, which no finite
    mean reaches (H/ε ≤ (N − 1) ln N, N the images of the largest class).

    rank: how a birth is numbered, by the elements above it (eqs. 3, 7) or by distinct edge weights.
    normalise: P divides by the number of births, or as eq. 9 is printed by the number of samples.
    p: below this selective rate H is (1 − ε) ln N (eq. 12).
    """

    rank: Rank = "elements"
    normalise: Normalise = "births"
    p: float = 0.1

    def __post_init__(self) -> None:
        if self.rank not in get_args(Rank):
            raise InputError(f"feature-entropy: rank is {self.rank!r}, allowed are {', '.join(get_args(Rank))}")
        if self.normalise not in get_args(Normalise):
            allowed = ", ".join(get_args(Normalise))
            raise InputError(f"feature-entropy: normalise is {self.normalise!r}, allowed are {allowed}")
        if not (isinstance(self.p, int | float) and 0 <= self.p <= 1):
            raise InputError(f"feature-entropy: p is {self.p!r}, allowed are numbers from 0 to 1")

    def check(self, layers: Sequence[Layer]) -> None:
        for layer in layers:
            height, width = layer.map_size
            if height != width:
                raise InputError(
                    f"layer {layer.name!r}: maps are {height}×{width}, a map must be square; use square images"
                )
            if height < 4:
                raise InputError(
                    f"layer {layer.name!r}: maps are {height}×{width}, a hole needs at least 4×4; "
                    "use a larger input or leave the layer out"
                )
        # The kernel is compiled once an installation; seconds of that are no seconds of scoring.
        birth_times(torch.zeros(1, 4, 4))

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """births: (classes, units, m² + 1), sparse counts of (class, unit, birth time), 0 = no birth."""
        units, m = maps.shape[1], maps.shape[-1]
        births = birth_times(maps, rank=self.rank).cpu().long()  # (images, units)
        where = torch.stack(torch.broadcast_tensors(labels.cpu()[:, None], torch.arange(units), births)).flatten(1)
        ones, shape = torch.ones(where.shape[1], dtype=torch.int64), (classes, units, m * m + 1)
        return {"births": torch.sparse_coo_tensor(where, ones, shape, check_invariants=True).coalesce()}

    def score_layer(self, sums: Sums) -> LayerScore:
        entropy, rate = entropy_and_rate(sums["births"], p=self.p, normalise=self.normalise)
        images = sums["births"].sum(dim=(1, 2)).to_dense() // sums["births"].shape[1]
        chosen = images > 0  # classes that were left out of the sample
        entropy, rate = entropy[chosen], rate[chosen]
        ratio = entropy / rate  # ε = 0: H = ln N, so +∞ (and 0/0 for a single image)
        ratio[rate == 0] = math.inf
        infinite = ratio.isinf()
        finite_mean = ratio.masked_fill(infinite, 0).sum(dim=0) / (~infinite).sum(dim=0).clamp(min=1)
        largest = max(int(images.max()), 2)
        worst = largest * math.log(largest)
        raw = {"feature_entropy_nats": entropy, "selective_rate": rate, "entropy_per_rate_nats": ratio}
        return LayerScore(-(infinite.sum(dim=0) * worst + finite_mean), raw)


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
