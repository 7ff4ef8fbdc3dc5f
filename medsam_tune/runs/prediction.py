"""Ask a model about files and leave masks, a table, a legend and pictures in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from medsam_tune import __version__
from medsam_tune.data.formats import FORMATS
from medsam_tune.data.formats.coco_writing import ENDING, JOINED, CocoFormat, join_files
from medsam_tune.data.names import file_name
from medsam_tune.data.pairing import first_names
from medsam_tune.data.stored_images import MOST_LOOKED_AT, StoredImages, evenly
from medsam_tune.errors import DataError, MedsamTuneError, RecipeError, memory_line, ran_out_of_memory
from medsam_tune.evaluation.answer_overlay import draw_answer
from medsam_tune.files import place_staged, sha256_of, staging, write_bytes, write_json
from medsam_tune.inference.answer_records import AnswerRecord, AnswerRecords, question_of
from medsam_tune.inference.case_figures import write_case_figures
from medsam_tune.inference.file_boxes import boxes_of_file, bring_boxes
from medsam_tune.inference.file_prediction import Answer, Asking, answer_file, check_asked
from medsam_tune.inference.label_values import Meaning, drawn_values
from medsam_tune.inference.mask_prompts import Prompts, prompts_of_masks
from medsam_tune.inference.new_files import NewFile, check_place, find_files, masks_in, match_prompts
from medsam_tune.inference.prompt_files import DrawnObject, read_prompts
from medsam_tune.inference.propagation import VolumePrompt, check_propagation, described
from medsam_tune.runs.asked_model import AskedModel

LEGEND, TABLE, OVERLAYS = "labels.json", "cases.csv", "overlays"
PROPAGATION = ".propagation.json"
PromptKind = Literal["boxes", "points", "masks"]


@dataclass(frozen=True)
class Wanted:
    """State what is wanted beside the masks.

    Attributes:
        overlays: Pictures of the masks on the images.
        uncertainty: How far the answers to moved prompts differ.
        overwrite: Ask again about files that were answered, and write over whatever stands in a mask's place.
        to: As what masks are written, a name of ``WRITERS``; None: as their images.
        keep_patient: Copy the patient of a DICOM image into the DICOM object of its masks.
    """

    overlays: bool = False
    uncertainty: bool = False
    overwrite: bool = False
    to: str | None = None
    keep_patient: bool = False


@dataclass(frozen=True)
class Outcome:
    """Hold what became of one file: its mask, whether it stood there already, or why there is none; and what else is to say."""

    file: NewFile
    written: Path | None = None
    stood: bool = False
    fault: str = ""
    note: str = ""


class PredictionJob:
    """Hold a model and the files it is asked about, all checked before anything is written.

    Args:
        model: The model; it moves to the GPU where there is one.
        place: An image, a volume, or a folder.
        out: The folder of the masks.
        drawn: A file of boxes or points, or the place of masks whose objects are asked for, and which of these it is. None asks
            without prompts, or with the boxes that the files themselves bring along where the model needs some.
        wanted: What is wanted beside the masks.
        volume_prompt: A box or clicks on one slice of the one volume, in place of ``drawn``: the object is followed through it.

    Attributes:
        files: What is asked about.
        left_out: Masks that lie among them in a folder, as in that of the training.
        differences: Where they differ so much from the training's that the model may fail on them.

    Raises:
        MedsamTuneError: If something cannot be used, or the model needs prompts that are not given.
    """

    def __init__(
        self,
        model: AskedModel,
        place: Path,
        out: Path,
        drawn: tuple[Path, PromptKind] | None = None,
        wanted: Wanted = Wanted(),
        *,
        volume_prompt: VolumePrompt | None = None,
    ) -> None:
        check_place(place, out)
        self.model, self.out, self.wanted = model, out, wanted
        self.left_out = masks_in(place, model.formats)
        self.files = find_files(place, model.formats, without=self.left_out, to=wanted.to, keep_patient=wanted.keep_patient)
        self._records = AnswerRecords(out)
        if volume_prompt is not None:
            self._check_followed(place)
        self._prompts, values = (None, {}) if volume_prompt is not None else self._find_prompts(drawn)
        check_asked(
            model.predictor,
            prompted=self._prompts is not None or volume_prompt is not None,
            untuned=model.is_untuned,
            uncertainty=wanted.uncertainty,
        )
        if torch.cuda.is_available():
            model.predictor.segmenter.to("cuda")
        self._asking = Asking(model.predictor, model.data, values, uncertainty=wanted.uncertainty, volume_prompt=volume_prompt)
        self._check_outputs()
        names = {file.name for file in self.files}
        kept = [each for each in self._records.all() if not (wanted.overwrite and each.case in names)]
        self.differences = self._compare()
        self._legend = {value: meaning for each in kept for value, meaning in each.legend.items()}

    def outcomes(self) -> Iterator[Outcome]:
        """Answer file after file; a file that cannot be used is an outcome, not an end. Table and legend come last."""
        self._asking = replace(self._asking, find_priors=self.model.prior_finder())
        try:
            for file in self.files:
                try:
                    yield self._outcome(file)
                except (MedsamTuneError, ValueError, MemoryError, RuntimeError) as error:
                    said = _said(error)
                    yield Outcome(file, fault=said if said.startswith(str(file.path)) else f"{file.path}: {said}")
        finally:
            self._write_tables()

    def _outcome(self, file: NewFile) -> Outcome:
        drawn = None if self._prompts is None else self._prompts(file)
        values = self._asking.values or drawn_values((each.label for each in drawn or ()), self.model.data.labels)
        question = self._question(file, drawn, values)
        known = None if self.wanted.overwrite else self._records.find(file.name)
        if known is not None and known.answers(self.model.identity, question) and known.stands(self.out):
            return Outcome(file, file.written(self.out), stood=True)
        self._check_free(file, known)
        answer = answer_file(replace(self._asking, values=values), file, drawn)
        self._check_legend(answer.legend)
        names = {value: meaning.name for value, meaning in answer.legend.items()}
        with staging(self.out) as staged:
            try:
                written = self._write_answer(staged, file, answer, names)
            except DataError as error:
                raise DataError(str(error).replace(str(staged), str(self.out))) from error
            checksums = {path.relative_to(staged).as_posix(): sha256_of(path) for path in written}
            # First the record: a mask that it does not know would count as somebody else's after a kill.
            self._records.keep(AnswerRecord(file.name, self.model.identity, question, checksums, answer.figures, answer.legend))
            placed = [place_staged(path, self.out) for path in written]
        followed = answer.propagated
        return Outcome(file, placed[0], note="" if followed is None else f"{file.name}: {followed.said()}")

    def _write_answer(self, folder: Path, file: NewFile, answer: Answer, names: Mapping[int, str]) -> list[Path]:
        """Write everything that answers one file below a folder, the mask first."""
        stem, header = folder / file_name(file.name), answer.slices.header
        if isinstance(file.writes, CocoFormat):
            written = [file.writes.write_objects(stem, answer.objects, header, names)]
        else:
            written = [file.writes.write_labels(stem, answer.volume, header, names)]
        if answer.propagated is not None and self._asking.volume_prompt is not None:
            record = described(answer.propagated, self._asking.volume_prompt)
            written.append(write_json(stem.with_name(f"{stem.name}{PROPAGATION}"), record))
        if self.wanted.overlays:
            written.append(write_bytes(folder / OVERLAYS / f"{file_name(file.name)}.png", draw_answer(answer)))
        return written

    def _question(self, file: NewFile, drawn: Sequence[DrawnObject] | None, values: Mapping[str, int]) -> str:
        asked = None if drawn is None else [asdict(each) for each in drawn]
        wanted = (self.wanted.overlays, self.wanted.uncertainty, self.wanted.to, self.wanted.keep_patient)
        inputs = [sha256_of(path) for path in file.format.read_header(file.path).files]
        prompt = self._asking.volume_prompt
        followed = () if prompt is None else (asdict(prompt),)
        return question_of(__version__, inputs, asked, dict(values), wanted, *followed)

    def _compare(self) -> list[str]:
        """Look at a few of the files; one that cannot be read has its fault when its turn comes."""
        data, looked = self.model.data, []
        if data.images is None:
            return []
        for file in evenly(self.files, MOST_LOOKED_AT):
            with suppress(DataError):
                looked.append(StoredImages.of(file.path, file.format, data.axis))
        new = StoredImages.joined(looked)
        by_percentiles = data.intensity is None or data.intensity.rule == "percentile"
        return [] if new is None else data.images.differences(new, by_percentiles=by_percentiles)

    def _overlay(self, file: NewFile) -> Path:
        return self.out / OVERLAYS / f"{file_name(file.name)}.png"

    def _find_prompts(self, drawn: tuple[Path, PromptKind] | None) -> tuple[Prompts | None, dict[str, int]]:
        """Return what is drawn on each file, and the value of each label where all are known beforehand."""
        data = self.model.data
        if drawn is None:
            needed = self.model.is_untuned or self.model.predictor.segmenter.asks_user() is not None
            return (partial(boxes_of_file, data=data), {}) if needed and bring_boxes(self.files) else (None, {})
        place, kind = drawn
        if kind == "masks":
            return prompts_of_masks(self.files, place, data, (*self.model.formats, *FORMATS)), {}
        objects = read_prompts(place, kind)
        found = match_prompts(self.files, objects, place)
        return partial(_drawn_on, found=found), drawn_values((each.label for each in objects), data.labels)

    def _check_followed(self, place: Path) -> None:
        """Refuse what no single prompt can be followed through.

        Raises:
            RecipeError: If there are several files, or something is wanted or asked that does not go with it.
        """
        check_propagation(self.model.predictor.segmenter)
        if len(self.files) > 1:
            raise RecipeError(
                f"--box-on-slice: {place} holds {len(self.files)} files, but a box is drawn on one. Name its file."
            )
        if self.wanted.uncertainty or (self.wanted.to or "").startswith("coco"):
            option = "--uncertainty" if self.wanted.uncertainty else f"--to {self.wanted.to}"
            raise RecipeError(f"{option}: is not there for an object that is followed through a volume. Leave it out.")

    def _check_outputs(self) -> None:
        """Refuse what would lose something, before any work.

        Raises:
            RecipeError: If a mask would stand where an input or a picture does, or beside masks of another model.
        """
        masks = {file.written(self.out).resolve(): file for file in self.files}
        inputs = {file.path.resolve() for file in self.files}
        if lost := sorted(str(file.path) for path, file in masks.items() if path in inputs):
            raise RecipeError(f"-o: the masks would stand in the place of {first_names(lost)}. Give another folder.")
        pictures = {self._overlay(file).resolve() for file in self.files} if self.wanted.overlays else set()
        if both := sorted(file.name for path, file in masks.items() if path in pictures):
            raise RecipeError(f"--overlays: picture and mask of {first_names(both)} would be one file. Rename that folder.")
        others = [] if self.wanted.overwrite else [each for each in self._records.all() if each.model != self.model.identity]
        if others:
            raise RecipeError(
                f"-o: {self.out} holds {len(others)} masks of another model. Give each model a folder of its own, or say "
                "--overwrite."
            )

    def _check_free(self, file: NewFile, known: AnswerRecord | None) -> None:
        """Refuse to write over a mask that is not the answer to this very question.

        Raises:
            DataError: Saying what stands there.
        """
        path = file.written(self.out)
        if self.wanted.overwrite or not path.exists() or (known is not None and known.was_cut_off(self.out)):
            return
        if known is None:
            what = "was not written by this command"
        elif known.stands(self.out):
            what = "answers another question: the input, its prompts or the options have changed"
        else:
            what = "was changed since it was written"
        raise DataError(f"{path}: stands there and {what}. Move it away, give another folder, or say --overwrite.")

    def _check_legend(self, legend: Mapping[int, Meaning]) -> None:
        """Refuse a number that means something else in another mask of the folder."""
        for value, meaning in legend.items():
            there = self._legend.setdefault(value, meaning)
            if there != meaning:
                raise DataError(
                    f"{self.out / LEGEND}: {value} is {there.name} in other masks there, here it is {meaning.name}. "
                    "Give another folder."
                )

    def _write_tables(self) -> None:
        records = sorted(self._records.all(), key=lambda record: record.case)
        if not records:
            return
        write_case_figures(self.out / TABLE, [figure for record in records for figure in record.figures])
        legend = {value: meaning for record in records for value, meaning in record.legend.items()}
        write_json(self.out / LEGEND, {str(value): legend[value].as_json() for value in sorted(legend)})
        described = {record.case: self.out / name for record in records for name in record.files if name.endswith(ENDING)}
        if (self.wanted.to or "").startswith("coco") and described:
            names = {file.name: f"{file.name}{file.path.suffix}" for file in self.files}
            join_files({names.get(case, case): path for case, path in described.items()}, self.out / JOINED)


def _drawn_on(file: NewFile, found: Mapping[Path, Sequence[DrawnObject]]) -> Sequence[DrawnObject]:
    if file.path not in found:
        raise DataError(f"{file.path}: nothing was drawn for it. Add it to the file of the prompts.")
    return found[file.path]


def _said(error: Exception) -> str:
    """Return what kept a file from being answered; what is no fault of the file goes further."""
    if isinstance(error, MedsamTuneError):
        return str(error)
    if ran_out_of_memory(error):
        return memory_line(error, "Cut it into tiles or reduce it, end what else takes memory, or use smaller weights.")
    if isinstance(error, RuntimeError):
        raise error
    return str(error)
