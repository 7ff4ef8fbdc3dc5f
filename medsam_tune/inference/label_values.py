"""Which value of a written mask stands for which label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LARGEST_VALUE = 65535
"""What a PNG can hold."""
WHOLE_IMAGE, WHOLE_VOLUME = 255, 1
"""The one kind of object where nobody gave it a value: white in a picture, 1 in a volume."""


@dataclass(frozen=True)
class Meaning:
    """Hold what a value means: a name, and the values that the training's own masks had for it."""

    name: str
    values: tuple[int, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the legend's entry."""
        return {"name": self.name, "values": list(self.values)} if self.values else {"name": self.name}


def class_values(names: Sequence[str], groups: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the value of each class: the smallest that the training's masks had for it, else its number in the order.

    Numbers are taken for all classes as soon as a class has no value, two have the same one, or one is too large.

    Examples:
        >>> class_values(["a", "b"], {"a": [205, 206], "b": [7]})
        {'a': 205, 'b': 7}
        >>> class_values(["a", "b"], {"a": [1]})
        {'a': 1, 'b': 2}
    """
    found = {name: min(groups[name]) for name in names if groups.get(name)}
    sound = len(found) == len(names) == len(set(found.values())) and max(found.values(), default=1) <= LARGEST_VALUE
    return found if sound else {name: number for number, name in enumerate(names, start=1)}


def drawn_values(labels: Iterable[str], groups: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the value of each label that was drawn: as in ``class_values`` where the training knew it, else a number.

    Whole numbers count as they are, other names get the smallest values that are free, by their order. Empty where no object
    has a label.

    Examples:
        >>> drawn_values(["tumour", "liver"], {})
        {'liver': 1, 'tumour': 2}
        >>> drawn_values(["7", "tumour"], {"tumour": [4]})
        {'7': 7, 'tumour': 4}
    """
    names = sorted(set(labels))
    if names in ([], [""]):
        return {}
    known = class_values(list(groups), groups)
    values = {name: known[name] for name in names if name in known}
    values |= {name: int(name) for name in names if name not in values and name.isdecimal() and 0 < int(name) <= LARGEST_VALUE}
    free = (number for number in range(1, LARGEST_VALUE + 1) if number not in set(values.values()))
    return {name: values[name] if name in values else next(free) for name in names}


def whole_value(groups: Mapping[str, Sequence[int]], *, is_volume: bool) -> int:
    """Return the value of the one kind of object: that of the training's masks where they had one, else 1 or 255."""
    only = [value for values in groups.values() for value in values]
    if len(only) == 1 and only[0] <= LARGEST_VALUE:
        return only[0]
    return WHOLE_VOLUME if is_volume else WHOLE_IMAGE


def meaning_of(name: str, groups: Mapping[str, Sequence[int]]) -> Meaning:
    """Return what the legend says of a label."""
    return Meaning(name, tuple(groups.get(name, ())))


def meaning_of_whole(groups: Mapping[str, Sequence[int]]) -> Meaning:
    """Return what the legend says of the one kind of object, all labels together."""
    return Meaning(" + ".join(groups) or "object", tuple(sorted({value for values in groups.values() for value in values})))
