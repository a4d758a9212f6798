"""Class selectivity (Morcos et al. 2018, "On the importance of single directions for generalization")."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers.base import ActivationScorer, LayerScore, Sums, check_choice, sum_over_positions
from prune_fe.tracing.layers import Layer

Form = Literal["index", "difference"]


@dataclass(frozen=True)
class ClassSelectivity(ActivationScorer):
    """Class selectivity: the score is (μ_max − μ_rest) / (μ_max + μ_rest).

    μ_c is the mean activation of the unit on class c, over the positions of its map (or the tokens) and over the
    images, and the runs of a layer that runs several times. μ_max is the largest of these, and μ_rest the mean of μ_c
    over the other classes. A unit that is silent on every class has selectivity 0. Where no ReLU follows and means may
    be negative, the divisor is |μ_max| + |μ_rest|, so that the index stays in [−1, 1].

    Attributes:
        form: "index", or "difference" for μ_max − μ_rest, which grows with the activation (tables 1 and 6 of Zhao &
            Zhang 2022).
        of: Number of a class whose μ_c replaces μ_max, for the study of this class.
        eps: A small number that is added to the divisor of the index. Programs add 1e-7 or so, against a division by
            zero. With 0, the formula of the paper, a unit whose activations are rounding errors, near 1e-14, can have
            the index 1 and be the best of its layer.
    """

    label: ClassVar[str] = "class-selectivity"

    form: Form = "index"
    of: int | None = None
    eps: float = 0.0
    compares_classes: ClassVar[bool] = True
    later_settings: ClassVar[Mapping[str, Any]] = {"eps": 0.0, "read": "map"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("class-selectivity", "form", self.form, get_args(Form))
        if self.of is not None and (type(self.of) is not int or self.of < 0):
            raise InputError(f"class-selectivity: of is {self.of!r}, allowed are numbers of classes from 0")
        if type(self.eps) not in (int, float) or not 0 <= self.eps < math.inf:
            raise InputError(f"class-selectivity: eps is {self.eps!r}, allowed are numbers from 0")
        if self.eps and self.form == "difference":
            raise InputError("class-selectivity: form: difference divides by nothing; leave out eps")

    def for_class(self, label: int) -> Self:
        """Return the scorer for the study of this class."""
        return replace(self, of=label)

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:
        """Raise InputError if the images are of one class only, or none is of class `of`."""
        if not labels:
            return
        if len(labels) < 2:
            raise InputError("class-selectivity compares classes: the images are of 1 class, at least 2 are needed")
        if self.of is not None and self.of not in labels:
            raise InputError(f"class-selectivity: no images of class {self.of}; choose one of those scored on")

    def measure_maps(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return `totals` (classes, units), the sum of the images' mean activations, and `images` (classes,)."""
        means = sum_over_positions(maps) / maps[0, 0].numel()
        totals = torch.zeros(classes, maps.shape[1], dtype=torch.float64).index_add_(0, labels, means)
        return {"totals": totals, "images": torch.bincount(labels, minlength=classes)}

    def score_layer(self, sums: dict[str, Tensor]) -> LayerScore:
        """Return the selectivity of each unit.

        Raises:
            InputError: The images are of one class only, or none is of class `of`.
        """
        images = sums["images"]
        has_images = images > 0
        self.check((), int(images.sum()), has_images.nonzero().flatten().tolist())
        mean = sums["totals"][has_images] / images[has_images, None]  # μ, (classes, units)
        strongest = mean.argmax(dim=0)
        if self.of is not None:
            strongest.fill_(int(has_images[: self.of].sum()))  # its row among the classes that have images
        selectivity = self._selectivity(mean, strongest)
        return LayerScore(selectivity, {"class_selectivity": selectivity, "class_mean_activation": mean})

    def keep_of_class(self, raw: Mapping[str, Tensor], row: int, images: int) -> Tensor:
        """Return the selectivity of each unit for one class."""
        mean = raw["class_mean_activation"]
        return self._selectivity(mean, torch.full(mean.shape[1:], row))

    def _selectivity(self, mean: Tensor, strongest: Tensor) -> Tensor:
        """Return the selectivity of each unit for the class that `strongest` names.

        Args:
            mean: Mean activation of each class, (classes, units).
            strongest: Row of a class for each unit, (units,).
        """
        top = mean.gather(0, strongest[None])[0]
        others = torch.ones_like(mean).scatter_(0, strongest[None], 0)
        rest = (mean * others).sum(dim=0) / (len(mean) - 1)
        selectivity = top - rest
        if self.form == "index":
            size = top.abs() + rest.abs() + self.eps
            selectivity = torch.where(size > 0, selectivity / size.where(size > 0, 1), 0)
        return selectivity
