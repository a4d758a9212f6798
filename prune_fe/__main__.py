"""The program prune-fe, and python -m prune_fe for torchrun and accelerate.

Nothing is imported before signals are handled, so that an interruption is one line from the first moment on.
"""

import os
import signal
import sys
from typing import Any


def main() -> int:
    """Run the command line of this process; see `prune_fe.cli.app.main`.

    Returns:
        The exit code. From then on signals are ignored, because the command has ended.
    """
    numbers = [signal.SIGTERM]
    # A shell lets the jobs in its background ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    for number in numbers:
        signal.signal(number, _stop)
    from prune_fe.cli.app import main as run_command

    try:
        return run_command()
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: Any) -> None:
    """End at once: no command has begun, so that there is nothing to save."""
    os.write(2, b"prune-fe: interrupted\n")
    os._exit(130)


def run() -> None:
    """Run the command line and end the process with its exit code."""
    code = main()
    if code == 130:
        # If the interruption came during exec(), which imports use, CPython would end itself by the signal instead.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
