"""Objects that lie in the patient put onto the voxels of an image: matched by geometry, never resampled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import VolumeHeader
from medsam_tune.errors import DataError

# Part of a voxel by which headers may differ in where the same voxel lies.
_ROUNDING = 0.1


def check_frame_of_reference(path: Path, stated: str, image_frame: str, *, names_series: bool) -> None:
    """Refuse objects in other coordinates than the image's.

    Args:
        path: The file of the objects.
        stated: Its FrameOfReferenceUID, or an empty text.
        image_frame: The image's, or an empty text.
        names_series: Whether the file says that it belongs to this very series.

    Raises:
        DataError: If the two differ and the file does not name the image's series either.
    """
    if stated and image_frame and stated != image_frame and not names_series:
        raise DataError(
            f"{path}: lies in another frame of reference than the image (FrameOfReferenceUID), and does not name the image's "
            "series. Give each image the masks that were drawn on it."
        )


def place_plane(
    mask: NDArray[np.bool_], plane: NDArray[np.float64], image: VolumeHeader, path: Path, name: str
) -> NDArray[np.int64]:
    """Return where the pixels of a plane's mask lie in an image: indices into its flattened voxels.

    Args:
        mask: (H, W).
        plane: (4, 4), (anything, row, column) to RAS millimetres; its first column is not used.
        image: The image's header.
        path: The file of the mask.
        name: What the plane is called, for messages.

    Raises:
        DataError: If the pixels are not the image's, or lie outside.
    """
    onto = np.linalg.solve(image.affine, plane)[:3, 1:]
    whole = np.rint(onto)
    corners = np.array([[0, 0, 1], [mask.shape[0] - 1, mask.shape[1] - 1, 1]]).T
    off = float(np.abs((onto - whole) @ corners).max())
    if off > _ROUNDING or (np.abs(whole[:, :2]).sum(axis=0) != 1).any():
        raise DataError(
            f"{path}: {name} does not lie on the voxels of the image: off by {off:.2g} voxels at its corners. "
            "Resample the masks onto the image, or take the image that they were drawn on."
        )
    rows_columns = np.stack([*np.nonzero(mask), np.ones(int(mask.sum()), np.int64)])
    places = (whole @ rows_columns).astype(np.int64)
    lengths = np.array(image.stored_shape)[:, None]
    if ((places < 0) | (places >= lengths)).any():
        raise DataError(f"{path}: {name} has object pixels outside the image. Take the image that they were drawn on.")
    flat: NDArray[np.int64] = np.ravel_multi_index(tuple(places), image.stored_shape).astype(np.int64)
    return flat


def stack_layers(objects: Mapping[int, NDArray[np.int64]], shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Return a label map of ``shape``, with a last axis of layers where objects overlap.

    Args:
        objects: Label to indices into the flattened voxels.
        shape: The image's.

    Example:
        >>> stack_layers({1: np.array([0, 1]), 2: np.array([1, 2])}, (1, 1, 3)).tolist()
        [[[[1, 0], [1, 2], [0, 2]]]]
    """
    layers = [np.zeros(shape, np.int32)]
    for label, places in objects.items():
        free = next((layer for layer in layers if not layer.ravel()[places].any()), None)
        if free is None:
            free = np.zeros(shape, np.int32)
            layers.append(free)
        free.ravel()[places] = label
    return layers[0] if len(layers) == 1 else np.stack(layers, axis=-1)
