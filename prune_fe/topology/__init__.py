"""Feature map -> birth time of its first hole, or another characteristic of its Betti curves."""

from prune_fe.topology.births import birth_times
from prune_fe.topology.persistence import characterise

__all__ = ["birth_times", "characterise"]
