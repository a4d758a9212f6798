"""The options of the studies of single units, of layers and of explanation."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from prune_fe.options import Count, Natural, Seed, options


@options
class SubjectOptions:
    """Which unit is studied, on which images; the string under each option is its help text."""

    layer: str | None = None
    """A convolution, or any other module with feature maps, such as a residual block (layer4.1 of a ResNet is the
    paper's conv5_3_out). By default the last convolution on a main path that can be studied."""

    unit: Natural | None = None
    """Number of the unit. By default the one with the lowest H/ε for the class, among those whose maps have a hole in
    at least half of the images."""

    class_name: Annotated[str | None, Parameter(name="--class")] = None
    """Name of the class. By default the first."""

    samples: Count | None = None
    """Training images of a class. By default the recipe's number, or all."""

    compared: Annotated[Count | None, Parameter(name="--compared-classes")] = None
    """Number of classes that class selectivity compares, the studied one among them. By default the recipe's
    score.classes, or all."""

    seed: Seed | None = None
    """Seed of the network that is studied, one of the recipe's. By default the first."""


@options
class LayersOptions:
    """Which layers and networks are compared, on which images; the string under each option is its help text."""

    layers: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None, Parameter(name="--layer", consume_multiple=True)
    ] = None
    """One or more convolutions, or other modules with feature maps, such as the residual blocks of a ResNet (figure
    9A). A block with modules inside it gets a panel of the chart of its own. By default the recipe's layers, or every
    convolution."""

    blocks: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None, Parameter(name="--block", consume_multiple=True)
    ] = None
    """Instead of layers: one or more residual blocks, such as layer4.1 of a ResNet. The convolutions inside each block
    and its output are compared, in a panel a block (figure 9B)."""

    class_name: Annotated[str | None, Parameter(name="--class")] = None
    """Name of the class that is shown beside the mean over all classes. By default the first."""

    samples: Count | None = None
    """Training images of a class. By default the recipe's number, or as many as the smallest class has."""

    random_seeds: Count = 3
    """Number of random-initialised networks, whose seeds are 0, 1, 2, …"""

    random_classes: Count | None = None
    """Score the random-initialised networks on so many classes only, which is faster. By default on all classes."""

    seed: Seed | None = None
    """Seed of the network that is studied, one of the recipe's. By default the first."""

    def __post_init__(self) -> None:
        if self.layers is not None and self.blocks is not None:
            raise ValueError("--layer and --block were given; a block brings its own layers")


@options
class ExplanationOptions:
    """Which layers are studied, on which images; the string under each option is its help text."""

    layers: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None, Parameter(name="--layer", consume_multiple=True)
    ] = None
    """One or more convolutions, patterns of them such as "features.*", or other modules with feature maps. By default
    the last convolution."""

    images_per_class: Count | None = None
    """Mask units on so many test images of each class, drawn with the seed. A mask of an early layer runs every
    convolution behind it, once for each of the layer's units and image. By default all."""

    seed: Seed | None = None
    """Seed of the network that is studied, one of the recipe's. By default the first."""


@options
class GeneralisationStudyOptions:
    """Which sets of networks and layers are compared, on which images; the string under an option is its help text."""

    sets: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None, Parameter(name="--set-name", consume_multiple=True)
    ] = None
    """Names of sets in the recipe's section generalisation. By default all."""

    layers: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None, Parameter(name="--layer", consume_multiple=True)
    ] = None
    """One or more convolutions, or other modules with feature maps such as residual blocks. The last one is compared by
    class. By default the recipe's layers, or every convolution."""

    class_name: Annotated[str | None, Parameter(name="--class")] = None
    """Name of the class that is shown beside the mean over all classes. By default the first."""

    samples: Count | None = None
    """Training images of a class. By default the recipe's number, or as many as the smallest class has."""


@options
class TrainingStudyOptions:
    """Which layer is scored after each epoch, on which images; the string under an option is its help text."""

    layer: str | None = None
    """A convolution, or any other module with feature maps, such as a residual block. By default the last
    convolution."""

    class_name: Annotated[str | None, Parameter(name="--class")] = None
    """Name of the class that is shown beside the mean over all classes. By default the first."""

    samples: Count | None = None
    """Training images of a class. By default the recipe's number, or as many as the smallest class has."""

    seed: Seed | None = None
    """Seed of the network that is trained, one of the recipe's. By default the first."""
