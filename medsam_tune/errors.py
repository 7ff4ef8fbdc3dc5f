"""The errors a user can act on. Each says what was expected, what came, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar, cast

T = TypeVar("T")
# The last one is oneDNN's word for it.
_NO_MEMORY: Final = re.compile(
    r"out of memory|can't allocate memory|Unable to allocate|could not create a primitive", re.IGNORECASE
)


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


class PartlyUsable(DataFaults):
    """Report what cannot be used, and hold what can, so that it is looked at too and all faults are listed at once.

    Args:
        summary: As for ``DataFaults``.
        faults: As for ``DataFaults``; of one, the text is that message alone.
        usable: The rest.

    Attributes:
        usable: The rest.
    """

    def __init__(self, summary: str, faults: Sequence[str], usable: object) -> None:
        super().__init__(summary, faults)
        self.usable = usable
        if len(faults) == 1:
            self.args = (faults[0],)


class DataWarning(UserWarning):
    """Say aloud what is likely wrong with the data; the command line shows it without the place in the code."""


def data_error(summary: str, faults: Sequence[str]) -> DataError:
    """Return the one fault as an error, or all of them as one."""
    return DataError(faults[0]) if len(faults) == 1 else DataFaults(summary, faults)


def faults_of(error: DataError) -> list[str]:
    """Return the messages of an error one by one."""
    return list(error.faults) if isinstance(error, DataFaults) else [str(error)]


def usable_part(step: Callable[[], T], faults: list[str]) -> T:
    """Return what a step gives or, where it reports a part, the rest, and add its faults to those of earlier steps.

    Raises:
        DataError: If the step leaves nothing to go on with; with the earlier faults.
    """
    try:
        return step()
    except PartlyUsable as error:
        faults += error.faults
        return cast("T", error.usable)
    except DataError as error:
        if not faults:
            raise
        raise DataFaults("the data cannot be used", [*faults, *faults_of(error)]) from error


def all_usable(found: T, faults: Sequence[str], summary: str) -> T:
    """Return what was found, if there are no faults.

    Raises:
        PartlyUsable: If there are.
    """
    if faults:
        raise PartlyUsable(summary, faults, found)
    return found


class CheckpointError(MedsamTuneError):
    """Report a weight, adapter or checkpoint file that does not fit; the message begins with the path."""


def own_error(error: BaseException) -> MedsamTuneError | None:
    """Return the error of ours that ``error`` was raised from, or None; parsers and loaders wrap what they meet."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MedsamTuneError):
        cause = cause.__cause__
    return cause


def ran_out_of_memory(error: BaseException) -> bool:
    """Say whether an error of Python, NumPy, PyTorch or oneDNN is about memory that was not there."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Add to an error about memory what to lower, unless a place further inside has said it.

    Args:
        advice: What was too much and which key or option makes it less, as sentences.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error) and not getattr(error, "__notes__", ()):
            error.add_note(advice)
        raise


def memory_line(error: BaseException, otherwise: str) -> str:
    """Say in one line that memory ran out, and what to lower.

    Args:
        error: Of which ``ran_out_of_memory`` is true.
        otherwise: What to do where no place has added it to the error.
    """
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"out of memory ({said}). {' '.join(getattr(error, '__notes__', ())) or otherwise}"
