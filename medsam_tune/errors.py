"""The errors a user can act on. Each says what was expected, what came, and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class MedsamTuneError(Exception):
    """Carry a message for the user; the command line prints it without a traceback."""


class RecipeError(MedsamTuneError):
    """Report a recipe that asks for what cannot be; the message begins with the key."""


class DataError(MedsamTuneError):
    """Report a file or folder that cannot be used; the message begins with the path."""


class DataFaults(DataError):
    """Report several files that cannot be used, each with its own message.

    Args:
        summary: What they have in common, such as "2 of 12 cases cannot be used".
        faults: The messages, each beginning with its path.

    Attributes:
        faults: All of the messages, of which the text lists at most ``LISTED``.
    """

    LISTED = 50

    def __init__(self, summary: str, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        more = [f"and {len(faults) - self.LISTED} more"] if len(faults) > self.LISTED else []
        super().__init__("\n  ".join([f"{summary}:", *(" ".join(fault.split()) for fault in faults[: self.LISTED]), *more]))


class DataWarning(UserWarning):
    """Say aloud what is likely wrong with the data; the command line shows it without the place in the code."""


def data_error(summary: str, faults: Sequence[str]) -> DataError:
    """Return the one fault as an error, or all of them as one."""
    return DataError(faults[0]) if len(faults) == 1 else DataFaults(summary, faults)


class CheckpointError(MedsamTuneError):
    """Report a weight, adapter or checkpoint file that does not fit; the message begins with the path."""


def own_error(error: BaseException) -> MedsamTuneError | None:
    """Return the error of ours that ``error`` was raised from, or None; parsers and loaders wrap what they meet."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MedsamTuneError):
        cause = cause.__cause__
    return cause
