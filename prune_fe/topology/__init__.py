"""Feature map -> birth time of its first hole."""

from prune_fe.topology.births import birth_times

__all__ = ["birth_times"]
