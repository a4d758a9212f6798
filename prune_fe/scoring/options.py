"""The options of scoring: which images the units are scored on, and which layers are scored."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from prune_fe.options import SINGLE_OR_SEVERAL, BatchSize, Count, Natural, Several, Single, options

Classes = Annotated[
    Annotated[Count, Single] | Annotated[tuple[Natural, ...], Field(min_length=1), Several], SINGLE_OR_SEVERAL
]
LayerNames = Annotated[tuple[str, ...], Field(min_length=1)]


@options
class ScoreOptions:
    """Which training images the units are scored on, and which layers are scored."""

    classes: Classes | None = None
    """Number of classes, drawn with the seed, or the indices of the classes. By default all classes."""

    samples: Count | None = None
    """Training images of each class, drawn with the seed. By default all images."""

    layers: LayerNames | None = None
    """Names of modules. By default every convolution."""

    linear: bool = False
    """Score linear layers too, and the convolutions in the gates of squeeze-and-excite blocks. Scorers that need
    feature maps leave them out."""

    batch_size: Annotated[BatchSize, Parameter(name=["--batch-size", "-b"])] = 64
    """Images that go through the network together."""
