"""The scorers by name. To add one: write its file and add its line to `_CLASSES`.

Installed packages add scorers by entry points: with

    [project.entry-points."prune_fe.scorers"]
    my-criterion = "my_package.criteria:MyCriterion"

in a package's pyproject.toml, recipes and the command line know a class that derives from
`prune_fe.scorers.base.Scorer`, or a function of (layer, weight), as "my-criterion".
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from prune_fe.errors import EnvironmentFault, InputError, describe_error
from prune_fe.io import nearest

if TYPE_CHECKING:
    from prune_fe.scorers.base import Scorer

GROUP = "prune_fe.scorers"
"""The group of the entry points by which installed packages add scorers."""

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
    "tp-magnitude": "prune_fe.scorers.tp_criteria:TPMagnitude",
    "tp-bn-scale": "prune_fe.scorers.tp_criteria:TPBNScale",
    "tp-lamp": "prune_fe.scorers.tp_criteria:TPLAMP",
    "tp-fpgm": "prune_fe.scorers.tp_criteria:TPFPGM",
    "tp-taylor": "prune_fe.scorers.tp_criteria:TPTaylor",
    "tp-hessian": "prune_fe.scorers.tp_criteria:TPHessian",
    "tp-random": "prune_fe.scorers.tp_criteria:TPRandom",
}


BUILT_IN = tuple(_CLASSES)
"""The names of the package's own scorers."""


class _Registry(Mapping[str, "type[Scorer]"]):
    """Scorer classes by name, each imported on first access, so that names can be checked without torch."""

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES or name in _installed()

    def __getitem__(self, name: str) -> type[Scorer]:
        if name not in _CLASSES:
            return _load_installed(name)
        module, class_name = _CLASSES[name].split(":")
        scorer_class: type[Scorer] = getattr(import_module(module), class_name)
        return scorer_class

    def __iter__(self) -> Iterator[str]:
        return iter([*_CLASSES, *_installed()])

    def __len__(self) -> int:
        return len(_CLASSES) + len(_installed())


SCORERS: Mapping[str, type[Scorer]] = _Registry()


def resolve_scorer(
    scorer: str | Scorer | type[Scorer] | Callable[..., Any],
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Scorer:
    """Return the scorer of a name or function and its settings; return a `Scorer` unchanged.

    Args:
        scorer: Name of a scorer (a key of `SCORERS`), a function of (layer, weight), a class that derives from Scorer,
            or a scorer, for which the other arguments are ignored.
        settings: Settings of the scorer; those left out have their defaults.
        seed: Seed of the run, for a scorer that draws random numbers. A seed among the settings wins.

    Raises:
        InputError: There is no scorer of this name, it has no such setting, or a value is not allowed.
        EnvironmentFault: The scorer is that of an installed package, and cannot be loaded.
    """
    from prune_fe.scorers.base import Scorer

    if isinstance(scorer, Scorer):
        return scorer
    if isinstance(scorer, str) and scorer in SCORERS:
        name, scorer_class = scorer, SCORERS[scorer]
    elif callable(scorer):
        scorer_class = import_module("prune_fe.scorers.function").make_scorer_class(scorer)
        name = scorer_class.__name__
        if name in SCORERS:
            raise InputError(f"scorer {scorer!r} has the name of another one, {name!r}; rename it")
    else:
        raise InputError(f"unknown scorer {scorer!r}; {nearest(str(scorer), SCORERS)}")
    settings = settings or {}
    resolved = scorer_class.with_settings(name, settings)
    if seed is None:
        return resolved
    seeded = resolved.for_seed(seed)
    return dataclasses.replace(seeded, **settings) if settings else seeded  # type: ignore[type-var]


def scorer_name(scorer: Scorer) -> str:
    """Return the name by which `SCORERS` knows the scorer's class; for any other class, the name of the class."""
    path = f"{type(scorer).__module__}:{type(scorer).__qualname__}"
    names = [name for name in _CLASSES if _CLASSES[name] == path]
    # A scorer of an installed package whose name was used is loaded.
    names += [name for name, scorer_class in _loaded.items() if scorer_class is type(scorer)]
    return names[0] if names else type(scorer).__name__


_loaded: dict[str, type[Scorer]] = {}
"""The scorers of installed packages whose names were used."""


@functools.cache
def _installed() -> Mapping[str, tuple[metadata.EntryPoint, ...]]:
    """Return the entry points by which installed packages add scorers, by name; several for a name are a clash."""
    points: dict[str, tuple[metadata.EntryPoint, ...]] = {}
    for point in metadata.entry_points(group=GROUP):
        if point.name in _CLASSES:
            warnings.warn(f"scorer {_describe(point)} is ignored: prune_fe has one of this name", stacklevel=2)
        elif point not in points.get(point.name, ()):
            points[point.name] = (*points.get(point.name, ()), point)
    return points


def _load_installed(name: str) -> type[Scorer]:
    """Load a scorer of an installed package.

    Raises:
        InputError: Several packages have a scorer of this name, or it is no scorer.
        EnvironmentFault: It cannot be imported.
    """
    if name not in _loaded:
        point, *others = _installed()[name]
        if others:
            raise InputError(f"scorer {_describe(point)} is also {' and '.join(map(_describe, others))}; remove one")
        try:
            criterion = point.load()
        except Exception as error:  # the package's own code may raise anything
            raise EnvironmentFault(f"scorer {_describe(point)} cannot be loaded: {describe_error(error)}") from error
        _loaded[name] = import_module("prune_fe.scorers.function").make_scorer_class(criterion, name)
    return _loaded[name]


def _describe(point: metadata.EntryPoint) -> str:
    """Return the name of an entry point, and where it is."""
    package = f" of package {point.dist.name!r}" if point.dist is not None else ""
    return f"{point.name!r}{package} ({point.value})"
