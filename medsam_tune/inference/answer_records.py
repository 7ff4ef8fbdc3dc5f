"""What was answered already: a small file beside the masks says which question each of them answers.

The question is a checksum over the model, the bytes of the input, what was drawn on it, and how it was read. So a call that was
cut off goes on where it stopped, and a mask that somebody corrected is never taken for the model's, nor written over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medsam_tune.data.names import file_name
from medsam_tune.errors import DataError
from medsam_tune.files import read_json, sha256_of, write_json
from medsam_tune.inference.case_figures import CaseFigure
from medsam_tune.inference.label_values import Meaning

FOLDER = ".answered"


@dataclass(frozen=True)
class AnswerRecord:
    """Hold what is known of a mask that was written.

    Attributes:
        case: The name of the file that was asked about.
        model: The identity of the model.
        question: Checksum of what was asked.
        files: Checksum of each file that answers it, by its path below the folder of the masks.
        figures: What was measured.
        legend: What each value of the mask means.
    """

    case: str
    model: str
    question: str
    files: Mapping[str, str]
    figures: Sequence[CaseFigure]
    legend: Mapping[int, Meaning]

    def answers(self, model: str, question: str) -> bool:
        """Tell whether it is this model's answer to this question."""
        return (self.model, self.question) == (model, question)

    def stands(self, out: Path) -> bool:
        """Tell whether all its files lie there unchanged."""
        return all((out / name).is_file() and sha256_of(out / name) == checksum for name, checksum in self.files.items())

    def was_cut_off(self, out: Path) -> bool:
        """Tell whether some of its files are missing and none was changed: its writer was killed before it placed all."""
        there = {out / name: checksum for name, checksum in self.files.items() if (out / name).is_file()}
        return len(there) < len(self.files) and all(sha256_of(path) == checksum for path, checksum in there.items())


class AnswerRecords:
    """Keep the records of a folder of masks, one file a case.

    Args:
        out: The folder of the masks.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def find(self, name: str) -> AnswerRecord | None:
        """Return the record of a case; None where there is none, or one that cannot be read."""
        path = self._path(name)
        try:
            return _record(read_json(path, "")) if path.is_file() else None
        except (DataError, KeyError, TypeError, ValueError):
            return None

    def keep(self, record: AnswerRecord) -> None:
        """Write the record of a case.

        Raises:
            DataError: If it cannot be written.
        """
        content = {
            "case": record.case,
            "model": record.model,
            "question": record.question,
            "files": dict(record.files),
            "figures": [asdict(figure) for figure in record.figures],
            "legend": {str(value): meaning.as_json() for value, meaning in record.legend.items()},
        }
        write_json(self._path(record.case), content)

    def all(self) -> Iterator[AnswerRecord]:
        """Yield the records of all cases whose files are still there, by name."""
        for path in sorted((self.out / FOLDER).rglob("*.json")):
            try:
                record = _record(read_json(path, ""))
            except (DataError, KeyError, TypeError, ValueError):
                continue
            if all((self.out / file).is_file() for file in record.files):
                yield record

    def _path(self, name: str) -> Path:
        path = self.out / FOLDER / file_name(name)
        return path.with_name(f"{path.name}.json")


def question_of(*facts: object) -> str:
    """Return the checksum of everything that an answer follows from; each fact is a JSON value."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _record(content: Mapping[str, Any]) -> AnswerRecord:
    return AnswerRecord(
        str(content["case"]),
        str(content["model"]),
        str(content["question"]),
        {str(name): str(checksum) for name, checksum in content["files"].items()},
        [CaseFigure(**figure) for figure in content["figures"]],
        {int(value): Meaning(entry["name"], tuple(entry.get("values", ()))) for value, entry in content["legend"].items()},
    )
