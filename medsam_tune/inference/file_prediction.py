"""Ask a model about files: single images and whole volumes, each answered in its own format on its own voxels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from medsam_tune.data.formats import Format, NiftiFormat, NpzFormat, RasterFormat
from medsam_tune.data.formats.raster import read_pixels
from medsam_tune.data.intensity import Intensity, default_intensity
from medsam_tune.data.pairing import first_names
from medsam_tune.data.scan import scan_folder
from medsam_tune.data.slices import Axis
from medsam_tune.data.volumes import VolumeSource
from medsam_tune.errors import DataError, MedsamTuneError, RecipeError
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.prompt_files import DrawnObject, number_labels
from medsam_tune.inference.writers import MaskWriter, PngWriter, VolumeWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMATS: tuple[Format, ...] = (NiftiFormat(), NpzFormat(), RasterFormat())


@dataclass(frozen=True)
class ReadingRule:
    """State how files are read, as those of the training were.

    Attributes:
        axis: Along which volumes are cut.
        intensity: How stored values become 0..255; None: 8 bit as stored, all others by percentiles.
        of_volumes: Whether the rule was made for volumes: then an 8-bit image is taken as it is.
    """

    axis: Axis = "axial"
    intensity: Intensity | None = None
    of_volumes: bool = False

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> ReadingRule:
        """Return the rule of an export's description of its data.

        Raises:
            DataError: If the description is damaged.
        """
        try:
            rule = data.get("intensity")
            intensity = Intensity(**_with_pairs(rule)) if isinstance(rule, Mapping) else None
            # Refuses an axis that is none.
            axis = VolumeSource(FORMATS[0], axis=cast(Axis, data.get("axis", "axial"))).axis
        except (TypeError, RecipeError) as error:
            raise DataError(f"export.json: its data have no rule that can be read ({error}). Export the run again.") from error
        return cls(axis, intensity, "format" in data)


@dataclass(frozen=True)
class NewFile:
    """Hold one file that is asked about: its path, its name in the output, and who reads it."""

    path: Path
    name: str
    format: Format


@dataclass(frozen=True)
class Outcome:
    """Hold what became of one file: the mask that was written, or why there is none."""

    file: NewFile
    written: Path | None = None
    fault: str = ""


@dataclass(frozen=True)
class _Asking:
    """Hold what is the same for every file: the model, where masks go, how files are read, the number of each label."""

    predictor: Predictor
    out: Path
    rule: ReadingRule
    numbers: Mapping[str, int]


def find_files(place: Path, *, without: Path | None = None) -> list[NewFile]:
    """Return the images and volumes at a place: one file, or a folder with all below it.

    A folder that has ``images`` below it, as for training, is read there.

    Args:
        place: The file or folder.
        without: A folder that does not count, such as that of the answers.

    Raises:
        DataError: If nothing is there, or two files would have one name.
    """
    folder = place.parent if place.is_file() else place / "images" if (place / "images").is_dir() else place
    if not place.exists():
        raise DataError(f"{place}: no such file or folder. Give an image, a volume, or a folder of them.")
    endings = tuple(ending for each in FORMATS for ending in each.endings)
    found = [place] if place.is_file() else scan_folder(folder, endings).files
    kept = [path for path in found if without is None or not path.resolve().is_relative_to(without.resolve())]
    files = [NewFile(path, read.name_of(path, folder), read) for path in kept if (read := _format_of(path)) is not None]
    if not files:
        raise DataError(f"{place}: holds no file with one of the endings {', '.join(endings)}. Give images or volumes.")
    names = [(type(file.format), file.name) for file in files]
    twice = sorted({name for kind, name in names if names.count((kind, name)) > 1})
    if twice:
        raise DataError(f"{place}: {first_names(twice)}: several files of that name would have one mask file. Rename them.")
    return files


def match_prompts(files: Sequence[NewFile], drawn: Iterable[DrawnObject], source: Path) -> dict[Path, list[DrawnObject]]:
    """Return what was drawn for each file; a name is that of the file, its path below the folder, with or without ending.

    Raises:
        DataError: If a name belongs to no file, or to several.
    """
    places: dict[str, set[Path]] = {}
    for file in files:
        below = file.path.as_posix()[-len(file.name) - _ending_length(file) :]
        for name in (below, file.name, file.path.name, Path(file.name).name, str(file.path)):
            places.setdefault(name, set()).add(file.path)
    found: dict[Path, list[DrawnObject]] = {}
    unknown: list[str] = []
    for each in drawn:
        paths = places.get(each.image, set())
        if len(paths) == 1:
            found.setdefault(next(iter(paths)), []).append(each)
        else:
            unknown.append(each.image)
    if unknown:
        raise DataError(
            f"{source}: {len(set(unknown))} names belong to no file, or to several: {first_names(sorted(set(unknown)))}. "
            "Write the file's path below the input folder."
        )
    return found


def check_asked(predictor: Predictor, *, prompted: bool) -> None:
    """Refuse a model that needs what it is not given, before any file is read.

    Raises:
        RecipeError: Saying what to give.
    """
    segmenter = predictor.segmenter
    if segmenter.reads_priors():
        raise RecipeError(
            "model.fusion: reads automatic masks of each image, which this command does not make. "
            "Use `medsam-tune predict --config RUN/config.yaml --ckpt_path=RUN/checkpoints/best.ckpt --data.root=DIR`."
        )
    if prompted and not segmenter.takes_prompts():
        raise RecipeError(f"--boxes, --points: {type(segmenter).__name__} takes no prompt. Leave them out.")
    if not prompted and segmenter.asks_user() is not None:
        raise RecipeError(
            f"--boxes: is not given, and the model was asked with {segmenter.asks_user()} in training, which reads true masks. "
            "Give --boxes FILE or --points FILE for the new images."
        )


def names_of_numbers(predictor: Predictor, prompts: Mapping[Path, Sequence[DrawnObject]] | None) -> dict[int, str]:
    """Return what each number of a written mask is called; empty where there is one kind of object."""
    if classes := predictor.segmenter.classes():
        return dict(enumerate(classes, start=1))
    numbers = number_labels(each for drawn in (prompts or {}).values() for each in drawn)
    return {number: name for name, number in numbers.items()}


def predict_files(
    predictor: Predictor,
    files: Iterable[NewFile],
    out: Path,
    rule: ReadingRule,
    prompts: Mapping[Path, Sequence[DrawnObject]] | None = None,
) -> Iterator[Outcome]:
    """Ask about each file and write its mask below ``out``; a file that cannot be used is an outcome, not an end.

    Objects are 255 in an image and 1 in a volume; classes and labelled objects have their numbers, and where two objects
    overlap the later one counts. Of a prompted model, slices for which nothing was drawn stay empty.

    Args:
        predictor: The model.
        files: From ``find_files``.
        out: The folder of the masks.
        rule: How files are read.
        prompts: From ``match_prompts``; None asks without prompts.
    """
    asking = _Asking(predictor, out, rule, number_labels(each for drawn in (prompts or {}).values() for each in drawn))
    for file in files:
        drawn = None if prompts is None else prompts.get(file.path, [])
        if drawn == []:
            yield Outcome(file, fault=f"{file.path}: nothing was drawn for it. Add it to the file of the prompts.")
            continue
        try:
            ask = _predict_image if isinstance(file.format, RasterFormat) else _predict_volume
            yield Outcome(file, ask(asking, file, drawn))
        except (MedsamTuneError, ValueError) as error:
            said = str(error)
            yield Outcome(file, fault=said if said.startswith(str(file.path)) else f"{file.path}: {said}")


def _predict_image(asking: _Asking, file: NewFile, drawn: Sequence[DrawnObject] | None) -> Path:
    values = read_pixels(file.path)
    as_it_is = asking.rule.intensity is None or (asking.rule.of_volumes and values.dtype == np.uint8)
    asking.predictor.set_image(values, intensity=default_intensity(values) if as_it_is else asking.rule.intensity)
    header = file.format.read_header(file.path)
    column_mm, row_mm, _ = header.voxel_mm
    writer: MaskWriter = PngWriter(asking.out)
    writer.add(file.name, file.name, _mask(asking, drawn), spacing_mm=(row_mm, column_mm))
    return writer.finish()[0]


def _predict_volume(asking: _Asking, file: NewFile, drawn: Sequence[DrawnObject] | None) -> Path:
    source = VolumeSource(file.format, axis=asking.rule.axis, intensity=asking.rule.intensity)
    source.open_images({file.name: file.path})
    _check_slices(file, drawn or (), len(source))
    writer = VolumeWriter(asking.out, source)
    for index, image_id in enumerate(source.image_ids()):
        here = None if drawn is None else [each for each in drawn if each.slice in (None, index)]
        if here == []:
            continue
        asking.predictor.set_image(source[index].image.permute(1, 2, 0).numpy().astype(np.uint8))
        writer.add(image_id, file.name, _mask(asking, here))
    return writer.finish()[0]


def _mask(asking: _Asking, drawn: Sequence[DrawnObject] | None) -> NDArray[Any]:
    """Return (H, W): bool of one object, or whole numbers where classes or labels tell several apart."""
    predictor, numbers = asking.predictor, asking.numbers
    if classes := predictor.segmenter.classes():
        return _numbered(_class_masks(predictor, drawn), range(1, len(classes) + 1))
    if drawn is None:
        whole: NDArray[Any] = predictor.predict()[0][0]
        return whole
    masks = [_object_mask(predictor, each) for each in drawn]
    return _numbered(masks, [numbers[each.label] for each in drawn]) if numbers else np.any(masks, axis=0)


def _class_masks(predictor: Predictor, drawn: Sequence[DrawnObject] | None) -> NDArray[Any]:
    if drawn is not None and len(drawn) > 1:
        raise ValueError(f"a model with classes is asked once an image, got {len(drawn)} prompts. Keep one.")
    return predictor.predict(**({} if drawn is None else _arguments(drawn[0])))[0]


def _object_mask(predictor: Predictor, drawn: DrawnObject) -> NDArray[Any]:
    mask: NDArray[Any] = predictor.predict(**_arguments(drawn))[0][0]
    return mask


def _arguments(drawn: DrawnObject) -> dict[str, Any]:
    if drawn.box is not None:
        return {"box": drawn.box}
    return {"point_coords": [point[:2] for point in drawn.points], "point_labels": [point[2] for point in drawn.points]}


def _numbered(masks: Iterable[NDArray[Any]], numbers: Iterable[int]) -> NDArray[Any]:
    values: NDArray[Any] | None = None
    for mask, number in zip(masks, numbers, strict=True):
        values = np.zeros(mask.shape, np.int32) if values is None else values
        values[mask.astype(bool)] = number
    if values is None:
        raise ValueError("there is nothing to number.")
    return values


def _check_slices(file: NewFile, drawn: Iterable[DrawnObject], length: int) -> None:
    beyond = sorted({each.slice for each in drawn if each.slice is not None and not 0 <= each.slice < length})
    if beyond:
        raise DataError(f"{file.path}: has the slices 0 to {length - 1}, the prompts name {beyond}. Correct the column slice.")


def _format_of(path: Path) -> Format | None:
    return next((each for each in FORMATS if path.name.lower().endswith(each.endings)), None)


def _ending_length(file: NewFile) -> int:
    return max(len(ending) for ending in file.format.endings if file.path.name.lower().endswith(ending))


def _with_pairs(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in rule.items()}
