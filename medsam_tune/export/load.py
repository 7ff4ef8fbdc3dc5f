"""One line from an export folder to a predictor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from medsam_tune.backbone.fit import misfits
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.export.build import build_segmenter, names_own_file
from medsam_tune.export.description import DESCRIPTION_FILE
from medsam_tune.export.folder import CONFIG_FILE, TRAINED_FILE, ExportFolder
from medsam_tune.export.parts import ForeignClassError
from medsam_tune.export.trained import beside_adapter, frozen_identities, tuner_of
from medsam_tune.files import sha256_of
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.trained_data import intensity_of, tiles_of
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.yaml_files import read_yaml

_BASE = "backbone.checkpoint"
Checkpoint = str | Path | Mapping[str, str | Path]
"""A file of base weights, or several files by the key of the recipe that takes each."""


def load_export(
    folder: str | Path, *, checkpoint: Checkpoint | None = None, force: bool = False, trusted: bool = False
) -> Predictor:
    """Rebuild the model an export describes and load exactly what was trained.

    The description is read without being trusted: it may name classes only where a seam expects them, and no file that it
    names is opened.

    Args:
        folder: What ``save_export`` wrote.
        checkpoint: Where the base weights lie if they are a file of your own; the checksum must be that of the training.
            Without it the place that the run's own ``local.yaml`` or ``config.yaml`` names is tried, never one that the export
            names. Files of other frozen parts are given by key, as ``{"backbone.checkpoint": FILE,
            "prompt_encoder.weights": FILE}``.
        force: Go on although the frozen weights at hand are not those of the training.
        trusted: Import classes from outside ``medsam_tune`` that the description names; that runs their code.

    Returns:
        A predictor in eval mode on the CPU; move it with ``predictor.segmenter.to(device)``.

    Raises:
        CheckpointError: If a file is missing, corrupt or of another version, or the weights do not fit.
        RecipeError: If the described model cannot be built, or names a class that it may not.

    Examples:
        >>> predictor = load_export("runs/hippocampus/autosam/2026-01-31_12-00-00/export")  # doctest: +SKIP
        >>> mask = predictor.segment(image)  # doctest: +SKIP
    """
    stored = ExportFolder.read(folder)
    segmenter = _build(stored, checkpoint, force=force, trusted=trusted)
    _load_adapter(stored, segmenter)
    _load_trained(stored, segmenter)
    data = stored.description.get("data") or {}
    return Predictor(segmenter.requires_grad_(False), intensity=intensity_of(data), tiles=tiles_of(data))


def load_adapter(
    folder: str | Path, force: bool = False, *, checkpoint: Checkpoint | None = None, trusted: bool = False
) -> Predictor:
    """Load an export as ``load_export`` does, if it holds an adapter of the peft library.

    Args:
        folder: What ``save_export`` wrote, such as ``runs/hippocampus/lora/2026-01-31_12-00-00/export``.
        force: As for ``load_export``.
        checkpoint: As for ``load_export``.
        trusted: As for ``load_export``.

    Raises:
        CheckpointError: If there is no adapter, or as for ``load_export``.
        RecipeError: As for ``load_export``.

    Examples:
        >>> predictor = load_adapter("runs/hippocampus/lora/2026-01-31_12-00-00/export")  # doctest: +SKIP
        >>> mask = predictor.segment(image, box=(10, 10, 80, 90))  # doctest: +SKIP
    """
    predictor = load_export(folder, checkpoint=checkpoint, force=force, trusted=trusted)
    if tuner_of(predictor.segmenter) is None:
        raise CheckpointError(f"{folder}: holds no adapter of the peft library. Use load_export.")
    return predictor


def check_base_weights(folder: Path, stored: Mapping[str, str] | None, segmenter: Segmenter) -> None:
    """Check that a segmenter has the base weights that an export was trained on; the checksum decides.

    Raises:
        CheckpointError: If it has others.
    """
    weights = segmenter.base_weights()
    if (stored and stored.get("sha256")) != (weights and weights.sha256):
        here = "none" if weights is None else _named({"name": weights.name, "sha256": weights.sha256})
        raise CheckpointError(
            f"{folder}: was trained on base weights {_named(stored)}, but {here} were loaded. Get the weights it was trained "
            "on (checkpoint=FILE takes a file of your own), or pass force=True if you know that these fit."
        )


def check_frozen(
    where: str, stored: Mapping[str, Mapping[str, str]], here: Mapping[str, Mapping[str, str]], remedy: str
) -> None:
    """Check that the frozen modules outside the backbone are those of the training.

    Args:
        where: File or folder, for the message.
        stored: What ``frozen_identities`` returned then.
        here: What it returns for the network that was built.
        remedy: What to do, as a sentence.

    Raises:
        CheckpointError: If one is missing, new or has another checksum.
    """
    for name in sorted(stored.keys() | here.keys()):
        then, now = stored.get(name), here.get(name)
        if (then and then.get("sha256")) != (now and now["sha256"]):
            raise CheckpointError(
                f"{where}: {name} is frozen and not stored; the training had {_named(then)}, here it is {_named(now)}. {remedy}"
            )


def _build(stored: ExportFolder, checkpoint: Checkpoint | None, *, force: bool, trusted: bool) -> Segmenter:
    """Build the untrained network on the frozen weights it was trained on."""
    model, weights = stored.description["model"], stored.description["base_weights"]
    files = dict(checkpoint) if isinstance(checkpoint, Mapping) else {} if checkpoint is None else {_BASE: checkpoint}
    if _BASE not in files and names_own_file(model):
        found = _file_of_the_run(stored.folder, (weights or {}).get("sha256"))
        if found is None and not force:
            raise not_at_hand(stored.folder, weights or {})
        files |= {} if found is None else {_BASE: found}
    try:
        segmenter = build_segmenter(model, trusted=trusted, files=files)
    except ForeignClassError:
        raise
    except RecipeError as error:
        file = stored.folder / DESCRIPTION_FILE
        raise RecipeError(f"{file}: {error} Copy the file again, or export the run again.") from error
    if not force:
        check_base_weights(stored.folder, weights, segmenter)
        remedy = 'Give its file, as checkpoint={"prompt_encoder.weights": FILE}, or pass force=True if you know that it fits.'
        check_frozen(str(stored.folder), stored.description["frozen"], frozen_identities(segmenter), remedy)
    return segmenter


def _file_of_the_run(folder: Path, sha256: object) -> Path | None:
    """Return the base weights that the recipe of the run around an export names, if they are there and have the checksum."""
    files = [folder.resolve().parent / name for name in ("config.yaml", "local.yaml")]
    try:
        places = [Path(value) for file in files if file.is_file() for value in _checkpoints(read_yaml(file))]
    except RecipeError:
        return None
    return next((path for path in places if path.is_absolute() and path.is_file() and sha256_of(path) == sha256), None)


def not_at_hand(folder: Path, weights: Mapping[str, object]) -> CheckpointError:
    """Return the error of a run on a file of base weights that lies nowhere one may look."""
    return CheckpointError(
        f"{folder}: was trained on a file of base weights, {weights.get('name')}. Say where it lies now: checkpoint=FILE in "
        f"Python, --checkpoint=FILE on the command line. Its checksum decides, not its name; wanted is sha256 "
        f"{weights.get('sha256')}."
    )


def _checkpoints(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("checkpoint"), str):
            yield value["checkpoint"]
        for inner in value.values():
            yield from _checkpoints(inner)


def _load_adapter(stored: ExportFolder, segmenter: Segmenter) -> None:
    tuner = tuner_of(segmenter)
    if (tuner is None) != (stored.config is None):
        which = "an adapter but its model has no tuner" if tuner is None else "no adapter but its model has a tuner"
        raise CheckpointError(f"{stored.folder / DESCRIPTION_FILE}: lists {which} of the peft library. Export the run again.")
    if tuner is not None and stored.config is not None:
        _check_config(stored.folder / CONFIG_FILE, stored.config, tuner.adapter_config())
        tuner.load_adapter_state(stored.adapter)


def _load_trained(stored: ExportFolder, segmenter: Segmenter) -> None:
    tuner = tuner_of(segmenter)
    expected = beside_adapter(segmenter, {} if tuner is None else tuner.adapter_state())
    if faults := misfits(stored.trained, expected):
        raise CheckpointError(
            f"{stored.folder / TRAINED_FILE}: does not fit the model that {DESCRIPTION_FILE} describes: {faults}. "
            "Export the run again."
        )
    with torch.no_grad():
        segmenter.load_state_dict(dict(stored.trained), strict=False)


def _check_config(path: Path, stored: Mapping[str, Any], built: Mapping[str, object]) -> None:
    """Check that the file's configuration is the one of the described model, as this version of peft understands it."""
    free = {"base_model_name_or_path", "inference_mode", "peft_version"}
    unknown = sorted(stored.keys() - built.keys())
    other = sorted(name for name in stored.keys() & built.keys() if stored[name] != built[name] and name not in free)
    if unknown or other:
        fault = f"{', '.join(unknown)} unknown" if unknown else f"{other[0]} is {stored[other[0]]}, expected {built[other[0]]}"
        raise CheckpointError(
            f"{path}: written by peft {stored.get('peft_version')}, does not fit peft {built['peft_version']} and "
            f"{DESCRIPTION_FILE} ({fault}). Install the version that wrote it, or export the run again."
        )


def _named(weights: Mapping[str, str] | None) -> str:
    return "none" if weights is None else f"{weights.get('name')} (sha256 {str(weights.get('sha256'))[:12]})"
