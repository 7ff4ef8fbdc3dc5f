"""DICOM as a format: a series of slices, a multi-frame file or a single picture is one image."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader, image_header
from medsam_tune.data.formats.dicom.pixels import header_window, read_values
from medsam_tune.data.formats.dicom.placing import check_frame_of_reference
from medsam_tune.data.formats.dicom.reading import ENDINGS, is_dicom, read_dataset, readable
from medsam_tune.data.formats.dicom.segmentation import check_place, own_grid, read_segmentation, read_segments
from medsam_tune.data.formats.dicom.segmentation_writing import write_segmentation
from medsam_tune.data.formats.dicom.slices import Series, Slice, read_slices
from medsam_tune.data.formats.dicom.sources import Patient
from medsam_tune.data.formats.dicom.stack import order_slices
from medsam_tune.data.formats.dicom.structures import beyond_image, read_regions, read_structures
from medsam_tune.data.formats.dicom.structures_writing import write_structures
from medsam_tune.data.formats.values import check_grey_values, exact_labels
from medsam_tune.data.scan import Scan, scan_folder
from medsam_tune.errors import DataError, DataWarning, RecipeError, data_error, usable_part


@dataclass(frozen=True)
class DicomHeader(VolumeHeader):
    """Hold what the headers of a series say.

    Attributes:
        slices: In the order in which they are stacked.
    """

    slices: tuple[Slice, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files of the series, each once."""
        return tuple(dict.fromkeys(each.path for each in self.slices))


