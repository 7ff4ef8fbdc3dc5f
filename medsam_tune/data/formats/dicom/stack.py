"""Slices put in order along their normal; what would have to be guessed is refused by file and gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.dicom.slices import Slice
from medsam_tune.errors import DataError

# Headers round positions to a hundredth of a millimetre; a gap that differs by more than this part is another gap.
_ROUNDING_MM = 0.02
_SAME_GAP = 0.02
# A cosine is written with four decimals or more.
_SAME_DIRECTION = 1e-3
_SAME_PIXEL = 0.1
_TILT_DEGREES = 0.2
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def order_slices(slices: Sequence[Slice], place: Path) -> tuple[list[Slice], NDArray[np.float64]]:
    """Sort slices along the normal of their plane.

    Args:
        slices: Of one series, in any order, each with its place in space.
        place: The folder or file, for messages.

    Returns:
        The slices in ascending order along the normal, and the affine (4, 4) from (slice, row, column) to RAS millimetres.

    Raises:
        DataError: If the slices are no stack of equal, parallel and evenly spaced planes.
    """
    _check_alike(slices, place)
    first = slices[0]
    columns, rows = _unit_directions(first)
    normal = np.cross(columns, rows)
    along = np.array([_position(each) @ normal for each in slices])
    order = np.argsort(along, kind="stable")
    ordered = [slices[number] for number in order]
    step = _step(ordered, along[order], normal, place)
    if first.spacing_mm is None or min(first.spacing_mm) <= 0:
        raise DataError(f"{first.path}: states PixelSpacing {first.spacing_mm}, expected two sizes above 0. Repair the series.")
    between_rows, between_columns = first.spacing_mm
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, rows * between_rows, columns * between_columns], axis=1)
    affine[:3, 3] = _position(ordered[0])
    return ordered, _TO_RAS @ affine


def plane_affine(each: Slice) -> NDArray[np.float64]:
    """Return the affine (4, 4) of a single plane, (slice, row, column) to RAS millimetres."""
    return order_slices([each], each.path)[1]


def _check_alike(slices: Sequence[Slice], place: Path) -> None:
    first = slices[0]
    for each in slices:
        if "MOSAIC" in each.image_type:
            raise DataError(f"{each.path}: is a mosaic, a whole volume as one picture. Convert the series to NIfTI (dcm2niix).")
        if not each.lies_in_space:
            raise DataError(
                f"{each.path}: states no position or orientation ({each.name}), but is one of {len(slices)} slices. "
                f"Remove it from {place}, or repair the header."
            )
        if each.size != first.size or each.colour != first.colour:
            raise DataError(
                f"{each.path}: has {each.size[0]} x {each.size[1]} pixels{_in_colour(each)}, {first.name} of the same series "
                f"{first.size[0]} x {first.size[1]}{_in_colour(first)}. Move one of them out of {place}."
            )
        if not np.allclose(_directions(each), _directions(first), atol=_SAME_DIRECTION):
            raise DataError(
                f"{each.path}: lies in another plane than {first.name} of the same series. Move the slices of each plane to a "
                f"folder of their own."
            )
        if each.spacing_mm != first.spacing_mm and not np.allclose(each.spacing_mm or 0, first.spacing_mm or 0, rtol=1e-3):
            raise DataError(
                f"{each.path}: states PixelSpacing {each.spacing_mm}, {first.name} of the same series {first.spacing_mm}. "
                f"Move one of them out of {place}."
            )


def _step(
    ordered: Sequence[Slice], along: NDArray[np.float64], normal: NDArray[np.float64], place: Path
) -> NDArray[np.float64]:
    """Return the vector from one slice to the next, in mm."""
    if len(ordered) == 1:
        return normal * (ordered[0].thickness_mm or 1.0)
    gaps = np.diff(along)
    _check_gaps(ordered, gaps, place)
    step: NDArray[np.float64] = (_position(ordered[-1]) - _position(ordered[0])) / (len(ordered) - 1)
    upright = float(step @ normal)
    tilt = math.degrees(math.atan2(float(np.linalg.norm(step - upright * normal)), upright))
    if tilt > _TILT_DEGREES:
        raise DataError(
            f"{place}: its {len(ordered)} slices are shifted against each other, a gantry tilt of {tilt:.1f} degrees "
            f"({ordered[0].name} to {ordered[-1].name}). Resample the series to upright slices (dcm2niix does) and read that."
        )
    _check_line(ordered, step, place)
    return step


def _check_gaps(ordered: Sequence[Slice], gaps: NDArray[np.float64], place: Path) -> None:
    if (gaps < _ROUNDING_MM / 2).any():
        raise DataError(_same_place(ordered, gaps, place))
    usual = float(np.median(gaps))
    wrong = np.flatnonzero(np.abs(gaps - usual) > max(_SAME_GAP * usual, min(_ROUNDING_MM, usual / 4)))
    if not wrong.size:
        return
    number = int(wrong[np.argmax(gaps[wrong])])
    gap = float(gaps[number])
    missing = round(gap / usual) - 1
    whole = missing >= 1 and abs(gap / usual - missing - 1) < 0.1
    reason = f"{missing} slice{'s are' if missing > 1 else ' is'} missing there" if whole else "the slices are unevenly spaced"
    raise DataError(
        f"{place}: from {ordered[number].name} to {ordered[number + 1].name} are {gap:.4g} mm, between the other slices "
        f"{usual:.4g} mm ({len(wrong)} of {len(gaps)} gaps differ): {reason}. "
        + ("Restore the files." if whole else "Resample the series to even slices and read that.")
    )


def _same_place(ordered: Sequence[Slice], gaps: NDArray[np.float64], place: Path) -> str:
    twins = np.flatnonzero(gaps < _ROUNDING_MM / 2)
    first, second = ordered[twins[0]], ordered[twins[0] + 1]
    n_places = len(gaps) - len(twins) + 1
    if n_places == 1:
        return (
            f"{place}: all {len(ordered)} slices lie at one place ({first.name}, {second.name}, ...), so they are no volume. "
            "Give each a folder of its own, or restore their positions."
        )
    if len(ordered) % n_places == 0 and len(twins) == len(ordered) - n_places:
        per_place = len(ordered) // n_places
        runs = np.diff(np.flatnonzero(np.concatenate([[True], gaps >= _ROUNDING_MM / 2, [True]])))
        if (runs == per_place).all():
            return (
                f"{place}: holds {per_place} slices at each of {n_places} places ({first.name} and {second.name}, ...): time "
                "points, echoes or copies, so no volume of three axes. Give each of them a folder of its own."
            )
    copied = "is a copy of" if first.uid == second.uid else "lies at the same place as"
    return f"{second.path}: {copied} {first.name} ({len(twins)} slices of {place} are there twice). Remove one of each."


def _check_line(ordered: Sequence[Slice], step: NDArray[np.float64], place: Path) -> None:
    allowed = _SAME_PIXEL * min(ordered[0].spacing_mm or (1.0, 1.0)) + _ROUNDING_MM
    upright = step / np.linalg.norm(step)
    start = _position(ordered[0])
    for each in ordered:
        offset = _position(each) - start
        sideways = float(np.linalg.norm(offset - (offset @ upright) * upright))
        if sideways > allowed:
            raise DataError(
                f"{each.path}: is shifted sideways by {sideways:.3g} mm against the other slices of {place}. "
                "Remove it, or resample the series and read that."
            )


def _unit_directions(each: Slice) -> NDArray[np.float64]:
    directions = _directions(each)
    lengths = np.linalg.norm(directions, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(float(directions[0] @ directions[1])) > 0.01:
        raise DataError(
            f"{each.path}: ImageOrientationPatient {directions.round(4).ravel().tolist()} are no two unit vectors at right "
            "angles. Repair the header."
        )
    unit: NDArray[np.float64] = directions / lengths[:, None]
    return unit


def _position(each: Slice) -> NDArray[np.float64]:
    return np.zeros(3) if each.position_mm is None else each.position_mm


def _directions(each: Slice) -> NDArray[np.float64]:
    return np.zeros((2, 3)) if each.directions is None else each.directions


def _in_colour(each: Slice) -> str:
    return " in colour" if each.colour else ""
