"""Labels by the names that files give their values: one thing may have another value in every file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medsam_tune.errors import DataError

Labels = Mapping[str, Sequence[int | str]]
"""Name to mask values, or to the names that the files themselves give their values."""


def values_in_file(labels: Labels, names: Mapping[int, str]) -> dict[str, list[int]]:
    """Return the mask values of each group in one file.

    Args:
        labels: Groups of values and of names; capitals and spaces at the ends do not count.
        names: What the file calls its values.

    Example:
        >>> values_in_file({"liver": ["Liver", 7]}, {3: "liver ", 4: "spleen"})
        {'liver': [3, 7]}
    """

    def values(entry: int | str) -> list[int]:
        if isinstance(entry, int):
            return [entry]
        return [value for value, name in names.items() if _same(name, entry)]

    return {group: [value for entry in entries for value in values(entry)] for group, entries in labels.items()}


def check_names(labels: Labels | None, names: Mapping[str, Mapping[int, str]], ignore_label: int | None = None) -> None:
    """Refuse names that no file knows and, without groups, a value that two files call by two names.

    Args:
        labels: The recipe's groups.
        names: Case to what its file calls its values.
        ignore_label: A value that no label is.

    Raises:
        DataError: Saying what the files call their values.
    """
    found = sorted({name for of_case in names.values() for name in of_case.values()})
    wanted = [entry for entries in (labels or {}).values() for entry in entries if isinstance(entry, str)]
    unknown = [name for name in wanted if not any(_same(name, other) for other in found)]
    if unknown:
        raise DataError(f"data.source.labels: no mask has a label {unknown[0]!r}; there are {found}. Correct the name.")
    first: dict[int, tuple[str, str]] = {}
    for case, of_case in names.items() if labels is None else ():
        for value, name in of_case.items():
            other, known = first.setdefault(value, (case, name))
            if value != ignore_label and not _same(known, name):
                raise DataError(
                    f"data.source.labels: the masks of {other} call {value} {known!r}, those of {case} {name!r}. Name what you "
                    f"want, such as labels: {{{name}: [{name}]}}; there are {found}."
                )


def _same(name: str, other: str) -> bool:
    return name.strip().casefold() == other.strip().casefold()
