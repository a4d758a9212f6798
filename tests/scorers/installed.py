"""A package that adds scorers by entry points, as if it were installed."""

import functools
import sys
from pathlib import Path

import pytest

from prune_fe.scorers import registry

CRITERIA = """
from dataclasses import dataclass
from prune_fe.scorers.base import LayerScore, WeightScorer

def largest(layer, weight, power=1.0):
    return weight.abs().flatten(1).amax(dim=1) ** power

@dataclass(frozen=True)
class Smallest(WeightScorer):
    offset: float = 0.0

    def score_layer(self, layer, weight):
        return LayerScore(weight.abs().flatten(1).amin(dim=1) + self.offset)

number = 3
"""
POINTS = {"largest": "my_criteria:largest", "smallest": "my_criteria:Smallest"}


def install(patch: pytest.MonkeyPatch, folder: Path, points: dict[str, str], package: str = "my-criteria") -> None:
    """Add a package with the module my_criteria and these entry points to those that Python finds."""
    about = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines, ""]))
    (folder / "my_criteria.py").write_text(CRITERIA)
    patch.syspath_prepend(folder)
    patch.delitem(sys.modules, "my_criteria", raising=False)
    patch.setattr(registry, "_installed", functools.cache(registry._installed.__wrapped__))
    patch.setattr(registry, "_loaded", {})
