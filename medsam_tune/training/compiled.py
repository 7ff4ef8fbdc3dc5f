"""The encoder's blocks through ``torch.compile`` while they train (Ansel et al. 2024, ASPLOS, PyTorch 2).

Blocks are compiled one by one and in place: they are alike, so that the first one's kernels serve all, and no name of a weight
changes. Checkpoints, test and export are those of the plain network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from medsam_tune.errors import RecipeError
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.training.module import TuningModule, tuned
from medsam_tune.training.trainer_keys import FSDP

if TYPE_CHECKING:
    from torch import nn

BACKEND = "inductor"


class CompiledEncoder(Callback):
    """Compile the blocks of the image encoder for a training, and take them back after it."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Try the compiler before anything is computed.

        Raises:
            RecipeError: If there is none for the device.
        """
        if stage == "fit":
            check_compiler(trainer.strategy.root_device)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for block in blocks(tuned(pl_module)):
            block.compile(backend=BACKEND)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for block in blocks(tuned(pl_module)):
            block._compiled_call_impl = None


def blocks(module: TuningModule) -> list[nn.Module]:
    """Return the blocks of the network's image encoder; a network of its own has none."""
    if not isinstance(module.segmenter, SamSegmenter):
        return []
    return [block.module for block in module.segmenter.backbone.anatomy().encoder.blocks]


def check_compiled(module: TuningModule, *, cached: bool, strategy: object) -> None:
    """Refuse to compile what does not run in each step, or is cut into shards.

    Args:
        module: The network.
        cached: Whether the recipe keeps what the encoder computes (``data.cache_embeddings``).
        strategy: ``trainer.strategy``.

    Raises:
        RecipeError: Saying why it would bring nothing.
    """
    if not blocks(module):
        raise RecipeError("run.compile: compiles SAM's image encoder, and this network has none. Leave it out.")
    if cached:
        raise RecipeError(
            "run.compile: the encoder runs once an image, not in each step (data.cache_embeddings), so compiling it would cost "
            "more than it saves. Leave it out."
        )
    if strategy == FSDP:
        raise RecipeError(f"run.compile: was never tried on shards (trainer.strategy: {FSDP}). Leave one of them out.")


def check_compiler(device: torch.device) -> None:
    """Compile one multiplication.

    Raises:
        RecipeError: With what the compiler says, if it fails.
    """
    try:
        torch.compile(torch.square, backend=BACKEND)(torch.ones(2, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        said = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        needed = "a C++ compiler" if device.type == "cpu" else "Triton, which comes with PyTorch on Linux"
        raise RecipeError(
            f"run.compile: torch.compile fails on {device.type}: {said}. It needs {needed}; or leave it out."
        ) from error
