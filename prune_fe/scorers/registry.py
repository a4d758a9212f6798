"""The scorers by name. To add one: write its file and add its line to `_CLASSES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from prune_fe.errors import InputError
from prune_fe.io import nearest

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
    """Scorer classes by name, each imported on first access, so that names can be checked without torch."""

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES

    def __getitem__(self, name: str) -> type[Scorer]:
        module, class_name = _CLASSES[name].split(":")
        scorer_class: type[Scorer] = getattr(import_module(module), class_name)
        return scorer_class

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


SCORERS: Mapping[str, type[Scorer]] = _Registry()


def resolve_scorer(scorer: str | Scorer, settings: Mapping[str, Any] | None = None, seed: int | None = None) -> Scorer:
    """Return the scorer of a name and its settings; return a `Scorer` unchanged.

    Args:
        scorer: Name of a scorer (a key of `SCORERS`), or a scorer, for which the other arguments are ignored.
        settings: Settings of the scorer; those left out have their defaults.
        seed: Seed of the run, for a scorer that draws random numbers. A seed among the settings wins.

    Raises:
        InputError: There is no scorer of this name, it has no such setting, or a value is not allowed.
    """
    from prune_fe.scorers.base import Scorer

    if isinstance(scorer, Scorer):
        return scorer
    if not isinstance(scorer, str) or scorer not in SCORERS:
        raise InputError(f"unknown scorer {scorer!r}; {nearest(str(scorer), SCORERS)}")
    settings = settings or {}
    resolved = SCORERS[scorer].with_settings(scorer, settings)
    return resolved if seed is None else dataclasses.replace(resolved.for_seed(seed), **settings)  # type: ignore[type-var]


def scorer_name(scorer: Scorer) -> str:
    """Return the name by which `SCORERS` knows the scorer's class; for any other class, the name of the class."""
    names = (name for name in SCORERS if SCORERS[name] is type(scorer))
    return next(names, type(scorer).__name__)
