"""From stored mask values to objects: one row for each label that is present, or for each instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.data.formats.present_values import number_values, present_values
from medsam_tune.data.targets import connected_pieces
from medsam_tune.errors import RecipeError
from medsam_tune.masks import ObjectMasks

ONE_LABEL: dict[int, str] = {1: "object"}
"""The only label of masks whose values name no classes."""


@dataclass(frozen=True)
class Objects:
    """Hold what a mask shows.

    Attributes:
        masks: N masks (H, W), one for each label that is present, or for each instance.
        labels: (N,) int64.
        ignored: (H, W) bool, pixels that nobody annotated; None where every pixel is known.
        object_ids: (N,) int64, the number of each instance in its image; None where a row is a label.
    """

    masks: ObjectMasks
    labels: Tensor
    ignored: Tensor | None = None
    object_ids: Tensor | None = None


def check_labels(labels: Mapping[str, Sequence[int | str]] | None) -> None:
    """Refuse label groups without values, with the background value 0, or with values that no mask may hold.

    Raises:
        RecipeError: Naming the group.
    """
    for name, values in (labels or {}).items():
        if not values or any(isinstance(value, int) and value < 1 for value in values):
            raise RecipeError(
                f"data.source.labels.{name}: expected a list of mask values above 0 (0 is background), got {list(values)}."
            )


def check_ignore_label(ignore_label: int | None, labels: Mapping[str, Sequence[int | str]] | None) -> None:
    """Refuse an ignored value that is background or a label.

    Raises:
        RecipeError: Naming the key.
    """
    if ignore_label is None:
        return
    named = [name for name, values in (labels or {}).items() if ignore_label in values]
    if ignore_label < 1 or named:
        where = f"it is a value of label {named[0]} too" if named else "0 is background"
        raise RecipeError(f"data.ignore_label: expected a mask value above 0 that no label uses, got {ignore_label}: {where}.")


def refuse_labels(named: bool) -> None:
    """Refuse to invert masks whose values have names.

    Raises:
        RecipeError: If they have.
    """
    if named:
        raise RecipeError(
            "data.inverted_masks: masks with labels of their own have no inside and outside. Name the labels that count in "
            "data.source.labels instead."
        )


def inverted(values: NDArray[np.int32], ignore_label: int | None, level: int = 0) -> NDArray[np.int32]:
    """Exchange object and background of mask values; what nobody annotated stays that.

    Args:
        values: Above ``level`` where an inverted mask shows its background.
        ignore_label: Value of pixels that nobody annotated.
        level: What is not above it is background.

    Example:
        >>> inverted(np.array([[0, 1, 9]], np.int32), 9).tolist()
        [[1, 0, 9]]
    """
    known: NDArray[np.int32] = np.where(values > level, 0, level + 1).astype(np.int32)
    return known if ignore_label is None else np.where(values == ignore_label, values, known)


def name_labels(labels: Mapping[str, Sequence[int | str]]) -> dict[int, str]:
    """Number the groups 1, 2, ... in the order in which the recipe names them."""
    return dict(enumerate(labels, start=1))


def number_groups(labels: Mapping[str, Sequence[int | str]] | None) -> dict[str, list[int]] | None:
    """Return the mask values of each group, or None where the recipe names no labels.

    Raises:
        RecipeError: If a group holds names, which nothing here gives.
    """
    for name, values in (labels or {}).items():
        if any(isinstance(value, str) for value in values):
            raise RecipeError(
                f"data.source.labels.{name}: {list(values)} are names, but neither data.colours nor data.source.mask_pattern "
                "gives any. Write the mask's values."
            )
    return None if labels is None else {name: [int(value) for value in values] for name, values in labels.items()}


def groups_of_names(
    labels: Mapping[str, Sequence[int | str]] | None, names: Sequence[str], *, where: str
) -> dict[str, list[int]]:
    """Number names 1, 2, ... in their order and return the numbers of each group; without groups each name is one.

    Args:
        labels: Names of each group, as the recipe gives them.
        names: What there is to be grouped.
        where: What gives the names, for the message.

    Raises:
        RecipeError: If a group holds something else than such a name.

    Examples:
        >>> groups_of_names({"vessel": ["lumen", "wall"]}, ["lumen", "wall", "clot"], where="data.colours")
        {'vessel': [1, 2]}
    """
    if labels is None:
        return {name: [number] for number, name in enumerate(names, start=1)}
    for group, members in labels.items():
        if unknown := [name for name in members if name not in names]:
            raise RecipeError(f"data.source.labels.{group}: {unknown[0]!r} is no name of {where}, which has {list(names)}.")
    return {group: [names.index(str(name)) + 1 for name in members] for group, members in labels.items()}


def name_values(parts: Sequence[NDArray[Any]], ignore_label: int | None) -> dict[int, str]:
    """Call every value above 0 that stands in one of the arrays ``label <value>``, without the ignored one."""
    found = sorted({int(value) for part in parts for value in present_values(part)} - {0, ignore_label})
    return {value: f"label {value}" for value in found}


def find_objects(
    values: NDArray[Any], labels: Mapping[str, Sequence[int]] | None, *, ignore_label: int | None = None
) -> Objects:
    """Split mask values (H, W), or (H, W, L) in layers that overlap, into one row for each label present.

    Groups may share values (whole tumour and its core), then their rows overlap. Values that no group names are background.

    Args:
        values: Integer mask values; 0 is background.
        labels: Values of each named group, or None: each value is its own label.
        ignore_label: Value of pixels that nobody annotated: neither object nor background.

    Examples:
        >>> find_objects(np.array([[0, 2], [1, 2]]), {"both": [1, 2], "second": [2]}).masks.areas().tolist()
        [3, 2]
    """
    layers = values[..., None] if values.ndim == 2 else values
    ignored = None if ignore_label is None else torch.from_numpy((layers == ignore_label).any(axis=-1))
    if labels is None and layers.shape[-1] == 1:
        return _one_row_a_value(layers[..., 0], ignore_label, ignored)
    if labels is None:
        groups = [(int(value), [int(value)]) for value in present_values(values) if value not in (0, ignore_label)]
    else:
        groups = list(enumerate((list(group) for group in labels.values()), start=1))
    planes = (torch.from_numpy(np.isin(layers, group).any(axis=-1)) for _, group in groups)
    masks = ObjectMasks.of_planes(planes, (int(values.shape[0]), int(values.shape[1])))
    shown = masks.shown()
    return Objects(masks.rows(shown), torch.tensor([label for label, _ in groups], dtype=torch.int64)[shown], ignored)


def _one_row_a_value(values: NDArray[Any], ignore_label: int | None, ignored: Tensor | None) -> Objects:
    """Return one row for each value above 0 of (H, W), the ignored one aside."""
    known = values if ignore_label is None else np.where(values == ignore_label, 0, values)
    present, places = number_values(known)
    objects = present != 0
    # Background is 0, whatever signs there are, and whether or not there is any.
    numbers = np.where(objects, np.cumsum(objects), 0).astype(np.int32)[places]
    masks = ObjectMasks.of_numbers(numbers, int(objects.sum()))
    return Objects(masks, torch.from_numpy(present[objects].astype(np.int64)), ignored)


def no_objects(size: tuple[int, ...], ignored: Tensor | None = None) -> Objects:
    """Return the objects of an image of ``size`` (H, W) that shows nothing."""
    height, width = size
    return Objects(ObjectMasks.of_planes((), (height, width)), torch.zeros(0, dtype=torch.int64), ignored)


def holds_ids(values: NDArray[Any], *, ignore_label: int | None = None) -> bool:
    """Tell whether mask values number instances: whether there are several above 0, the ignored one aside.

    Examples:
        >>> holds_ids(np.array([0, 7, 9])), holds_ids(np.array([0, 255, 255]))
        (True, False)
    """
    known = values[(values != 0) & (values != (0 if ignore_label is None else ignore_label))]
    return bool(known.size) and bool(known.min() != known.max())


def no_rows(shown: Objects) -> Objects:
    """Return the same image's objects without any."""
    none = no_objects(shown.masks.size, shown.ignored)
    return none if shown.object_ids is None else replace(none, object_ids=shown.object_ids[:0])


