"""Ask the model of a run, or of an export that somebody sent, about files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medsam_tune.export.description import DESCRIPTION_FILE, read_description
from medsam_tune.export.load import load_export
from medsam_tune.files import write_json
from medsam_tune.inference.file_prediction import (
    NewFile,
    Outcome,
    ReadingRule,
    check_asked,
    find_files,
    match_prompts,
    names_of_numbers,
    predict_files,
)
from medsam_tune.inference.prompt_files import DrawnObject, Kind, read_prompts
from medsam_tune.runs.run import Run

if TYPE_CHECKING:
    from medsam_tune.inference.predictor import Predictor

LEGEND = "labels.json"


@dataclass(frozen=True)
class PredictionJob:
    """Hold a model and the files it is asked about, all checked.

    Attributes:
        predictor: The model, on the GPU where there is one.
        files: What is asked about.
        out: The folder of the masks.
        rule: How the files are read.
        prompts: What was drawn on each file; None asks without.
    """

    predictor: Predictor
    files: Sequence[NewFile]
    out: Path
    rule: ReadingRule
    prompts: Mapping[Path, Sequence[DrawnObject]] | None

    def outcomes(self) -> Iterator[Outcome]:
        """Predict file after file, and say last which number is which."""
        yield from predict_files(self.predictor, self.files, self.out, self.rule, self.prompts)
        if names := names_of_numbers(self.predictor, self.prompts):
            write_json(self.out / LEGEND, {str(number): {"name": name} for number, name in names.items()})


def prepare(
    folder: Path,
    place: Path,
    out: Path,
    drawn: tuple[Path, Kind] | None = None,
    *,
    checkpoint: str | None = None,
    trusted: bool = False,
) -> PredictionJob:
    """Load a model, find the files and read the prompts, before anything is written.

    Args:
        folder: A run, or an export folder.
        place: An image, a volume, or a folder.
        out: The folder of the masks.
        drawn: A file of prompts and what it holds, ``boxes`` or ``points``; None asks without prompts.
        checkpoint: Where the base weights lie if they are a file of your own.
        trusted: Import classes from outside ``medsam_tune`` that the folder names; that runs their code.

    Raises:
        MedsamTuneError: If one of them cannot be used, or the model needs prompts that are not given.
    """
    files = find_files(place, without=out)
    prompts = None if drawn is None else match_prompts(files, read_prompts(*drawn), drawn[0])
    if (folder / DESCRIPTION_FILE).is_file():
        predictor, export = load_export(folder, checkpoint=checkpoint, trusted=trusted), folder
    else:
        run = Run.open(folder, trusted=trusted)
        predictor, export = run.predictor(checkpoint=checkpoint, trusted=trusted), folder / "export"
    check_asked(predictor, prompted=prompts is not None)
    if torch.cuda.is_available():
        predictor.segmenter.to("cuda")
    rule = ReadingRule.of(read_description(export).get("data", {}))
    return PredictionJob(predictor, files, out, rule, prompts)
