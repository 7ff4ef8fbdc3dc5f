"""Exactly what was trained, in a folder that one line turns back into a model.

The folder holds a safetensors file (``prompt_generator.safetensors`` when only the prompt source was trained, else
``trained.safetensors``) and ``export.json``, which says what the tensors belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from medsam_tune import __version__
from medsam_tune.backbone.base import Backbone, WeightsIdentity
from medsam_tune.errors import CheckpointError
from medsam_tune.export.build import build_segmenter, without_folders
from medsam_tune.export.description import DESCRIPTION_FILE, FORMAT_VERSION, read_description
from medsam_tune.files import atomic_folder, read_weights, sha256_of, write_json, write_safetensors
from medsam_tune.inference.predictor import Predictor
from medsam_tune.segmenters.base import Segmenter


def trained_names(segmenter: Segmenter) -> list[str]:
    """Return the state-dict names that were trained, buffers of trained modules (BatchNorm's statistics) among them.

    Left out are the segmenter's frozen parameters and those buffers of its backbone whose module has no trainable
    parameter: the base weights hold both.
    """
    left_out = set(segmenter.frozen_parameters())
    for name, module in segmenter.named_modules():
        if isinstance(module, Backbone):
            left_out |= _frozen_buffers(name, module)
    return [name for name in segmenter.state_dict() if name not in left_out]


def save_export(
    folder: Path,
    *,
    segmenter: Segmenter,
    model_config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data_description: Mapping[str, Any],
) -> Path:
    """Write what was trained to ``folder``, which appears whole or not at all.

    Args:
        folder: Made new; an earlier export there is replaced.
        segmenter: The trained network.
        model_config: The resolved ``model`` section of the recipe, as plain JSON values.
        metrics: Test figures to travel with the weights.
        data_description: What it was trained on, the intensity rule included.

    Returns:
        ``folder``.

    Raises:
        CheckpointError: If nothing was trained, if ``folder`` holds something else than an export, or on a full disk.
    """
    names = trained_names(segmenter)
    if not names:
        raise CheckpointError(
            f"{folder}: nothing was trained, so there is nothing to export. Set something trainable in the recipe."
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / DESCRIPTION_FILE).is_file():
        raise CheckpointError(f"{folder}: holds files that are no export. Choose another folder.")
    state = segmenter.state_dict()
    # Tied weights share memory, which safetensors refuses; each name gets its own copy.
    tensors = {name: state[name].detach().cpu().contiguous().clone() for name in names}
    description = {
        "format_version": FORMAT_VERSION,
        "medsam_tune": __version__,
        "model": without_folders(model_config),
        "base_weights": _identity(segmenter.base_weights()),
        "input_rule": asdict(segmenter.input_rule),
        "parameters": {
            name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for name, t in tensors.items()
        },
        "metrics": dict(metrics),
        "data": dict(data_description),
        "licence": licence_note(segmenter.base_weights()),
    }
    _write_folder(folder, tensors, description)
    return folder


def load_export(
    folder: str | Path, *, checkpoint: str | Path | None = None, force: bool = False, trusted: bool = False
) -> Predictor:
    """Rebuild the model an export describes and load its trained weights strictly.

    The description is read without being trusted: it may name classes only where a seam expects them, and no file that it
    names is opened.

    Args:
        folder: What ``save_export`` wrote.
        checkpoint: Where the base weights lie if they are a file of your own; its checksum must be that of the training.
        force: Go on although the base weights at hand are not those of the training.
        trusted: Import classes from outside ``medsam_tune`` that the description names; that runs their code.

    Returns:
        A predictor in eval mode on the CPU; move it with ``predictor.segmenter.to(device)``.

    Raises:
        CheckpointError: If a file is missing, corrupt or of a newer format, or the weights do not fit.
        RecipeError: If the described model cannot be built, or names a class that it may not.

    Example:
        >>> predictor = load_export("runs/autosam/2026-01-31_12-00-00/export")  # doctest: +SKIP
        >>> mask = predictor.segment(image)  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    description = read_description(folder)
    tensors = _read_tensors(folder / description["file"], description["sha256"])
    segmenter = build_described(folder, description, checkpoint=checkpoint, force=force, trusted=trusted)
    _load_strictly(segmenter, tensors, folder / description["file"])
    return Predictor(segmenter.requires_grad_(False))


def build_described(
    folder: Path, description: Mapping[str, Any], *, checkpoint: str | Path | None, force: bool, trusted: bool
) -> Segmenter:
    """Build the untrained network of a description, on the base weights it was trained on.

    Args:
        folder: Named in the message.
        description: Has ``model`` and ``base_weights``.
        checkpoint: As for ``load_export``.
        force: As for ``load_export``.
        trusted: As for ``load_export``.

    Raises:
        CheckpointError: If the base weights are others.
        RecipeError: If the described model cannot be built.
    """
    wanted = description["base_weights"]
    if checkpoint is None and _is_own_file(description["model"]) and not force:
        raise CheckpointError(
            f"{folder}: was trained on a file of base weights, {(wanted or {}).get('name')}. Say where it lies now: "
            "checkpoint=FILE in Python, --checkpoint=FILE on the command line. Its checksum decides, not its name; wanted is "
            f"sha256 {(wanted or {}).get('sha256')}."
        )
    segmenter = build_segmenter(description["model"], trusted=trusted, checkpoint=checkpoint)
    if not force:
        _check_base_weights(folder, wanted, _identity(segmenter.base_weights()))
    return segmenter


def _frozen_buffers(prefix: str, backbone: Backbone) -> set[str]:
    return {
        ".".join(part for part in (prefix, name, buffer) if part)
        for name, owner in backbone.named_modules()
        if not any(p.requires_grad for p in owner.parameters(recurse=False))
        for buffer, _ in owner.named_buffers(recurse=False)
    }


def _is_own_file(model: object) -> bool:
    """Tell whether any backbone of a described model was given a file of its own."""
    if isinstance(model, Mapping):
        return isinstance(model.get("checkpoint"), str) or any(_is_own_file(value) for value in model.values())
    return isinstance(model, list) and any(_is_own_file(value) for value in model)


def _identity(weights: WeightsIdentity | None) -> dict[str, str] | None:
    return None if weights is None else asdict(weights)


def licence_note(weights: WeightsIdentity | None) -> str:
    """Return what a user must know about the licence of trained weights over these base weights."""
    if weights is None:
        return "Holds all weights of the network. Terms of the training data may apply."
    from medsam_tune.backbone.weights import WEIGHTS

    licence = WEIGHTS[weights.name].licence if weights.name in WEIGHTS else "whatever licence they came with"
    return (
        f"Holds only what was trained. The base weights {weights.name} are not included and stay under {licence}. "
        "Terms of the training data may apply."
    )


def _write_folder(folder: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    only_prompts = all(name.startswith("prompt_source.") for name in tensors)
    file = "prompt_generator.safetensors" if only_prompts else "trained.safetensors"
    with atomic_folder(folder, replace=True, error=CheckpointError) as partial:
        write_safetensors(partial / file, tensors, {"format": "pt", "medsam_tune": __version__})
        description = {**description, "file": file, "sha256": sha256_of(partial / file)}
        write_json(partial / DESCRIPTION_FILE, description, error=CheckpointError)


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, although {DESCRIPTION_FILE} names it. Copy the whole export folder.")
    # The checksum comes first, so a truncated file never reaches the parser.
    found = sha256_of(path)
    if found != sha256:
        raise CheckpointError(
            f"{path}: sha256 is {found[:12]}, {DESCRIPTION_FILE} says {str(sha256)[:12]}. "
            "The file is corrupt or another one; copy it again."
        )
    return cast("dict[str, Tensor]", read_weights(path))


def _check_base_weights(folder: Path, stored: Mapping[str, str] | None, found: Mapping[str, str] | None) -> None:
    if (stored and stored.get("sha256")) != (found and found["sha256"]):
        raise CheckpointError(
            f"{folder}: was trained on base weights {_named(stored)}, but {_named(found)} were loaded. Get the weights it was "
            "trained on (checkpoint=FILE takes a file of your own), or pass force=True if you know that these fit."
        )


def _named(weights: Mapping[str, str] | None) -> str:
    return "none" if weights is None else f"{weights.get('name')} (sha256 {str(weights.get('sha256'))[:12]})"


def _load_strictly(segmenter: Segmenter, tensors: Mapping[str, Tensor], path: Path) -> None:
    state = segmenter.state_dict()
    expected = set(trained_names(segmenter))
    faults = {
        "missing": sorted(expected - set(tensors)),
        "unexpected": sorted(set(tensors) - expected),
        "of another shape": sorted(name for name in expected & set(tensors) if tensors[name].shape != state[name].shape),
    }
    found = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in faults.items()
        if names
    ]
    if found:
        raise CheckpointError(
            f"{path}: does not fit the model that {DESCRIPTION_FILE} describes: {'; '.join(found)}. Export the run again."
        )
    with torch.no_grad():
        segmenter.load_state_dict(tensors, strict=False)
