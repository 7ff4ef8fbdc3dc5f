"""What readers raise over a damaged or too large file, as one line that begins with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsam_tune.errors import DataError


@contextmanager
def reading(
    path: Path,
    kind: str,
    faults: tuple[type[BaseException], ...],
    *,
    too_large: str = "Crop the volume or store it with fewer bits.",
) -> Iterator[None]:
    """Read a file; whatever the reader raises becomes a DataError that names it.

    Args:
        path: The file.
        kind: What it is read as, for the message.
        faults: What the reader may raise over a damaged file.
        too_large: What to do where it does not fit into memory.

    Raises:
        DataError: With the first line of what the reader said.
    """
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory ({_first_line(error)}). {too_large}") from error
    except faults as error:
        if isinstance(error, FileNotFoundError) and error.filename and Path(error.filename).name != path.name:
            lost = Path(error.filename).name
            raise DataError(f"{path}: its voxels' file {lost} is missing. Put it beside the file, or remove both.") from error
        raise DataError(f"{path}: cannot be read as {kind} ({_first_line(error)}). Replace or remove the file.") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
