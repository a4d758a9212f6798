"""The application: its commands, and the message and exit code of each error.

A command is one file with one function, and one line in `COMMANDS`. torch is imported inside the functions, because
its import takes seconds that help, a misspelt option and a wrong recipe should not wait for.
"""

from __future__ import annotations

import errno
import io
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import cyclopts
from cyclopts import App, Parameter
from pydantic import ValidationError

from prune_fe.cli.ablate import ablate
from prune_fe.cli.compare import compare
from prune_fe.cli.evaluate import evaluate
from prune_fe.cli.export import export
from prune_fe.cli.finetune import finetune
from prune_fe.cli.prune import prune
from prune_fe.cli.report import report
from prune_fe.cli.run import run
from prune_fe.cli.score import score
from prune_fe.cli.study import study
from prune_fe.errors import EnvironmentFault, InputError, PruneFEError
from prune_fe.options import explain_errors

COMMANDS = (run, score, study, ablate, compare, report, prune, finetune, evaluate, export)

RESUME_HINTS = {
    "run": "; `prune-fe run ... --resume auto` continues after the last finished step",
    "score": "; the same command continues where it stopped",
    "compare": "; `prune-fe compare ... --resume auto` continues after the last finished result",
    "ablate": "; `prune-fe ablate ... --resume auto` continues after the last finished curve",
    "study": "; with --resume auto a network that is trained is not trained again",
}
"""Command -> how to continue it, which is printed when it is interrupted."""

app = App(
    name="prune-fe",
    help="Compress CNNs, ablate their units and benchmark pruning criteria.",
    version=lambda: metadata.version("prune-fe"),
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,  # main() reports it.
)
for command in COMMANDS:
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The words of the command line; by default those of this process.

    Returns:
        The exit code: 0, or 2 bad input, 3 data, 4 checkpoint, 5 environment, 130 interrupted; 1 is a bug.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # A run must not end because "×" cannot be printed.
    # SIGTERM ends the command as Ctrl-C does, so that snapshots are written.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        print(f"prune-fe: interrupted{RESUME_HINTS.get(words[0], '')}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, message = explain(error)
        print(f"prune-fe: {message}", file=sys.stderr)
        return code
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code of an error and its message, as one printable line."""
    code, text = getattr(error, "exit_code", 1), str(error)
    if isinstance(error, cyclopts.CycloptsError):
        code, text = InputError.exit_code, _explain_argument(error)
    elif isinstance(error, PruneFEError):
        if "Original Traceback" in text:
            # torch's text for an error in a process that reads images; its last line is the error's own.
            text = re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        code, text = EnvironmentFault.exit_code, "out of memory; use a smaller batch size or smaller images"
    elif isinstance(error, OSError) and error.strerror:
        code, text = EnvironmentFault.exit_code, f"{error.filename or 'writing'}: {error.strerror}"
        if error.errno == errno.ENOSPC:
            folder = next(p for p in [*Path(str(error.filename or ".")).absolute().parents, Path(".")] if p.exists())
            text += f" ({shutil.disk_usage(folder).free >> 20} MiB free); what is finished is kept"
    else:
        text = f"{type(error).__name__}: {text} (unexpected; --debug shows where)"
    # Names of files may contain control characters, which would act on the terminal.
    line = " ".join(text.split())
    return code, "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _explain_argument(error: cyclopts.CycloptsError) -> str:
    """Return cyclopts' text, or pydantic's for the value of an option, without pydantic's own lines around it."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return str(error)
    return explain_errors(cause, lambda _: (), error.argument.name if error.argument is not None else "")


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