class DicomFormat(Format):
    """Read DICOM series, enhanced multi-frame files and single pictures, whatever the names of the files.

    A series is the folder that it lies in; its slices are stacked by their position along the normal, never by name or number.
    A multi-frame file, or a picture without a place in space (an X-ray), is an image by itself. Masks are segmentations or
    structure sets, put onto the image by their geometry.

    Args:
        series: Which series counts where a folder holds several: its SeriesNumber, or a regular expression that is searched in
            SeriesDescription and SeriesInstanceUID.
        values: ``rescaled``: in the header's unit, such as HU; ``window``: 0..255 by the header's first window.
        fraction: Of a FRACTIONAL segmentation, the share of its largest value (a probability, or how much of the pixel is
            covered) from which on a pixel is object; it is said aloud.
        patient: Whether written objects hold name, id and dates of their source: ``left_out``, or ``copied``, as an archive
            needs it to file them.
    """

    endings = ENDINGS

    def __init__(
        self,
        series: int | str | None = None,
        values: Literal["rescaled", "window"] = "rescaled",
        patient: Patient = "left_out",
        fraction: float = 0.5,
    ) -> None:
        if values not in ("rescaled", "window") or patient not in ("left_out", "copied"):
            raise RecipeError(
                f"format: expected values rescaled or window and patient left_out or copied, got {values!r} and {patient!r}."
            )
        try:
            re.compile(str(series))
        except re.error as error:
            raise RecipeError(
                f"format.series: {series!r} is no number and no regular expression ({error}). Correct it."
            ) from error
        if not 0 < fraction <= 1:
            raise RecipeError(f"format.fraction: expected a share above 0, at most 1, got {fraction}.")
        self.series, self.values, self.patient, self.fraction = series, values, patient, fraction

    def find(self, folder: Path) -> Scan:
        """Find the folders of series, and the files that are images by themselves.

        Raises:
            DataError: If a file cannot be read, or several series lie in one folder and none is chosen.
        """
        dicoms, others = _dicom_files(folder)
        by_folder: dict[Path, list[Slice]] = {}
        alone: list[Slice] = []
        for path in dicoms:
            slices = read_slices(path)
            if slices and _stands_alone(slices):
                alone += slices[:1] if self._is_chosen(slices[0].series) else []
            elif slices:
                by_folder.setdefault(path.parent, []).extend(slices)
        faults: list[str] = []
        for place, slices in by_folder.items():
            try:
                self._choose(slices, place)
            except DataError as error:
                faults.append(str(error))
        if faults:
            raise data_error(f"{folder}: {len(faults)} folders cannot be used", faults)
        # A slice that lost its place is no picture: its series is refused when it is read.
        stacked = {(place, each.series.uid) for place, slices in by_folder.items() for each in slices}
        pictures = [each.path for each in alone if each.frames > 1 or (each.path.parent, each.series.uid) not in stacked]
        return Scan(sorted([*by_folder, *pictures]), others)

    def name_of(self, path: Path, folder: Path) -> str:
        """Return the path below ``folder``; a series that is ``folder`` itself has its name."""
        return super().name_of(path, folder) if path != folder else folder.name

    def read_header(self, path: Path) -> DicomHeader:
        """Read the headers of all slices and put them in order.

        Raises:
            DataError: If the slices are no even stack; the message names the file and the gap.
        """
        slices = self._slices(path)
        first = slices[0]
        patient = first.series.patient_id
        if not first.lies_in_space and len(slices) == 1:
            flat = image_header(path, first.size, first.spacing_mm)
            return DicomHeader(path, flat.stored_shape, flat.affine, False, patient, flat.states_spacing, slices=tuple(slices))
        if not first.lies_in_space:
            raise DataError(
                f"{path}: holds {len(slices)} frames without a place in space, such as a film. Save the frames that you need "
                "as single images."
            )
        ordered, affine = order_slices(slices, path)
        return DicomHeader(path, (len(ordered), *first.size), affine, patient_id=patient, slices=tuple(ordered))

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read (D, H, W) in the header's unit, or as grey levels of the header's window."""
        slices = self.read_header(path).slices
        values = check_grey_values(read_values(slices), path)
        if self.values == "rescaled" or values.ndim == 4:
            return values
        low, high = header_window(slices)
        # The same rule as a recipe's window.
        scaled = (values.astype(np.float32) - low) * (255.0 / max(high - low, 1e-6))
        levels: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
        return levels

    def find_labels(self, folder: Path) -> Scan:
        """Find segmentations and structure sets; where there are none, series whose values are labels.

        Raises:
            DataError: If a file cannot be read.
        """
        dicoms, others = _dicom_files(folder)
        found = [path for path in dicoms if _kind(path)]
        return Scan(found, others) if found else self.find(folder)

    def image_names(self, masks: Sequence[Path], folder: Path, images: Mapping[str, Path]) -> dict[Path, str]:
        """Return the image that each file of masks refers to: a picture, or a series; else that of its or its folder's name."""
        by_uid: dict[str, str] = {}
        for name, path in images.items():
            if not _is_foreign(path):
                first = self._slices(path)[0]
                by_uid[_picture(first) or first.series.uid] = name
        names = {}
        for path in masks:
            own = self.name_of(path, folder)
            above = Path(own).parent.as_posix()
            stated = next((by_uid[uid] for uids in _references(path) for uid in uids if uid in by_uid), None)
            names[path] = stated or (above if own not in images and above in images else own)
        return names

    def read_label_header(self, path: Path) -> VolumeHeader:
        """Read the voxels that a segmentation's own frames span, or the header of a series of labels.

        Raises:
            DataError: If the file is a structure set, which has no voxels of its own.
        """
        kind = _kind(path)
        if kind == "RTSTRUCT":
            raise DataError(f"{path}: is a structure set, whose contours need the image that they were drawn on. Name both.")
        return own_grid(read_segmentation(path)) if kind == "SEG" else self.read_header(path)

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read a segmentation on the voxels of its own frames, or a series of labels."""
        if _kind(path):
            return self.read_labels_on(path, self.read_label_header(path))
        return exact_labels(read_values(self.read_header(path).slices), path)

    def check_labels(self, path: Path, image: VolumeHeader) -> bool:
        """Compare frame of reference and geometry with an image's; say which contours lie beyond it."""
        kind = _kind(path)
        if kind is None:
            return super().check_labels(path, image)
        _check_reference(path, image)
        if kind == "SEG":
            check_place(read_segmentation(path), image)
        elif beyond := beyond_image(read_structures(path), image):
            warnings.warn(
                f"{path}: {beyond} contours lie beyond the first or last slice of {image.path} and are left out.",
                DataWarning,
                stacklevel=2,
            )
        return True

    def read_labels_on(self, path: Path, image: VolumeHeader) -> NDArray[np.int32]:
        """Read segments or regions on the voxels of an image, never resampled."""
        kind = _kind(path)
        if kind is None:
            return super().read_labels_on(path, image)
        _check_reference(path, image)
        if kind != "SEG":
            return read_regions(read_structures(path), image)
        return read_segments(read_segmentation(path), image, self.fraction)

    def read_label_names(self, path: Path) -> dict[int, str]:
        """Return SegmentLabel or ROIName of each number; say from which share on a fraction counts as object."""
        kind = _kind(path)
        if kind is None:
            return {}
        if kind != "SEG":
            return read_structures(path).names
        found = read_segmentation(path)
        if found.kind == "FRACTIONAL":
            # Here and not where pixels are read, which many processes do, again and again.
            warnings.warn(
                f"{path}: is a FRACTIONAL segmentation; pixels of {self.fraction:g} of its largest value {found.largest} and "
                "more are taken as object. DicomFormat's fraction says another share.",
                DataWarning,
                stacklevel=2,
            )
        return found.names

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.dcm``, an object that refers to the slices of its series.

        Raises:
            DataError: If the image is no DICOM series.
        """
        return self._write(stem.with_name(f"{stem.name}.dcm"), labels, header, names)

    def _write(self, path: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None) -> Path:
        return write_segmentation(path, labels, source_slices(header), names, self.patient)

    def _slices(self, path: Path) -> list[Slice]:
        """Read the planes at a place: all of a file, those of the chosen series of a folder."""
        if not path.exists():
            raise DataError(f"{path}: no such file or folder. Name a series.")
        if path.is_dir():
            found = [each for file in _dicom_files(path, below=False)[0] for each in read_slices(file)]
            chosen = self._choose([each for each in found if not _stands_alone([each])] or found, path)
            _check_none_lost(chosen, found, path)
            return chosen
        slices = read_slices(path)
        if not slices:
            raise DataError(f"{path}: holds no image (a segmentation, a plan or a report). Remove it, or name the series.")
        return slices

    def _choose(self, slices: Iterable[Slice], place: Path) -> list[Slice]:
        by_uid: dict[str, list[Slice]] = {}
        for each in slices:
            by_uid.setdefault(each.series.uid, []).append(each)
        chosen = {uid: found for uid, found in by_uid.items() if self._is_chosen(found[0].series)}
        if len(chosen) == 1:
            return next(iter(chosen.values()))
        if not by_uid:
            raise DataError(f"{place}: holds no DICOM image. Name the folder of a series.")
        shown = "; ".join(_told(found) for found in by_uid.values())
        raise DataError(
            f"{place}: holds {len(by_uid)} series, of which series {self.series} chooses {len(chosen)}: {shown}. Set "
            "data.source.format.init_args.series to the number of one, or move each to a folder of its own."
        )

    def _is_chosen(self, series: Series) -> bool:
        if self.series is None:
            return True
        if isinstance(self.series, int) or self.series.isdigit():
            return series.number == int(self.series)
        return any(re.search(self.series, text) for text in (series.description, series.uid))


class DicomStructures(DicomFormat):
    """Read as ``DicomFormat`` does, and write masks as RT structure sets."""

    def _write(self, path: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None) -> Path:
        return write_structures(path, labels, header.affine, source_slices(header), names, self.patient)


def source_slices(header: VolumeHeader) -> tuple[Slice, ...]:
    """Return the slices of a DICOM image, which a DICOM object must refer to.

    Raises:
        DataError: If the image is of another format.
    """
    if not isinstance(header, DicomHeader) or not header.slices:
        raise DataError(f"{header.path}: is no DICOM series, which a DICOM object would have to refer to. Write NIfTI instead.")
    return header.slices


def _dicom_files(folder: Path, *, below: bool = True) -> tuple[list[Path], list[Path]]:
    """Return the DICOM files of a folder, told by their content, and all other files."""
    faults: list[str] = []
    found = usable_part(lambda: scan_folder(folder, ENDINGS), faults)
    if faults:
        # Files are no images here, and a series may lack one.
        raise data_error(f"{folder}: {len(faults)} entries cannot be used", faults)
    files = [path for path in (*found.files, *found.others) if below or path.parent == folder]
    dicoms = sorted(path for path in files if path.is_file() and is_dicom(path))
    others = sorted(set(files) - set(dicoms))
    # An empty file beside slices was one of them.
    places = {path.parent for path in dicoms}
    foreign = [path for path in others if path in found.files or (path.parent in places and not path.stat().st_size)]
    if foreign:
        faults = [f"{path}: is no DICOM file (no DICM at byte 128). Replace or remove the file." for path in foreign]
        raise data_error(f"{folder}: {len(foreign)} files cannot be used", faults)
    return dicoms, others


def _is_foreign(path: Path) -> bool:
    """Tell whether an image is no DICOM file or folder, whose masks are DICOM all the same."""
    return path.is_file() and not is_dicom(path)


def _kind(path: Path) -> Literal["SEG", "RTSTRUCT"] | None:
    """Return what kind of masks a file holds, or None where it is a folder or an image."""
    if path.is_dir():
        return None
    modality = str(read_dataset(path, tags=("Modality",)).get("Modality", ""))
    return "SEG" if modality == "SEG" else "RTSTRUCT" if modality == "RTSTRUCT" else None


def _references(path: Path) -> tuple[list[str], list[str]]:
    """Return the UIDs of the slices or pictures, and of the series, that a file of masks says it belongs to."""
    if _kind(path) is None:
        return [], []
    dataset = read_dataset(path, tags=("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"))
    with readable(path):
        found = list(dataset.get("ReferencedSeriesSequence") or [])
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
            for study in frame.get("RTReferencedStudySequence") or []:
                found += list(study.get("RTReferencedSeriesSequence") or [])
        words = ("ReferencedInstanceSequence", "ContourImageSequence")
        slices = [each for item in found for word in words for each in item.get(word) or []]
        return [str(each.ReferencedSOPInstanceUID) for each in slices], [str(item.SeriesInstanceUID) for item in found]


def _picture(first: Slice) -> str | None:
    """Return the SOPInstanceUID of a picture without a place in space, which stands in no row with others of its series."""
    return first.uid if not first.lies_in_space and first.frames == 1 else None


def _check_reference(path: Path, image: VolumeHeader) -> None:
    if not isinstance(image, DicomHeader) or not image.slices:
        return
    dataset = read_dataset(path, tags=("FrameOfReferenceUID", "ReferencedFrameOfReferenceSequence"))
    with readable(path):
        frames = dataset.get("ReferencedFrameOfReferenceSequence") or [dataset]
        stated = [str(item.get("FrameOfReferenceUID") or "") for item in frames]
    first, (instances, all_series) = image.slices[0], _references(path)
    if (picture := _picture(first)) and instances and picture not in instances:
        raise DataError(f"{path}: was drawn on another picture than {image.path}. Give each picture its own masks.")
    series = first.series
    matching = series.frame_of_reference if series.frame_of_reference in stated else stated[0]
    named = series.uid in all_series
    check_frame_of_reference(path, matching, series.frame_of_reference, names_series=named)


def _stands_alone(slices: Sequence[Slice]) -> bool:
    """Tell whether the planes of one file are an image by themselves."""
    return slices[0].frames > 1 or not slices[0].lies_in_space


def _check_none_lost(chosen: Sequence[Slice], others: Iterable[Slice], place: Path) -> None:
    """Refuse to leave a slice of a series out because its header does not say where it lies."""
    if not chosen[0].lies_in_space:
        return
    lost = next((each for each in others if each.series.uid == chosen[0].series.uid and not each.lies_in_space), None)
    if lost is not None:
        raise DataError(
            f"{lost.path}: states no position or orientation, but is of the series of {len(chosen)} slices in {place}. Repair "
            "its header, or move it out of the folder."
        )


def _told(slices: Sequence[Slice]) -> str:
    first = slices[0]
    number = "without a number" if first.series.number is None else f"number {first.series.number}"
    return (
        f"{number} ({first.series.modality}, {len(slices)} slice{'s' if len(slices) > 1 else ''} of "
        f"{first.size[0]} x {first.size[1]}, {first.path.name} ...)"
    )
