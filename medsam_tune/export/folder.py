"""The export folder: written whole or not at all, and read back with every file checked against its checksum.

It holds ``export.json`` (the model's parts, the base weights, the figures), ``README.md`` (the model card) and
``trained.safetensors`` with exactly what was trained. Where the tuner is one of the peft library, the adapter lies in two of
peft's files, ``adapter_config.json`` and ``adapter_model.safetensors``, and ``trained.safetensors`` holds the rest, if any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from medsam_tune import __version__
from medsam_tune.backbone.base import WeightsIdentity
from medsam_tune.errors import CheckpointError
from medsam_tune.export.build import without_folders
from medsam_tune.export.description import DESCRIPTION_FILE, FORMAT_VERSION, read_description, read_object
from medsam_tune.export.model_card import model_card
from medsam_tune.export.trained import beside_adapter, frozen_identities, trained_names, tuner_of
from medsam_tune.files import atomic_folder, sha256_of, write_json, write_safetensors, write_text
from medsam_tune.inference.usage import prediction_code
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.weight_files import read_weights

TRAINED_FILE = "trained.safetensors"
CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"


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
    state, weights = segmenter.state_dict(), segmenter.base_weights()
    description = {
        "format_version": FORMAT_VERSION,
        "medsam_tune": __version__,
        "model": without_folders(model_config),
        "base_weights": None if weights is None else asdict(weights),
        "frozen": frozen_identities(segmenter),
        "input_rule": asdict(segmenter.input_rule),
        "parameters": {
            name: {"shape": list(state[name].shape), "dtype": str(state[name].dtype).removeprefix("torch.")} for name in names
        },
        "metrics": dict(metrics),
        "data": dict(data_description),
        "licence": _licence_note(weights),
    }
    _write(folder, segmenter, description)
    return folder


@dataclass(frozen=True)
class ExportFolder:
    """Hold what an export folder says, its files checked against the checksums it names.

    Attributes:
        folder: Where it was read.
        description: ``export.json``.
        trained: Tensors under the segmenter's names.
        config: ``adapter_config.json``, or None where there is no adapter.
        adapter: Tensors of the adapter under peft's names.
    """

    folder: Path
    description: Mapping[str, Any]
    trained: Mapping[str, Tensor]
    config: Mapping[str, Any] | None
    adapter: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: str | Path) -> ExportFolder:
        """Read a folder.

        Raises:
            CheckpointError: If a file is missing, corrupt or of another version.
        """
        folder = Path(folder).expanduser()
        description = read_description(folder)
        files = description["files"]
        trained, adapter = (_read_tensors(folder / name, files) for name in (TRAINED_FILE, ADAPTER_FILE))
        config = read_object(folder / CONFIG_FILE) if ADAPTER_FILE in files else None
        return cls(folder, description, trained, config, adapter)


def _write(folder: Path, segmenter: Segmenter, description: dict[str, Any]) -> None:
    tuner = tuner_of(segmenter)
    adapter = {} if tuner is None else tuner.adapter_state()
    config = None if tuner is None else tuner.adapter_config()
    files: dict[str, str] = {}
    with atomic_folder(folder, replace=True, error=CheckpointError) as partial:
        for name, tensors in ((ADAPTER_FILE, adapter), (TRAINED_FILE, beside_adapter(segmenter, adapter))):
            if tensors:
                write_safetensors(partial / name, _copies(tensors), {"format": "pt", "medsam_tune": __version__})
                files[name] = sha256_of(partial / name)
        if config is not None:
            write_json(partial / CONFIG_FILE, config, error=CheckpointError)
        description = {**description, "files": files}
        write_json(partial / DESCRIPTION_FILE, description, error=CheckpointError)
        card = model_card(description, config, prediction=prediction_code(segmenter))
        write_text(partial / CARD_FILE, card, error=CheckpointError)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU; tied weights share memory, which safetensors refuses."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _read_tensors(path: Path, files: Mapping[str, object]) -> dict[str, Tensor]:
    """Read a file that the description lists; one that it does not list has no tensors."""
    if path.name not in files:
        return {}
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, although {DESCRIPTION_FILE} names it. Copy the whole export folder.")
    # The checksum comes first, so a truncated file never reaches the parser.
    found, wanted = sha256_of(path), files[path.name]
    if found != wanted:
        raise CheckpointError(
            f"{path}: sha256 is {found[:12]}, {DESCRIPTION_FILE} says {str(wanted)[:12]}. "
            "The file is corrupt or another one; copy it again."
        )
    return cast("dict[str, Tensor]", read_weights(path))


def _licence_note(weights: WeightsIdentity | None) -> str:
    """Return what a user must know about the licence of trained weights over these base weights."""
    if weights is None:
        return "Holds all weights of the network. Terms of the training data may apply."
    from medsam_tune.backbone.weights import WEIGHTS

    licence = WEIGHTS[weights.name].licence if weights.name in WEIGHTS else "whatever licence they came with"
    return (
        f"Holds only what was trained. The base weights {weights.name} are not included and stay under {licence}. "
        "Terms of the training data may apply."
    )
