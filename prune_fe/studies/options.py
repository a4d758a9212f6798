"""The options of the studies of single units."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from prune_fe.options import Count, Natural, Seed, options


@options
class SubjectOptions:
    """Which unit is studied, on which images; the string under each option is its help text."""

    layer: str | None = None
    """A convolution, or any other module with feature maps, such as a residual block (layer4.1 of a ResNet is the
    paper's conv5_3_out). By default the last convolution."""

    unit: Natural | None = None
    """Number of the unit. By default the one with the lowest H/ε for the class, among those whose maps have a hole in
    at least half of the images."""

    class_name: Annotated[str | None, Parameter(name="--class")] = None
    """Name of the class. By default the first."""

    samples: Count | None = None
    """Training images of a class. By default the recipe's number, or all."""

    seed: Seed | None = None
    """Seed of the network that is studied, one of the recipe's. By default the first."""
