"""The program prune-fe, and python -m prune_fe for torchrun and accelerate.

Nothing large is imported before signals are handled, so that an interruption is one line. The first milliseconds, in
which Python itself starts, cannot be handled: then Ctrl-C prints a traceback or nothing, and nothing has begun.
"""

import os
import sys

from prune_fe.openmp import shorten_waiting
from prune_fe.signals import INTERRUPTED, ignore_signals, stop_at_once


def main() -> int:
    """Run the command line of this process; see `prune_fe.cli.app.main`.

    Returns:
        The exit code. From then on signals are ignored, because the command has ended.
    """
    stop_at_once()
    shorten_waiting()
    from prune_fe.cli.app import main as run_command

    try:
        return run_command()
    finally:
        ignore_signals()


def run() -> None:
    """Run the command line and end the process with its exit code."""
    code = main()
    if code == INTERRUPTED:
        # If the interruption came during exec(), which imports use, CPython would end itself by the signal instead.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
