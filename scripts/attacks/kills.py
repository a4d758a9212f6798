"""Commands are ended at random moments by kill -9, Ctrl-C and SIGTERM, and continued.

Right are the bits of a command that was not interrupted, and for Ctrl-C and SIGTERM exit code 130 and one line.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from attacks.commands import Command, call, new_directory, said, start
from attacks.tally import Outcome

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130


def run_whole(command: Command, directory: Path) -> tuple[float, Any]:
    """Return how long a command takes in a new folder, and what it writes.

    Raises:
        RuntimeError: It ends with an error.
    """
    folder = new_directory(directory, command.name)
    began = time.monotonic()
    if code := call(command.words, folder):
        raise RuntimeError(f"{command.name} without any attack: exit {code}: {said(folder)}")
    return time.monotonic() - began, command.outcome(folder)


def kill(command: Command, directory: Path, whole: tuple[float, Any], seed: str) -> list[Outcome]:
    """End a command at a random moment and continue it.

    Args:
        command: The command.
        directory: A new folder for it.
        whole: What `run_whole` returned.
        seed: Decides the moment, and its last character, a digit, the signal.
    """
    (duration, expected), number = whole, SIGNALS[int(seed[-1]) % 3]
    folder, seconds = new_directory(directory, command.name), random.Random(seed).uniform(0, duration)
    process = start(command.words, folder)
    await_handlers(process)
    time.sleep(seconds)
    os.kill(process, number)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    problem = None
    if number != signal.SIGKILL and code not in (0, INTERRUPTED):
        problem = f"exit {code}: {said(folder)}"
    elif code == INTERRUPTED and (not said(folder).startswith("prune-fe: interrupted") or "\n" in said(folder)):
        problem = f"printed {said(folder)!r}"
    elif code := command.resume(folder):
        problem = f"continued, exit {code}: {said(folder)}"
    elif command.outcome(folder) != expected:
        problem = "continued to other results"
    shutil.rmtree(folder)
    return [problem and f"{number.name} after {seconds:.2f} s: {problem}"]


def interrupt_start(directory: Path, seed: str) -> list[Outcome]:
    """End a real process of the program while Python imports it.

    Args:
        directory: A new folder for it.
        seed: As in `kill`.
    """
    number, folder = SIGNALS[1 + int(seed[-1]) % 2], new_directory(directory, "start")
    words = [sys.executable, "-m", "prune_fe", "run", "recipe.yaml"]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    await_handlers(process.pid)
    time.sleep(random.Random(seed).uniform(0, 1))
    is_late = process.poll() is not None  # On a busy machine the run may have ended meanwhile.
    process.send_signal(number)
    error = process.communicate()[1].strip()
    if is_late and process.returncode == 0:
        return [None]
    is_right = process.returncode == INTERRUPTED and error.startswith("prune-fe: interrupted") and "\n" not in error
    return [None if is_right else f"{number.name}: exit {process.returncode}: {error[-300:]}"]


def await_handlers(process: int) -> None:
    """Wait until a process handles SIGTERM, as the program does from its first line on, or has ended.

    Before that signals are Python's, which does not print one line.
    """
    while True:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        values = dict(line.split(":", 1) for line in lines)
        if values["State"].strip().startswith("Z") or int(values["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)
