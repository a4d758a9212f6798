"""The signals that ask a command to end, Ctrl-C and SIGTERM, and what they do while it starts, works and saves.

The standard library alone is imported, because signals are handled before anything else is imported.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130
"""The exit code of a command that a signal has ended."""

Handler = Callable[[int, Any], Any] | signal.Handlers
"""What signal.signal takes: a function of the number and the frame, or SIG_IGN."""


def set_handler(handler: Handler) -> dict[int, Any]:
    """Let `handler` handle Ctrl-C and SIGTERM from now on.

    Ctrl-C stays ignored where it was: a shell lets the jobs in its background ignore it.

    Returns:
        The handlers before, by the number of the signal.
    """
    numbers = [signal.SIGINT] if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN else []
    numbers.append(signal.SIGTERM)
    return {number: signal.signal(number, handler) for number in numbers}


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGTERM from now on: the command only writes and names its result, or has ended."""
    set_handler(signal.SIG_IGN)


def stop_at_once() -> None:
    """Let Ctrl-C and SIGTERM end the process from now on with one line: there is nothing to save."""
    set_handler(lambda number, frame: _exit("interrupted"))


@contextmanager
def interrupting() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt in the block, so that unfinished work is saved.

    A second signal ends the process at once.

    Yields:
        The signals that have come.
    """
    received: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            _exit("interrupted a second time, stopped at once")
        raise KeyboardInterrupt

    previous = set_handler(interrupt)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _exit(text: str) -> None:
    os.write(2, f"prune-fe: {text}\n".encode())
    os._exit(INTERRUPTED)
