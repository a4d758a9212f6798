"""Pruning criteria ("scorers"): one file each, `base` the extension point, `registry` their names."""

from prune_fe.scorers.registry import SCORERS, resolve_scorer, scorer_name

__all__ = ["SCORERS", "resolve_scorer", "scorer_name"]