def join_objects(parts: Sequence[Objects]) -> Objects:
    """Join what several files show of one image: rows of one label become one, instances are numbered 1, 2, ... over all.

    Args:
        parts: At least one, of one size; either all of labels or all of instances.
    """
    labels = torch.cat([part.labels for part in parts])
    masks = ObjectMasks.join([part.masks for part in parts])
    ignored = [part.ignored for part in parts if part.ignored is not None]
    unknown = torch.stack(ignored).any(dim=0) if ignored else None
    if parts[0].object_ids is not None:
        return Objects(masks, labels, unknown, torch.arange(1, len(labels) + 1))
    present = torch.unique(labels)
    rows = (masks.rows(labels == label).union() for label in present)
    return Objects(ObjectMasks.of_planes(rows, masks.size), present, unknown)


def find_instances(
    values: NDArray[Any], labels: Mapping[str, Sequence[int]] | None, *, ids: bool, ignore_label: int | None = None
) -> Objects:
    """Split mask values (H, W) into one row for each instance.

    Args:
        values: Integer mask values; 0 is background.
        labels: Values of each named group, whose 8-connected pieces are the instances; None where values name no classes.
        ids: Without ``labels``: whether each value is an instance, all of label 1; else the pieces of what is not 0 are.
        ignore_label: Value of pixels that nobody annotated.

    Examples:
        >>> touching = np.array([[4, 4, 9, 9]])
        >>> [len(find_instances(touching, None, ids=ids).labels) for ids in (True, False)]
        [2, 1]
    """
    if labels is None and ids:
        shown = find_objects(values, None, ignore_label=ignore_label)
        return Objects(shown.masks, torch.ones_like(shown.labels), shown.ignored, shown.labels)
    known = np.where(values == ignore_label, 0, values)
    shown = find_objects(values, labels or {"object": present_values(known[known != 0]).tolist()}, ignore_label=ignore_label)
    return cut_into_pieces(shown)


def cut_into_pieces(shown: Objects) -> Objects:
    """Return one row for each 8-connected piece of each row, numbered 1, 2, ... over the image."""
    pieces = [connected_pieces(mask) for mask in shown.masks]
    if not pieces:
        return Objects(shown.masks, shown.labels, shown.ignored, shown.labels)
    counts = torch.tensor([len(rows) for rows in pieces])
    numbers = torch.arange(1, int(counts.sum()) + 1)
    return Objects(ObjectMasks.join(pieces), shown.labels.repeat_interleave(counts), shown.ignored, numbers)
