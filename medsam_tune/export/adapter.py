"""Adapters as folders of the peft library: stock peft loads them onto a SAM, one line of ours turns them into a predictor.

The folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` as peft writes them, ``README.md`` (the model card),
``extra.json`` (the model around the adapter, the base weights, the figures) and, where more than the adapter was trained,
``extra.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medsam_tune import __version__
from medsam_tune.backbone.weights import load_state_dict_file
from medsam_tune.errors import CheckpointError
from medsam_tune.export.build import without_folders
from medsam_tune.export.model_card import model_card
from medsam_tune.export.trained import build_described, licence_note, trained_names
from medsam_tune.files import atomic_folder, read_json, sha256_of, write_json, write_safetensors, write_text
from medsam_tune.inference.predictor import Predictor
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter

if TYPE_CHECKING:
    from medsam_tune.tuners.peft_tuner import PeftTuner

FORMAT_VERSION = 1
CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
EXTRA_FILE = "extra.safetensors"
DESCRIPTION_FILE = "extra.json"
CARD_FILE = "README.md"


def has_adapter(segmenter: Segmenter) -> bool:
    """Tell whether the segmenter's tuner is one of the peft library, so that ``save_adapter`` can write it."""
    return tuner_of(segmenter) is not None


def save_adapter(
    folder: Path,
    *,
    segmenter: Segmenter,
    model_config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data_description: Mapping[str, Any],
) -> Path:
    """Write the adapter and whatever else was trained to ``folder``, which appears whole or not at all.

    Args:
        folder: Made new; an earlier adapter there is replaced.
        segmenter: The trained network, with a tuner of the peft library.
        model_config: The resolved ``model`` section of the recipe, as plain JSON values.
        metrics: Test figures to travel with the weights.
        data_description: What it was trained on.

    Returns:
        ``folder``.

    Raises:
        CheckpointError: If the tuner is none of peft's, if ``folder`` holds something else, or on a full disk.
    """
    tuner = tuner_of(segmenter)
    weights = segmenter.base_weights()
    if tuner is None or weights is None:
        raise CheckpointError(
            f"{folder}: only tuners of the peft library have this file form. Use save_export, which writes any trained network."
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder}: holds files that are no adapter. Choose another folder.")
    adapter = tuner.adapter_state()
    extra = _beside_adapter(segmenter, adapter)
    description = {
        "format_version": FORMAT_VERSION,
        "medsam_tune": __version__,
        "model": without_folders(model_config),
        "base_weights": asdict(weights),
        "input_rule": asdict(segmenter.input_rule),
        "metrics": dict(metrics),
        "data": dict(data_description),
        "licence": licence_note(weights),
        "files": {},
    }
    try:
        _write_folder(folder, tuner, _copies(adapter), _copies(extra), description)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: could not be written ({error}). Free space there or choose another folder."
        ) from error
    return folder


def load_adapter(
    folder: str | Path, force: bool = False, *, checkpoint: str | Path | None = None, trusted: bool = False
) -> Predictor:
    """Build the network around an adapter and load exactly what was trained.

    The description is read without being trusted, as by ``load_export``.

    Args:
        folder: What ``save_adapter`` wrote, such as ``runs/lora/2026-01-31_12-00-00/export/adapter``.
        force: Go on although the base weights at hand are not those the adapter was trained on.
        checkpoint: Where the base weights lie if they are a file of your own; its checksum must be that of the training.
        trusted: Import classes from outside ``medsam_tune`` that the folder names; that runs their code.

    Returns:
        A predictor in eval mode on the CPU; move it with ``predictor.segmenter.to(device)``.

    Raises:
        CheckpointError: If a file is missing, corrupt, of another version of peft or for other base weights.
        RecipeError: If the described model cannot be built.

    Example:
        >>> predictor = load_adapter("runs/lora/2026-01-31_12-00-00/export/adapter")  # doctest: +SKIP
        >>> mask = predictor.segment(image, box=(10, 10, 80, 90))  # doctest: +SKIP
    """
    stored = AdapterFolder.read(folder)
    segmenter = build_described(stored.folder, stored.description, checkpoint=checkpoint, force=force, trusted=trusted)
    tuner = tuner_of(segmenter)
    if tuner is None:
        raise CheckpointError(
            f"{stored.folder / DESCRIPTION_FILE}: its model has no tuner of the peft library. Export the run again."
        )
    _check_config(stored.folder / CONFIG_FILE, stored.config, tuner.adapter_config())
    tuner.load_adapter_state(stored.adapter)
    _load_extra(stored.folder / EXTRA_FILE, stored.extra, segmenter, tuner)
    return Predictor(segmenter.requires_grad_(False))


