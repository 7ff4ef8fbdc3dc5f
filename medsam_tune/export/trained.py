"""Exactly what was trained, in a folder that one line turns back into a model.

The folder holds a safetensors file (``prompt_generator.safetensors`` when only the prompt source was trained, else
``trained.safetensors``) and ``export.json``, which says what the tensors belong to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from medsam_tune import __version__
from medsam_tune.backbone.base import Backbone, WeightsIdentity
from medsam_tune.errors import CheckpointError
from medsam_tune.export.build import build_segmenter
from medsam_tune.export.description import DESCRIPTION_FILE, FORMAT_VERSION, read_description
from medsam_tune.files import atomic_folder, read_weights, sha256_of, write_json, write_safetensors
from medsam_tune.inference.predictor import Predictor
from medsam_tune.segmenters.base import Segmenter

# Init args that name a file to start training from; an export holds what became of it, so the file is not needed again.
_INITIAL_WEIGHTS = ("weights", "encoder_weights")


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
        "model": without_initial_weights(model_config, segmenter.base_weights()),
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


def load_export(folder: str | Path, *, force: bool = False, trusted: bool = False) -> Predictor:
    """Rebuild the model an export describes and load its trained weights strictly.

    Args:
        folder: What ``save_export`` wrote.
        force: Go on although the base weights at hand are not those of the training.
        trusted: Import classes from outside ``medsam_tune`` that the description names; that runs their code.

    Returns:
        A predictor in eval mode on the CPU; move it with ``predictor.segmenter.to(device)``.

    Raises:
        CheckpointError: If a file is missing, corrupt or of a newer format, or the weights do not fit.
        RecipeError: If the described model cannot be built.

    Example:
        >>> predictor = load_export("runs/autosam/2026-01-31_12-00-00/export")  # doctest: +SKIP
        >>> mask = predictor.segment(image)  # doctest: +SKIP
    """
    folder = Path(folder)
    description = read_description(folder)
    tensors = _read_tensors(folder / description["file"], description["sha256"])
    # A caller may be under no_grad, where a part that looks at its own gradients while it is built would fail.
    with torch.enable_grad():
        segmenter = build_segmenter(description["model"], trusted=trusted)
    if not force:
        _check_base_weights(folder, description["base_weights"], _identity(segmenter.base_weights()))
    _load_strictly(segmenter, tensors, folder / description["file"])
    return Predictor(segmenter.requires_grad_(False))


def _frozen_buffers(prefix: str, backbone: Backbone) -> set[str]:
    return {
        ".".join(part for part in (prefix, name, buffer) if part)
        for name, owner in backbone.named_modules()
        if not any(p.requires_grad for p in owner.parameters(recurse=False))
        for buffer, _ in owner.named_buffers(recurse=False)
    }


def without_initial_weights(model_config: Mapping[str, Any], base_weights: WeightsIdentity | None) -> dict[str, Any]:
    """Clear the files that parts outside the backbone started from: the machine that loads may not have them."""
    config: dict[str, Any] = json.loads(json.dumps(model_config))
    stored_whole = ("prompt_source", "side", "fusion") + (("segmenter",) if base_weights is None else ())
    inside = (config.get("segmenter") or {}).get("init_args") or {}
    for part in (owner.get(key) for owner in (config, inside) for key in stored_whole):
        arguments = (part.get("init_args") or {}) if isinstance(part, dict) else {}
        for name in _INITIAL_WEIGHTS:
            if name in arguments:
                arguments[name] = None
    return config


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
            f"{folder}: was trained on base weights {_named(stored)}, but {_named(found)} were loaded. "
            "Get the weights it was trained on, or pass force=True if you know that these fit."
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
