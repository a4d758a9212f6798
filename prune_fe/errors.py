"""The errors that a user can cause and mend; the command line ends with an exit code of its own for each."""


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
