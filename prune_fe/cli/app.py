"""The application: its commands, and the message and exit code of each error.

A command is one file with one function, and one line in `COMMANDS`. torch is imported inside the functions, because
its import takes seconds that help, a misspelt option and a wrong recipe should not wait for.
"""

from __future__ import annotations

import errno
import io
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import cyclopts
from cyclopts import App, Parameter
from pydantic import ValidationError

from prune_fe.cli.ablate import ablate
from prune_fe.cli.compare import compare
from prune_fe.cli.compress import compress
from prune_fe.cli.evaluate import evaluate
from prune_fe.cli.export import export
from prune_fe.cli.finetune import finetune
from prune_fe.cli.init import init
from prune_fe.cli.inspect import inspect
from prune_fe.cli.output import console, noting_warnings
from prune_fe.cli.prune import prune
from prune_fe.cli.report import report
from prune_fe.cli.run import run
from prune_fe.cli.score import score
from prune_fe.cli.sensitivity import sensitivity
from prune_fe.cli.study import study
from prune_fe.errors import EnvironmentFault, InputError, PruneFEError, own_text
from prune_fe.io import describe_full_disk
from prune_fe.options import explain_errors
from prune_fe.signals import INTERRUPTED, interrupting

COMMANDS = (
    compress,
    init,
    run,
    inspect,
    score,
    study,
    ablate,
    compare,
    report,
    sensitivity,
    prune,
    finetune,
    evaluate,
    export,
)

RESUME_HINTS = {
    "run": "; `prune-fe run ... --resume auto` continues after the last finished step",
    "score": "; the same command continues where it stopped",
    "compress": "; the same command continues after the last finished step",
    "compare": "; `prune-fe compare ... --resume auto` continues after the last finished result",
    "ablate": "; `prune-fe ablate ... --resume auto` continues after the last finished curve",
    "study": "; with --resume auto a network that is trained is not trained again",
    "finetune": "; the same command continues after the last finished epoch",
    "sensitivity": "; the same command continues after the last finished group of layers",
    "init": "; nothing was written",
    "inspect": "; nothing was written",
    "prune": "; nothing was written",
    "export": "; if the file is not there, nothing was written",
}
"""Command -> how to continue it, which is printed when it is interrupted."""

app = App(
    name="prune-fe",
    help="Compress neural networks, ablate their units and benchmark pruning criteria.",
    help_epilogue="Every command takes --quiet, which prints errors only, and --debug, which prints their traceback.",
    version=lambda: metadata.version("prune-fe"),
    version_flags=("--version", "-V"),
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,  # main() reports it.
)
for command in COMMANDS:
    app.command(command)
app.register_install_completion_command(help="Install the completion of commands and options for this shell.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The words of the command line; by default those of this process.

    Returns:
        The exit code: 0, or 2 bad input, 3 data, 4 checkpoint, 5 environment, 130 interrupted; 1 is a bug.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    is_quiet = console.quiet or "--quiet" in words
    words = [word for word in words if word not in ("--debug", "--quiet")]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # A run must not end because "×" cannot be printed.
    was_quiet, console.quiet, was_stderr = console.quiet, is_quiet, console.stderr

    def note(line: str) -> None:
        # Beside the numbers, which another program may read from the standard output.
        if not is_quiet:
            print(line, file=sys.stderr)

    try:
        with interrupting() as received, noting_warnings(note):
            return _run(words, debug, received)
    except KeyboardInterrupt:  # it came when the command had ended
        print(_interrupted(words), file=sys.stderr)
        return INTERRUPTED
    finally:
        console.quiet, console.stderr = was_quiet, was_stderr


def _run(words: Sequence[str], debug: bool, received: Sequence[int]) -> int:
    """Run a command, and return its exit code.

    Args:
        words: The words of the command line.
        debug: Whether the traceback of an error is printed.
        received: Grows with each signal.
    """
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except BaseException as error:
        if debug:
            traceback.print_exc()
        # Native code and imports turn the interruption into errors of their own.
        if received or isinstance(error, KeyboardInterrupt):
            print(_interrupted(words), file=sys.stderr)
            return INTERRUPTED
        if not isinstance(error, Exception):
            raise
        code, message = explain(error)
        print(f"prune-fe: {message}", file=sys.stderr)
        return code
    return 0


def _interrupted(words: Sequence[str]) -> str:
    return f"prune-fe: interrupted{RESUME_HINTS.get(words[0] if words else '', '')}"


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code of an error and its message, as one printable line."""
    if isinstance(error, PruneFEError):
        code, text = error.exit_code, own_text(error)
    elif isinstance(error, cyclopts.CycloptsError):
        code, text = InputError.exit_code, _explain_argument(error)
    elif _is_out_of_memory(error):
        code, text = EnvironmentFault.exit_code, "out of memory; use a smaller batch size or smaller images"
    elif isinstance(error, OSError) and error.strerror:
        code, text = EnvironmentFault.exit_code, f"{error.filename or 'writing'}: {error.strerror}"
        if error.errno == errno.ENOSPC:
            path = Path(str(error.filename or "file"))
            text = f"{error.filename or 'writing'}: {describe_full_disk(path)}"
    else:
        code, text = 1, f"{type(error).__name__}: {error} (unexpected; --debug shows where)"
    # Names of files may contain control characters, which would act on the terminal.
    line = " ".join(text.split())
    return code, "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _is_out_of_memory(error: Exception) -> bool:
    # By name, since torch is not loaded for that.
    is_memory_error = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_memory_error or "allocate memory" in str(error)


def _explain_argument(error: cyclopts.CycloptsError) -> str:
    """Return cyclopts' text, or pydantic's for the value of an option, without pydantic's own lines around it."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return str(error)
    name = error.argument.name if error.argument is not None else ""
    text = explain_errors(cause, lambda _: (), name)
    # pydantic's place is inside the value: an index or a key.
    return text if not name or text.startswith(f"{name}:") else f"{name}.{text}"
