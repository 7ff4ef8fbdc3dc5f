"""Boxes that an image's own file brings along, as MedSAM's npz files do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from medsam_tune.errors import DataError
from medsam_tune.inference.new_files import NewFile
from medsam_tune.inference.prompt_files import DrawnObject
from medsam_tune.inference.trained_data import TrainedData


def bring_boxes(files: Sequence[NewFile]) -> bool:
    """Tell whether any file brings boxes along; one that cannot be read has its fault when its turn comes."""
    for file in files:
        with suppress(DataError):
            if file.format.holds_boxes(file.path):
                return True
    return False


def boxes_of_file(file: NewFile, data: TrainedData) -> list[DrawnObject]:
    """Return the file's own boxes, labelled 1, 2, ... in their order, as the challenge of CVPR 2024 numbers its ``segs``.

    The box of a volume holds for every slice from its first to its last, both included.

    Args:
        file: Its format reads the boxes.
        data: What the model was trained on.

    Raises:
        DataError: If the boxes cannot be used, or the model cuts volumes along another axis than the boxes lie on.
    """
    header = file.format.read_header(file.path)
    boxes = file.format.read_boxes(file.path, header)
    if header.is_volume and data.axis != "axial":
        raise DataError(f"{file.path}: its boxes lie on axial slices, the model reads {data.axis} ones. Give --boxes FILE.")
    drawn = []
    for number, box in enumerate(boxes.tolist(), start=1):
        if not header.is_volume:
            drawn.append(DrawnObject(file.name, 0, str(number), box=(box[0], box[1], box[2], box[3])))
            continue
        last = min(math.floor(box[5]), header.stored_shape[0] - 1)
        drawn += [
            DrawnObject(file.name, position, str(number), box=(box[0], box[1], box[3], box[4]))
            for position in range(math.ceil(box[2]), last + 1)
        ]
    return drawn
