"""What a pretraining leaves behind, and how a later training starts from it: weights, their history, and the files they saw.

``RUN/pretrained`` holds the whole network under SAM's own names, and ``pretraining.json``: of which weights it was made, by
which objectives, of which files. ``weights=RUN`` names both to any recipe. What was pretrained on must not be tested on: a test
part that holds one of these files is refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_tune import __version__
from medsam_tune.data.pairing import first_names
from medsam_tune.data.sample import data_folder
from medsam_tune.errors import CheckpointError, DataError, RecipeError
from medsam_tune.export.merge import merged_state
from medsam_tune.files import read_json, sha256_of, write_json, write_safetensors
from medsam_tune.folders import expand
from medsam_tune.tasks.pretraining import Pretraining

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.training.cli import MedsamCLI
    from medsam_tune.training.module import TuningModule

FOLDER, RECORD, WEIGHTS = "pretrained", "pretraining.json", "weights.safetensors"
_WORD = re.compile(r"--model\.backbone\.(?:init_args\.)?weights=(.+)")


def check_pretraining(module: TuningModule, data: SegmentationDataModule) -> None:
    """Refuse what would fail after hours: a tuner that cannot be merged into plain weights, or batches without negatives.

    Raises:
        RecipeError: Saying what to set.
    """
    if not isinstance(module.task, Pretraining):
        return
    module.task.check_batch(data.batch_size)
    try:
        merged_state(copy.deepcopy(module.segmenter))
    except CheckpointError as error:
        raise RecipeError(
            f"{error}. Pretraining ends in plain weights, so its tuner must merge: take LoRA, BiasTuning, or no tuner and "
            "model.backbone.trainable: [image_encoder]."
        ) from error


def write_pretrained(cli: MedsamCLI) -> Path | None:
    """Write the pretrained network and its record into the run; None where the run was no pretraining."""
    if not isinstance(cli.model.task, Pretraining):
        return None
    folder, base = cli.run_folder.path / FOLDER, cli.model.segmenter.base_weights()
    state = {name: tensor.contiguous() for name, tensor in merged_state(copy.deepcopy(cli.model.segmenter)).items()}
    write_safetensors(folder / WEIGHTS, state, {"format": "pt", "medsam_tune": __version__})
    before = pretraining_of(_checkpoint(cli))
    first = {} if base is None else {"name": base.name, "sha256": base.sha256}
    checksum = sha256_of(folder / WEIGHTS)
    record = {
        "medsam_tune": __version__,
        "weights": _named_weights(cli),
        "sha256": checksum,
        "chain": [*(before["chain"] if before else [first]), {"name": cli.run_folder.path.name, "sha256": checksum}],
        "objectives": cli.model.task.weights,
        "verdict": cli.results.summary.get("verdict"),
        "files": [*(before["files"] if before else []), *seen_files(cli.datamodule)],
    }
    return write_json(folder / RECORD, record)


def seen_files(data: SegmentationDataModule) -> list[dict[str, str]]:
    """Return path below the data folder and checksum of every file that trained or chose the weights."""
    cases = {*data.splits.train, *data.splits.val}
    root = data_folder(data.root)
    return [{"file": _below(path, root), "sha256": sha256_of(path)} for path in _files_of(data, cases)]


def pretrained_words(words: Sequence[str]) -> list[str]:
    """Return a command line in which ``weights=RUN`` of a pretraining is written out as its base weights and its file.

    Raises:
        RecipeError: If the folder holds no pretrained weights.
        CheckpointError: If they are not those that its record names.
    """
    return [each for word in words for each in _written_out(word)]


def pretraining_of(checkpoint: object) -> dict[str, Any] | None:
    """Return the record beside a file of weights that a pretraining wrote; None beside any other."""
    if not isinstance(checkpoint, (str, Path)) or not (path := Path(checkpoint).expanduser().parent / RECORD).is_file():
        return None
    record = read_json(path, "Run the pretraining again.")
    if not isinstance(record, Mapping) or not {"weights", "sha256", "chain", "files"} <= record.keys():
        raise CheckpointError(f"{path}: is no record of a pretraining. Run it again.")
    return dict(record)


def check_unseen(cli: MedsamCLI) -> dict[str, Any] | None:
    """Refuse a test part that holds a file which pretrained the weights; return what a run says of its pretraining.

    Raises:
        DataError: Naming the files.
    """
    record = pretraining_of(_checkpoint(cli))
    if record is None:
        return None
    seen = {entry["sha256"] for entry in record["files"]}
    root = data_folder(cli.datamodule.root)
    tested = set(cli.datamodule.splits.test)
    known = [_below(path, root) for path in _files_of(cli.datamodule, tested) if sha256_of(path) in seen]
    if known:
        files = "1 file" if len(known) == 1 else f"{len(known)} files"
        raise DataError(
            f"model.backbone.weights: was pretrained on {files} of the test part: {first_names(known)}. Their "
            "figures would say nothing about new patients. Pretrain without them (--data.split.file of this run, or "
            "data.source.exclude), or test others."
        )
    return {"chain": record["chain"], "objectives": record.get("objectives"), "n_files": len(record["files"])}


def keep_record(cli: MedsamCLI) -> None:
    """Write a copy of the pretraining's record, with its list of files, into the folder of a run that starts from it."""
    record = pretraining_of(_checkpoint(cli))
    if record is not None:
        write_json(cli.run_folder.path / RECORD, record)


def _written_out(word: str) -> list[str]:
    found = _WORD.fullmatch(word)
    if found is None:
        return [word]
    place = expand(found[1], "weights")
    if not place.is_dir():
        return [word]
    path = place / FOLDER / WEIGHTS
    record = pretraining_of(path)
    if record is None or not path.is_file():
        raise RecipeError(
            f"model.backbone.weights: {place} is a folder without {FOLDER}/{WEIGHTS}. Give the run of a pretraining that "
            "ended, or the name of weights."
        )
    if sha256_of(path) != record["sha256"]:
        raise CheckpointError(f"{path}: is not the file that {RECORD} names. Copy the run's folder again.")
    return [f"--model.backbone.weights={record['weights']}", f"--model.backbone.checkpoint={path.absolute()}"]


def _files_of(data: SegmentationDataModule, cases: set[str]) -> list[Path]:
    source = data.source
    return sorted({path for index, case in enumerate(source.case_ids()) if case in cases for path in source.files(index)})


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _checkpoint(cli: MedsamCLI) -> object:
    return _backbone(cli).get("checkpoint")


def _named_weights(cli: MedsamCLI) -> str:
    return str(_backbone(cli).get("weights") or "lite_medsam")


def _backbone(cli: MedsamCLI) -> Mapping[str, Any]:
    section = cli.config.as_dict() if cli.subcommand is None else cli.config[cli.subcommand].as_dict()
    backbone = (section.get("model") or {}).get("backbone") or {}
    return dict(backbone.get("init_args") or {})
