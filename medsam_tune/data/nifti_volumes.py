"""NIfTI volumes in two folders: the layout of the Medical Segmentation Decathlon and of nnU-Net."""

from __future__ import annotations

from medsam_tune.data.formats.nifti import NiftiFormat
from medsam_tune.data.intensity import Intensity, check_percentiles, check_window
from medsam_tune.data.slices import ALL_SLICES, Axis, SliceRule
from medsam_tune.data.volumes import VolumeSource


class NiftiVolumes(VolumeSource):
    """Read volumes (.nii, .nii.gz) and show them as slices; one volume is one case.

    Args:
        images: Folder of the volumes, below the root; ``imagesTr`` in the Medical Segmentation Decathlon.
        masks: Folder of the label maps; ``labelsTr`` there.
        axis: The patient axis along which slices are cut.
        labels: Name to label values, or to the names of the files' classes; all others are background. Without it every value
            above 0 is a label of its own.
        window: Fixed lower and upper value of the grey window, such as (-160, 240) HU for soft tissue in CT.
        percentiles: Without a window: percentiles of each volume that become 0 and 255.
        slices: Which slices are evaluated (and trained on, unless ``train_slices`` says otherwise).
        train_slices: Which slices are trained on.
        predict_slices: Which slices of new volumes are predicted; all of them by default.
        mask_pattern: Regular expression searched in a mask's name; its brackets, joined by ``/``, are the name of its image,
            ``(?P<label>...)`` is the class that the file is for. Where ``masks`` is the folder of the images too, what matches
            is a mask.
        image_pattern: The same for the names of images, without which a name is the path of the file.
        exclude: Files that are left out: paths below the root, with or without ending, where ``*`` is any text.
        pairs: A table of images and masks (``data.pair_table``), below the root or absolute, in place of folders and patterns.
    """

    def __init__(
        self,
        images: str = "images",
        masks: str = "labels",
        axis: Axis = "axial",
        labels: dict[str, list[int]] | dict[str, list[int | str]] | None = None,
        window: tuple[float, float] | None = None,
        percentiles: tuple[float, float] = (0.5, 99.5),
        slices: SliceRule = ALL_SLICES,
        train_slices: SliceRule | None = None,
        predict_slices: SliceRule = ALL_SLICES,
        mask_pattern: str | None = None,
        image_pattern: str | None = None,
        exclude: list[str] | None = None,
        pairs: str | None = None,
    ) -> None:
        check_window(window, "data.source.window")
        check_percentiles(percentiles, "data.source.percentiles")
        rule = Intensity("window", window=window) if window else Intensity("percentile", percentiles=percentiles)
        super().__init__(
            NiftiFormat(),
            images,
            masks,
            axis,
            labels,
            rule,
            slices,
            train_slices,
            predict_slices,
            mask_pattern=mask_pattern,
            image_pattern=image_pattern,
            exclude=exclude,
            pairs=pairs,
        )
