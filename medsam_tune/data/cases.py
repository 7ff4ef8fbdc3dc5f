"""Which case an image belongs to, told from its name by a regular expression."""

from __future__ import annotations

import re
from pathlib import Path

from medsam_tune.errors import DataError, RecipeError


def compile_case_pattern(case_pattern: str) -> re.Pattern[str]:
    """Compile ``data.source.case_pattern``.

    Raises:
        RecipeError: If it is no regular expression, or has no group.
    """
    try:
        pattern = re.compile(case_pattern)
    except re.error as error:
        raise RecipeError(
            f"data.source.case_pattern: {case_pattern!r} is no regular expression ({error}). Correct it."
        ) from error
    if pattern.groups < 1:
        raise RecipeError(f"data.source.case_pattern: {case_pattern!r} has no group. Put the case in brackets: '^([^_]+)_'.")
    return pattern


def case_of(name: str, pattern: re.Pattern[str], path: Path) -> str:
    """Return the pattern's first group in an image's name.

    Raises:
        DataError: If the pattern does not match or its group is empty.
    """
    match = pattern.search(name)
    if match is None or not match.group(1):
        raise DataError(
            f"{path}: {name!r} gives no case under data.source.case_pattern {pattern.pattern!r}. "
            "Rename the file or change the pattern."
        )
    return match.group(1)
