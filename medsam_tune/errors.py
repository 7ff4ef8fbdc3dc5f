"""The errors a user can act on. Each says what was expected, what came, and what to do."""

from __future__ import annotations


class MedsamTuneError(Exception):
    """Carry a message for the user; the command line prints it without a traceback."""


class RecipeError(MedsamTuneError):
    """Report a recipe that asks for what cannot be; the message begins with the key."""


class DataError(MedsamTuneError):
    """Report a file or folder that cannot be used; the message begins with the path."""


class CheckpointError(MedsamTuneError):
    """Report a weight, adapter or checkpoint file that does not fit; the message begins with the path."""


def own_error(error: BaseException) -> MedsamTuneError | None:
    """Return the error of ours that ``error`` was raised from, or None; parsers and loaders wrap what they meet."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MedsamTuneError):
        cause = cause.__cause__
    return cause
