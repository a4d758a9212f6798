"""The command line."""

from prune_fe.cli.app import main

__all__ = ["main"]
