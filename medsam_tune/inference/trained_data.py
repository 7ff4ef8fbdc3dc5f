"""What a model knows of the data it was trained on, so that new files are read and answered likewise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from medsam_tune.data.formats import NiftiFormat
from medsam_tune.data.intensity import PERCENTILE, UNNAMED_RULE, Intensity
from medsam_tune.data.slices import Axis
from medsam_tune.data.stored_images import StoredImages
from medsam_tune.data.targets import Target
from medsam_tune.data.volumes import VolumeSource
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.precompute.prior_settings import PriorSettings


@dataclass(frozen=True)
class TrainedData:
    """State how the training data were read, and what was asked about them.

    Attributes:
        axis: Along which volumes are cut.
        intensity: How stored values become 0..255; None: 8 bit as stored, all others by percentiles.
        of_volumes: Whether the rule was made for volumes: then an 8-bit image is taken as it is.
        labels: Name to the values that the masks had for it, none where they told it by another name; empty where the recipe
            names no label.
        target: What one object was.
        mask_threshold: The value above which a mask's pixel was object, or None.
        priors: How automatic masks were found where the model fuses them into the image.
        images: What the stored images were like; None where the export does not say.
        chunk: Slices that travelled together.
        chunk_stride: Slices from one window of as many to the next.
        shows_neighbours: Whether a slice's neighbours were its colours.
    """

    axis: Axis = "axial"
    intensity: Intensity | None = None
    of_volumes: bool = False
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    target: Target = "per_label"
    mask_threshold: int | None = None
    priors: PriorSettings | None = None
    images: StoredImages | None = None
    chunk: int = 1
    chunk_stride: int = 1
    shows_neighbours: bool = False

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> TrainedData:
        """Return what an export's description says of its data.

        Raises:
            DataError: If the description is damaged.
        """
        try:
            labels, priors = data.get("labels"), data.get("priors")
            return cls(
                # Refuses an axis that is none.
                axis=VolumeSource(NiftiFormat(), axis=cast(Axis, data.get("axis", "axial"))).axis,
                intensity=_rule(data),
                of_volumes="format" in data,
                labels=_label_values(labels) if isinstance(labels, Mapping) else {},
                target=_target(data.get("target", "per_label")),
                mask_threshold=_whole(data.get("mask_threshold")),
                priors=PriorSettings(**_with_tuples(priors)) if isinstance(priors, Mapping) else None,
                images=StoredImages.read(data.get("stored_images")),
                chunk=_count(data, "chunk"),
                chunk_stride=_count(data, "chunk_stride"),
                shows_neighbours=data.get("shown") == "neighbours",
            )
        except (KeyError, TypeError, ValueError, IndexError, RecipeError) as error:
            raise DataError(f"export.json: its data cannot be read ({error}). Export the run again.") from error


def intensity_of(data: Mapping[str, Any]) -> Intensity | None:
    """Return how the values of one image that has not 8 bits became 0..255, by an export's description of its data.

    None where no rule is recorded, and where it was percentiles of whole volumes, which a slice alone does not know.

    Raises:
        DataError: If the description is damaged.
    """
    if data.get("intensity") == UNNAMED_RULE:
        return PERCENTILE
    try:
        rule = _rule(data)
    except (TypeError, ValueError, RecipeError) as error:
        raise DataError(f"export.json: its data cannot be read ({error}). Export the run again.") from error
    of_volume = rule is not None and rule.rule == "percentile" and "format" in data
    return None if of_volume else rule


def _rule(data: Mapping[str, Any]) -> Intensity | None:
    rule = data.get("intensity")
    return Intensity(**_with_tuples(rule)) if isinstance(rule, Mapping) else None


def tiles_of(data: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return size and overlap in pixels of the tiles that images were cut into, by an export's description of its data.

    Raises:
        DataError: If the description is damaged.
    """
    cut = data.get("tiles")
    if cut is None:
        return None
    size, overlap = (cut.get("size"), cut.get("overlap")) if isinstance(cut, Mapping) else (None, None)
    if type(size) is not int or type(overlap) is not int or not 0 <= overlap < size:
        raise DataError(f"export.json: tiles of {size!r} pixels that overlap by {overlap!r} are none. Export the run again.")
    return size, overlap


def _label_values(labels: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    # A file of masks may name its labels, and a recipe join them by these names.
    return {str(name): tuple(value for value in list(values) if type(value) is int) for name, values in labels.items()}


def _target(value: object) -> Target:
    if value not in get_args(Target):
        raise ValueError(f"target is {value!r}, expected one of {', '.join(get_args(Target))}")
    return cast(Target, value)


def _whole(value: object) -> int | None:
    if value is not None and type(value) is not int:
        raise ValueError(f"mask_threshold is {value!r}, expected a whole number")
    return value


def _count(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name, 1)
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")
    return value


def _with_tuples(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in rule.items()}
