"""The errors a user can meet, and the exit code the command line gives each."""


class PruneFEError(Exception):
    """Something the user can mend. Its text is one line: what, where, got, allowed."""

    exit_code = 1


class InputError(PruneFEError, ValueError):
    """A wrong argument, recipe, model or score."""

    exit_code = 2


class DataError(PruneFEError, ValueError):
    """Images that are missing, unreadable or too few."""

    exit_code = 3


class CheckpointError(PruneFEError, ValueError):
    """A model file that is missing, damaged or of another model."""

    exit_code = 4


class EnvironmentFault(PruneFEError, RuntimeError):
    """The machine refuses: disk, memory, a folder in use."""

    exit_code = 5