@dataclass(frozen=True)
class AdapterFolder:
    """Hold what an adapter's folder says, its files checked against the checksums it names.

    Attributes:
        folder: Where it was read.
        description: ``extra.json``.
        config: ``adapter_config.json``.
        adapter: Tensors of the adapter, under peft's names.
        extra: Tensors trained beside it, under the segmenter's names.
    """

    folder: Path
    description: Mapping[str, Any]
    config: Mapping[str, Any]
    adapter: Mapping[str, Tensor]
    extra: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: str | Path) -> AdapterFolder:
        """Read a folder.

        Raises:
            CheckpointError: If a file is missing, corrupt or of another version.
        """
        folder = Path(folder).expanduser()
        description = _read_description(folder)
        config = _read_json(folder / CONFIG_FILE)
        adapter, extra = (_read_tensors(folder / name, description["files"]) for name in (ADAPTER_FILE, EXTRA_FILE))
        return cls(folder, description, config, adapter, extra)

    def check_base_weights(self, segmenter: Segmenter) -> None:
        """Check that the segmenter has the base weights the adapter was trained on.

        Raises:
            CheckpointError: If it has others.
        """
        wanted = str(self.config.get("base_model_name_or_path"))
        weights = segmenter.base_weights()
        here = "none" if weights is None else f"{weights.name}@sha256:{weights.sha256}"
        if wanted.rpartition("@sha256:")[2] != here.rpartition("@sha256:")[2]:
            raise CheckpointError(
                f"{self.folder}: the adapter belongs to base weights {wanted}, but {here} were loaded. "
                "Get the weights it was trained on, or pass force=True if you know that these fit."
            )


def tuner_of(segmenter: Segmenter) -> PeftTuner | None:
    """Return the segmenter's tuner if it is one of the peft library, else None."""
    from medsam_tune.tuners.peft_tuner import PeftTuner

    tuner = segmenter.tuner if isinstance(segmenter, SamSegmenter) else None
    return tuner if isinstance(tuner, PeftTuner) else None


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU; tied weights share memory, which safetensors refuses."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _beside_adapter(segmenter: Segmenter, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what was trained and lies in no file of peft: a decoder, a prompt generator.

    The adapter's tensors are recognised by their memory, because peft's files name them otherwise.
    """
    inside = {tensor.data_ptr() for tensor in adapter.values()}
    state = segmenter.state_dict()
    return {name: state[name] for name in trained_names(segmenter) if state[name].data_ptr() not in inside}


def _write_folder(
    folder: Path, tuner: PeftTuner, adapter: dict[str, Tensor], extra: dict[str, Tensor], description: dict[str, Any]
) -> None:
    with atomic_folder(folder, replace=True, error=CheckpointError) as partial:
        for name, tensors in ((ADAPTER_FILE, adapter), (EXTRA_FILE, extra)):
            if tensors:
                write_safetensors(partial / name, tensors, {"format": "pt"})
                description["files"][name] = sha256_of(partial / name)
        config = dict(sorted(tuner.adapter_config().items()))
        write_json(partial / CONFIG_FILE, config, error=CheckpointError)
        write_json(partial / DESCRIPTION_FILE, description, error=CheckpointError)
        write_text(partial / CARD_FILE, model_card(description, config), error=CheckpointError)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION_FILE
    if not path.is_file() and (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{path}: no such file, so this adapter does not say which network it belongs to. "
            "Load it with peft: PeftModel.from_pretrained(SamBackbone(NAME), FOLDER)."
        )
    description = _read_json(path)
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {version}, medsam-tune {__version__} reads {FORMAT_VERSION}. "
            "Install the version that wrote it (key medsam_tune)."
        )
    wrong = [key for key in ("model", "base_weights", "files") if not isinstance(description.get(key), dict)]
    if wrong:
        raise CheckpointError(f"{path}: {', '.join(wrong)} missing or of the wrong type. Export the run again.")
    return description


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Give the folder that holds it, such as runs/NAME/TIME/export/adapter.")
    value: Any = read_json(path, "Copy or export the adapter again.", error=CheckpointError)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(value).__name__}. Copy or export the adapter again.")
    return value


def _read_tensors(path: Path, files: Mapping[str, str]) -> dict[str, Tensor]:
    """Read a file that the description lists; one that it does not list has no tensors."""
    if path.name not in files:
        return {}
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, although {DESCRIPTION_FILE} names it. Copy the whole folder.")
    # The checksum comes first, so a truncated file never reaches the parser.
    found = sha256_of(path)
    if found != files[path.name]:
        raise CheckpointError(
            f"{path}: sha256 is {found[:12]}, {DESCRIPTION_FILE} says {str(files[path.name])[:12]}. "
            "The file is corrupt or another one; copy it again."
        )
    return load_state_dict_file(path)


def _check_config(path: Path, stored: Mapping[str, object], built: Mapping[str, object]) -> None:
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


def _load_extra(path: Path, extra: Mapping[str, Tensor], segmenter: Segmenter, tuner: PeftTuner) -> None:
    state = segmenter.state_dict()
    expected = _beside_adapter(segmenter, tuner.adapter_state()).keys()
    wrong = sorted(expected ^ extra.keys()) or [n for n in sorted(expected) if state[n].shape != extra[n].shape]
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors are missing, unexpected or of another shape (such as {wrong[0]}). "
            "Export the run again."
        )
    with torch.no_grad():
        segmenter.load_state_dict(dict(extra), strict=False)
