"""What every form of an export shares: the tuned model it starts from, its record, and what cannot take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from medsam_tune.errors import CheckpointError
from medsam_tune.export.description import DESCRIPTION_FILE, read_description, read_object
from medsam_tune.export.load import Checkpoint, load_export
from medsam_tune.files import sha256_of
from medsam_tune.segmenters.base import Segmenter

FormName = Literal["adapter", "sam", "transformers", "onnx", "bundle"]
FORMS: tuple[FormName, ...] = get_args(FormName)
RECORD_FILE = "form.json"
RECORD_VERSION = 1


class CannotTakeForm(CheckpointError):
    """Report on writing that a network cannot take a form.

    Args:
        reason: Why.
        lost: The forms that this rules out.

    Attributes:
        lost: The forms that this rules out.
    """

    def __init__(self, reason: str, lost: tuple[FormName, ...]) -> None:
        super().__init__(reason)
        self.lost = lost


@dataclass(frozen=True)
class Tuned:
    """Hold a tuned network and what its export says of it.

    Attributes:
        folder: Its export folder, with ``export.json``.
        segmenter: In eval mode, on the CPU; writing a form may merge the tuner into it.
        description: ``export.json``.
        half: Whether what was trained is rounded to float16, and written so.
    """

    folder: Path
    segmenter: Segmenter
    description: Mapping[str, Any]
    half: bool = False


@dataclass(frozen=True)
class Written:
    """Hold what a form wrote.

    Attributes:
        loading: Lines of Markdown that say how the foreign tool loads it.
        facts: What the form's record says beside what all forms do, such as the registry key.
        figures: What was measured while it was written, by name.
    """

    loading: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


def read_tuned(
    folder: str | Path, *, checkpoint: Checkpoint | None = None, force: bool = False, trusted: bool = False
) -> Tuned:
    """Load the model of a run or of an export folder; arguments as in ``load_export``.

    Raises:
        CheckpointError: As ``load_export``.
        RecipeError: As ``load_export``.
    """
    folder = Path(folder).expanduser()
    inside = folder / "export"
    place = inside if (inside / DESCRIPTION_FILE).is_file() else folder
    predictor = load_export(place, checkpoint=checkpoint, force=force, trusted=trusted)
    return Tuned(place, predictor.segmenter, read_description(place))


def is_prompted(segmenter: Segmenter) -> bool:
    """Tell whether an export of the network is asked with prompts; one that labels pixels with classes is asked without."""
    return segmenter.takes_prompts() and not segmenter.classes()


def read_record(folder: Path) -> dict[str, Any]:
    """Read ``form.json`` and check the files it names against their checksums.

    Raises:
        CheckpointError: If there is none, it is damaged, of another version, or a file is missing or another one.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file. --verify takes a folder that `medsam-tune export RUN --to FORM` wrote, with FORM one of "
            f"{', '.join(FORMS)}."
        )
    record = read_object(path)
    files = record.get("files")
    if record.get("format_version") != RECORD_VERSION or record.get("form") not in FORMS or not isinstance(files, dict):
        raise CheckpointError(f"{path}: is no record that this version of medsam-tune reads. Export the run again.")
    for name, wanted in files.items():
        file = folder / str(name)
        if not file.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{path}: names {name}, which lies outside of the folder. Get the export again.")
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file, although {RECORD_FILE} names it. Copy the whole folder.")
        if sha256_of(file) != wanted:
            raise CheckpointError(f"{file}: is another file than the one that was exported. Copy it again, or export again.")
    return record
