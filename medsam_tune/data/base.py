"""The seam of where images and masks come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from medsam_tune.data.labels import Objects, find_instances, find_objects, holds_ids
from medsam_tune.data.targets import Target, apply_target
from medsam_tune.errors import DataError, RecipeError, data_error
from medsam_tune.samples import Sample

Purpose = Literal["train", "evaluate", "predict"]


@dataclass(frozen=True)
class VoxelSize:
    """Hold the size that a file gives its pixels.

    Attributes:
        row_mm: Distance of two rows.
        column_mm: Distance of two columns.
        slice_mm: Distance of two slices of the volume; None for an image that stands alone.
    """

    row_mm: float
    column_mm: float
    slice_mm: float | None = None


class SegmentationSource(ABC):
    """List the 2-D images of a folder and read them one by one.

    The constructor only stores settings, so a recipe can name a source before any data is there; ``open`` scans the folder.
    An item's masks hold one row for each label that is present; what one object is (``data.target``) is decided later, but for
    instances: what tells two of them apart is in the files alone.

    Attributes:
        ignore_label: The mask value of pixels that nobody annotated (``data.ignore_label``), set before ``open``.
        target: What one object is (``data.target``), set before ``open``. Under ``per_instance`` a source that knows instances
            gives each its row and number (``Sample.object_ids``); the rows of one that does not are cut into pieces.
        inverted: Whether what is 0 in a mask is the object (``data.inverted_masks``), see ``invert_masks``.
    """

    ignore_label: int | None = None
    target: Target = "binary"
    inverted: bool = False

    @abstractmethod
    def open(self, root: Path, *, require_masks: bool = True) -> None:
        """Scan and validate a folder; the source can be indexed afterwards.

        Args:
            root: The folder that holds the images and masks.
            require_masks: Refuse an image without a mask. False is for prediction: masks are left out where none are found.

        Raises:
            DataError: If the folder is missing, names do not pair, or sizes and spacings differ.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one item.

        Raises:
            DataError: If a file cannot be read or its content breaks the source's rules; the message begins with its path.
        """

    @abstractmethod
    def case_ids(self) -> tuple[str, ...]:
        """Return the case of each item: what a metric and an output file are for."""

    @abstractmethod
    def image_ids(self) -> tuple[str, ...]:
        """Return the unique name of each item."""

    @abstractmethod
    def label_names(self) -> dict[int, str]:
        """Return the name of each label; may read every mask once where the settings do not name them."""

    def named_labels(self) -> dict[int, str]:
        """Return the names that the recipe gives its labels, without reading a file; none by default."""
        return {}

    def label_values(self) -> dict[int, list[int]]:
        """Return the stored mask values of each label; a label without an entry is its own value."""
        return {}

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return what a report says about the data: folder, rules and counts, as JSON values."""

    def use_colours(self, colours: Mapping[str, Sequence[int]]) -> None:
        """Read masks by the colours of their pixels (``data.colours``); called before ``open``.

        Raises:
            RecipeError: If the table is none, or, by default, because a source reads no colours.
        """
        raise RecipeError(f"data.colours: {type(self).__name__} reads numbers, no colours. Use ImageFolder, or leave it out.")

    def invert_masks(self) -> None:
        """Take what is 0 in a mask as the object (``data.inverted_masks``); called before ``open``.

        Raises:
            RecipeError: By default, because a source does not offer it.
        """
        raise RecipeError(
            f"data.inverted_masks: {type(self).__name__} reads masks as they are. Use ImageFolder, or invert the files."
        )

    def objects_of(
        self, values: NDArray[Any], labels: Mapping[str, Sequence[int]] | None, *, ids: bool | None = None
    ) -> Objects:
        """Split mask values (H, W) into the rows of an item, by ``target`` and ``ignore_label``.

        Args:
            values: Integer mask values; 0 is background.
            labels: Values of each named group, or None: each value is its own label, or its own instance.
            ids: Whether values number instances; by default where there are several.
        """
        if self.target != "per_instance":
            return find_objects(values, labels, ignore_label=self.ignore_label)
        several = holds_ids(values, ignore_label=self.ignore_label) if ids is None else ids
        return find_instances(values, labels, ids=several, ignore_label=self.ignore_label)

    def select(self, indices: Sequence[int], purpose: Purpose) -> list[int]:
        """Narrow items to those meant for training, evaluation or prediction; all of them by default."""
        return list(indices)

    def patient_ids(self) -> tuple[str | None, ...]:
        """Return the patient that each item's file itself names, or None; what ``data.patient: header`` groups by."""
        return (None,) * len(self)

    def places(self) -> tuple[tuple[str, int], ...]:
        """Return the volume of each item and its position in it; by default each item is a volume of one slice."""
        return tuple((name, 0) for name in self.image_ids())

    def voxel_size(self, index: int) -> VoxelSize | None:
        """Return the size that an item's own file gives its pixels; None where it states none, as by default."""
        return None

    def size(self, index: int) -> tuple[int, int]:
        """Return (H, W) of an item; by default it is read for it."""
        height, width = self[index].image.shape[-2:]
        return int(height), int(width)

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the files that an item is read from; they are read again when their size or date changes."""
        return ()

    def case_files(self, indices: Sequence[int]) -> list[Path]:
        """Return the files of the items of one case, each once, in the order in which the case's checksum takes them."""
        return sorted({path for index in indices for path in self.files(index)})

    def check_case(self, indices: Sequence[int]) -> None:
        """Read the items of one case as training would, and raise whatever is wrong with them.

        Raises:
            DataError: If a file cannot be read or its content breaks the source's rules; every such item is listed.
        """
        faults: list[str] = []
        classes = tuple(self.named_labels()) if self.target == "per_class" else ()
        for index in indices:
            try:
                sample = self[index]
                if classes:
                    apply_target(sample, self.target, classes=classes)
            except DataError as error:
                faults.append(str(error))
        if faults:
            raise data_error(f"{len(faults)} of {len(indices)} images of a case cannot be used", faults)
