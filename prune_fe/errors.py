"""The errors that a user can cause and mend; the command line ends with an exit code of its own for each."""

import re


class PruneFEError(Exception):
    """Base class of all errors that a user can mend.

    The text is one line: what is wrong, where, what was given and what is allowed.

    Attributes:
        exit_code: The exit code of a command that ends with this error.
    """

    exit_code = 1


class InputError(PruneFEError, ValueError):
    """An argument, a recipe, a model or scores that cannot be used."""

    exit_code = 2


class DataError(PruneFEError, ValueError):
    """Images that are missing, unreadable or too few."""

    exit_code = 3


class CheckpointError(PruneFEError, ValueError):
    """A saved file that is missing, damaged or does not fit."""

    exit_code = 4


class EnvironmentFault(PruneFEError, RuntimeError):
    """Something that the machine does not allow: a full disk, too little memory, a folder in use."""

    exit_code = 5


def own_text(error: BaseException) -> str:
    """Return an error's text without the traceback that torch puts around it in a process that reads images."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    # The last line of the traceback is the error's class and its text.
    return re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not empty, or the name of the error's class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def describe_error(error: BaseException) -> str:
    """Return the class of an error and the first line of its text."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
