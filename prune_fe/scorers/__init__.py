"""The scorers by name. To add one: write its file and add its line here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune_fe.scorers.base import Scorer

_CLASSES = {
    "feature-entropy": "prune_fe.scorers.feature_entropy:FeatureEntropy",
    "l1-activation": "prune_fe.scorers.l1_activation:L1Activation",
    "l1-filter": "prune_fe.scorers.l1_filter:L1Filter",
    "l2-filter": "prune_fe.scorers.l2_filter:L2Filter",
    "apoz": "prune_fe.scorers.apoz:APoZ",
    "class-selectivity": "prune_fe.scorers.class_selectivity:ClassSelectivity",
    "fpgm": "prune_fe.scorers.fpgm:FPGM",
    "nisp": "prune_fe.scorers.nisp:NISP",
    "taylor": "prune_fe.scorers.taylor:Taylor",
    "bn-scale": "prune_fe.scorers.bn_scale:BNScale",
    "mean-activation": "prune_fe.scorers.mean_activation:MeanActivation",
    "hrank": "prune_fe.scorers.hrank:HRank",
    "random": "prune_fe.scorers.random:Random",
}


class _Registry(Mapping[str, "type[Scorer]"]):
    """Name -> class; a class is imported when it is asked for, so that its name can be checked without torch."""

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES

    def __getitem__(self, name: str) -> type[Scorer]:
        module, class_name = _CLASSES[name].split(":")
        loaded: Any = getattr(import_module(module), class_name)
        return loaded

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


SCORERS: Mapping[str, type[Scorer]] = _Registry()
