"""What a training checkpoint holds: the trained entries and the name of the frozen weights beneath them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from medsam_tune.backbone.fit import misfits
from medsam_tune.errors import CheckpointError
from medsam_tune.export.load import check_frozen
from medsam_tune.export.trained import frozen_identities, trained_names
from medsam_tune.files import write_torch
from medsam_tune.training.checkpoint_schema import check_schema
from medsam_tune.weight_files import read_weights

if TYPE_CHECKING:
    from medsam_tune.training.module import TuningModule


CURRENT_WEIGHTS = "current_model_state"
"""Where Lightning's averaging callbacks keep the weights in training; ``state_dict`` then holds their average."""
_OLD_PART = "prompt_source"


def trained_entries(module: TuningModule, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of ``state_dict`` that a checkpoint stores: exactly what was trained."""
    parts = {"segmenter": module.segmenter, "task": module.task}
    stored = {f"{part}.{name}" for part, network in parts.items() for name in trained_names(network)}
    prefixes = tuple(f"{part}." for part in parts)
    return {name: tensor for name, tensor in state_dict.items() if name in stored or not name.startswith(prefixes)}


def frozen_parts(module: TuningModule) -> dict[str, dict[str, str]]:
    """Return name and checksum of every frozen module outside the backbone, those of the task among them."""
    of_task = {f"task.{name}".rstrip("."): identity for name, identity in frozen_identities(module.task).items()}
    return {**frozen_identities(module.segmenter), **of_task}


def restore_frozen(module: TuningModule, checkpoint: dict[str, Any]) -> None:
    """Complete a loaded checkpoint with the frozen weights at hand, so that a strict load names whatever does not fit.

    Raises:
        CheckpointError: As ``check_fits`` does.
    """
    check_fits(module, checkpoint)
    current = module.state_dict()
    for name in {"state_dict", CURRENT_WEIGHTS} & checkpoint.keys():
        checkpoint[name] = {**current, **checkpoint[name]}


def check_fits(module: TuningModule, checkpoint: Mapping[str, Any], where: str = "checkpoint") -> None:
    """Check that a checkpoint is of this network on these frozen weights.

    Args:
        module: The network.
        checkpoint: What a checkpoint holds.
        where: The file, for the message.

    Raises:
        CheckpointError: If the checkpoint was trained on other frozen weights, or its tensors do not fit or are damaged.
    """
    weights = module.segmenter.base_weights()
    stored = checkpoint.get("base_weights")
    here = None if weights is None else {"name": weights.name, "sha256": weights.sha256}
    if (stored and stored["sha256"]) != (here and here["sha256"]):
        raise CheckpointError(
            f"{where}: was trained on base weights {_named(stored)}, the recipe loads {_named(here)}. "
            "Set model.backbone.weights (or checkpoint) to the weights it was trained on."
        )
    remedy = "Name in the recipe the file it was trained on."
    check_frozen(where, checkpoint.get("frozen", {}), frozen_parts(module), remedy)
    if any(f".{_OLD_PART}." in name for name in checkpoint["state_dict"]):
        raise CheckpointError(
            f"{where}: is of an earlier version, whose model.{_OLD_PART} is no part of a model now, and does not load. "
            "Bring its recipe to the form of today (`medsam-tune recipes upgrade FILE`) and train again."
        )
    if faults := misfits(checkpoint["state_dict"], trained_entries(module, module.state_dict())):
        raise CheckpointError(
            f"{where}: does not fit the recipe's model: {faults}. Use the config.yaml of the run that wrote the checkpoint."
        )


def _named(weights: Mapping[str, str] | None) -> str:
    return "none" if weights is None else f"{weights['name']} (sha256 {weights['sha256'][:12]})"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints to a temporary file and rename it; read them with ``weights_only=True``.

    Args:
        read: A file that was read already, with its content, which is given away once.
    """

    def __init__(self, read: tuple[Path, dict[str, Any]] | None = None) -> None:
        self._read = read

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:  # noqa: ANN401
        """Write ``checkpoint`` so that a kill at any moment leaves either the old or the new file.

        Raises:
            CheckpointError: If the disk is full or the folder cannot be written.
        """
        write_torch(Path(path), checkpoint, when_full="Free space there; the previous checkpoint is intact.")

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU, never unpickling code.

        Raises:
            CheckpointError: If the file is missing, truncated or no training checkpoint.
        """
        (known, content), self._read = self._read or (None, {}), None
        return content if known == Path(path) else read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint with ``weights_only=True``.

    Raises:
        CheckpointError: If the file is missing, truncated, or does not hold what every checkpoint does.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. --ckpt_path takes a file, or last for the recipe's newest run.")
    return check_schema(path, read_weights(path, "Use another file of the same run."))
