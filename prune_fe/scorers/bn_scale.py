"""BN scale (Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", section 3)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.io import shorten
from prune_fe.scorers.base import LayerScore, Scorer, Sums, to_float64
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.nested import Inputs


@dataclass(frozen=True)
class BNScale(Scorer):
    """BN scale: the score is |γ| of the batch norm between the layer and its feature map.

    A linear layer has such a norm where a `BatchNorm1d` normalises its outputs, and a layer that runs several times
    where it is the same in every run.
    """

    needs_data: ClassVar[bool] = False
    needs_example: ClassVar[bool] = True

    def why_unfit(self, layer: Layer) -> str | None:
        """Return why a layer cannot be scored: no batch norm follows it, or another one in each run."""
        if layer.norm is not None:
            return None
        return "no batch norm follows it" + (" that is the same in all its runs" if layer.runs > 1 else "")

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:
        """Raise InputError if no batch norm normalises the outputs of some layer."""
        bare = [layer.name for layer in layers if layer.norm is None]
        if bare:
            names = shorten([repr(name) for name in bare])
            raise InputError(f"bn-scale: there is no batch norm between {names} and the maps; leave them out")

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Inputs | None = None
    ) -> dict[str, LayerScore]:
        """Return |γ| of each unit's batch norm.

        Raises:
            InputError: A batch norm has no scale.
        """
        scores = {}
        for layer in layers:
            gamma = model.get_submodule(str(layer.norm)).weight
            if not isinstance(gamma, Tensor):
                raise InputError(f"layer {layer.name!r}: its batch norm {layer.norm!r} has no scale (affine=False)")
            scale = to_float64(gamma).abs()
            scores[layer.name] = LayerScore(scale, {"bn_scale": scale})
        return scores
