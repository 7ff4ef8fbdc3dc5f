"""What the values of masks mean, told from all of them: one object, classes, instances, or grey left by lossy compression."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from medsam_tune.data.class_tables import ClassTable
from medsam_tune.data.facts import PairFacts

MaskKind = Literal["one object", "classes", "instances", "lossy", "colours"]

_COLOURS = {
    0xFF0000: "red", 0x00FF00: "green", 0x0000FF: "blue", 0xFFFF00: "yellow", 0xFF00FF: "magenta", 0x00FFFF: "cyan",
    0xFFFFFF: "white", 0x808080: "grey", 0x800000: "maroon", 0x008000: "dark_green", 0x000080: "navy",
}  # fmt: skip
_IGNORED = 255
_MOST_CLASSES = 32
# JPEG at usual qualities moves the values of a 0/255 mask by a few dozens at edges.
_NEAR = 40
_WHITE = 255


@dataclass(frozen=True)
class MaskRule:
    """Say what mask values mean.

    Attributes:
        kind: ``one object``: 0 and another value; ``classes``: each value is a class; ``instances``: each value is one object
            of the same class; ``lossy``: 0 and 255 with traces of compression; ``colours``: each colour is a class.
        labels: Name to values of classes, to the names that the files have for them, or to [red, green, blue] of colours; empty
            for the other kinds.
        ignore_label: The value of pixels that nobody annotated.
        why: What was seen, as a sentence.
    """

    kind: MaskKind
    labels: Mapping[str, Sequence[int | str]]
    ignore_label: int | None
    why: str


def mask_rule(
    facts: Sequence[PairFacts],
    *,
    named: Mapping[str, Sequence[int]] | None = None,
    ignore_label: int | None = None,
    classes_of_files: Sequence[str] = (),
    object_files: bool = False,
) -> MaskRule:
    """Tell what the values of masks mean.

    Args:
        facts: All pairs that could be read.
        named: Name to values where the folder names classes.
        ignore_label: The ignored value where the folder names one.
        classes_of_files: The classes where each mask file is for one.
        object_files: Whether each mask file shows one object.
    """
    if classes_of_files:
        return MaskRule("classes", {name: [name] for name in classes_of_files}, ignore_label, "each mask file is for one class")
    if object_files:
        return MaskRule("instances", {}, ignore_label, "each mask file shows one object")
    if named:
        return MaskRule("classes", named, ignore_label, "the folder names its classes")
    if own_names := list(dict.fromkeys(name for each in facts for name in each.label_names)):
        return MaskRule("classes", {name: [name] for name in own_names}, ignore_label, "the files name their labels")
    values = Counter(value for each in facts for value in each.counts)
    if any(each.in_colours for each in facts):
        colours = {code: [code >> 16, code >> 8 & 255, code & 255] for code in sorted(values)}
        seen = f"masks show {len(colours)} colours beside black"
        return MaskRule("colours", {_COLOURS.get(code, f"colour_{code:06x}"): rgb for code, rgb in colours.items()}, None, seen)
    if _is_lossy(facts, values):
        return MaskRule("lossy", {}, None, "values lie near 0 and 255, as lossy compression leaves them")
    if ignore_label is None and _has_void(values, facts):
        ignore_label = _IGNORED
    several = [[value for value in each.counts if value != ignore_label] for each in facts]
    if (all(len(found) <= 1 for found in several) and len(values.keys() - {ignore_label}) <= 1) or _one_scaled(several, values):
        return MaskRule("one object", {}, ignore_label, f"masks hold 0 and {_shown(values, ignore_label)}")
    if _numbers_objects(facts, several):
        return MaskRule("instances", {}, ignore_label, f"each value is one piece, up to {max(map(len, several))} in an image")
    classes = sorted(values.keys() - {ignore_label})
    named_by_value = {f"label_{value}": [value] for value in classes}
    return MaskRule("classes", named_by_value, ignore_label, f"masks hold the values {_shown(values, ignore_label)}")


def named_by_table(rule: MaskRule, table: ClassTable | None) -> MaskRule:
    """Return a rule whose colours, or values without a name, are called as a table beside the masks calls them.

    Names that the table gives twice, and values that it has not, stay as they are.
    """
    if table is None or rule.kind not in ("colours", "classes"):
        return rule
    labels: dict[str, Sequence[int | str]] = {}
    for name, held in rule.labels.items():
        if rule.kind == "colours":
            red, green, blue = (int(value) for value in held)
            stated = table.colours.get(red << 16 | green << 8 | blue)
        else:
            stated = table.values.get(int(held[0])) if name == f"label_{held[0]}" else None
        labels[name if stated is None or stated in labels else stated] = held
    if list(labels) == list(rule.labels):
        return rule
    return replace(rule, labels=labels, why=f"{rule.why}; {table.path.name} names them")


def _is_lossy(facts: Sequence[PairFacts], values: Counter[int]) -> bool:
    if any(each.is_volume for each in facts) or len(values) < 8 or max(values) > _WHITE:
        return False
    pixels: Counter[int] = Counter()
    for each in facts:
        pixels.update(each.counts)
    near = sum(count for value, count in pixels.items() if value <= _NEAR or value >= _WHITE - _NEAR)
    return max(values) >= _WHITE - _NEAR and near >= 0.9 * pixels.total()


def _has_void(values: Counter[int], facts: Sequence[PairFacts]) -> bool:
    """Tell whether 255 stands beside small class numbers in one mask, as in PASCAL VOC."""
    others = [value for value in values if value != _IGNORED]
    together = any(_IGNORED in each.counts and len(each.counts) > 1 for each in facts)
    return _IGNORED in values and together and bool(others) and max(others) <= _MOST_CLASSES


def _one_scaled(several: Sequence[Sequence[int]], values: Counter[int]) -> bool:
    """Tell whether some masks hold 0 and 1 and others 0 and 255: one object, stored in two ways."""
    return all(len(found) <= 1 for found in several) and set(values) <= {1, _WHITE}


def _numbers_objects(facts: Sequence[PairFacts], several: Sequence[Sequence[int]]) -> bool:
    values = Counter(value for found in several for value in found)
    filled = [each for each in facts if each.pieces]
    pieces = sum(sum(each.pieces.values()) for each in filled)
    numbered = sum(len(each.pieces) for each in filled)
    if any(each.is_volume for each in facts):
        return len(values) > _MOST_CLASSES
    in_one_piece = pieces <= 1.15 * max(1, numbered)
    many = median([len(found) for found in several if found] or [0])
    return len(values) > _MOST_CLASSES or (in_one_piece and (many >= 8 or len(values) > 3 * max(2, many)))


def _shown(values: Counter[int], ignore_label: int | None) -> str:
    known = sorted(values.keys() - {ignore_label})
    listed = ", ".join(map(str, known[:6]))
    return f"{listed} and {len(known) - 6} more" if len(known) > 6 else listed or "nothing else"
