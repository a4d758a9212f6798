"""The options of scoring: which images the units are scored on, and which layers are scored."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from prune_fe.errors import InputError
from prune_fe.io import nearest
from prune_fe.options import SINGLE_OR_SEVERAL, BatchSize, Count, Natural, Patterns, Several, Single, options
from prune_fe.scorers.registry import SCORERS

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
    """Names of modules, or patterns of layers such as "layer[12].*". By default every convolution, and with `linear`
    every linear layer. A module that is no layer, such as a residual block, is scored at its output, behind the sum;
    pruning then ranks the units that the sum ties together by it, where none of their layers is named."""

    exclude: Patterns = ()
    """Names or patterns of layers that are not scored, such as "layer4.*"."""

    strict: bool = False
    """Refuse to leave a layer out for a scorer that cannot score it, such as one with maps that are too small. By
    default it is left out for that scorer alone, and named; layers that `layers` names are never left out."""

    linear: bool = False
    """Score linear layers too, and the convolutions in the gates of squeeze-and-excite blocks. Scorers that need
    feature maps leave them out, and say so; `linear_scorer` scores them in their place."""

    linear_scorer: str | None = None
    """Name of a scorer, such as taylor, that scores the layers that a scorer leaves out, with its default settings: for
    feature-entropy, those without feature maps and those that run several times. Where such a layer is tied to others,
    the scores of the others decide. Needs `linear`."""

    batch_size: Annotated[BatchSize, Parameter(name=["--batch-size", "-b"])] = 64
    """Images that go through the network together."""

    @property
    def names_layers(self) -> bool:
        """Whether layers are named one by one, so that none of them may be left out; a pattern names none."""
        return self.layers is not None and not any(sign in name for name in self.layers for sign in "*?[")

    def __post_init__(self) -> None:
        """Check that the linear scorer exists and has layers to score.

        Raises:
            InputError: There is no scorer of that name, or `linear` is not set.
        """
        if self.linear_scorer is None:
            return
        if self.linear_scorer not in SCORERS:
            raise InputError(
                f"linear_scorer: unknown scorer {self.linear_scorer!r}; {nearest(self.linear_scorer, SCORERS)}"
            )
        if not self.linear:
            raise InputError(f"linear_scorer: {self.linear_scorer} scores linear layers, set linear: true too")
