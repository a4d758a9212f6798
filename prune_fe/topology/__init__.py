"""The birth time of a feature map's first hole, and other characteristics of its Betti curves."""

from prune_fe.topology.births import birth_times
from prune_fe.topology.persistence import characterise

__all__ = ["birth_times", "characterise"]
