"""Whether a step on chunks of slices fits the memory, told before the run: what one slice keeps is counted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.geometry import make_frame
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import EncoderInput

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.segmenters.base import Segmenter

_GB = 1024**3


def check_chunk_memory(segmenter: Segmenter, data: SegmentationDataModule) -> None:
    """Refuse a training batch of chunks whose activations are larger than the memory that is free.

    Raises:
        RecipeError: Naming the keys to lower.
    """
    if data.chunk == 1 or not segmenter.mixes_slices() or not isinstance(segmenter, SamSegmenter):
        return
    free = free_memory()
    n_slices = data.batch_size * data.chunk
    needed = n_slices * kept_by_a_slice(segmenter)
    if free is None or needed <= free:
        return
    fewer = "data.batch_size=1" if data.batch_size > 1 else f"data.chunk={max(1, data.chunk // 2)}"
    raise RecipeError(
        f"data.batch_size: {data.batch_size} chunks of {data.chunk} slices keep about {needed / _GB:.1f} GB of the encoder for "
        f"the backward pass (counted on one slice in float32), and {free / _GB:.1f} GB are free. Set {fewer}, or "
        "model.backbone.checkpointing=true, which keeps less and takes longer."
    )


def kept_by_a_slice(segmenter: SamSegmenter) -> int:
    """Return the bytes that the encoder keeps of one slice for its backward pass, weights not counted."""
    backbone = segmenter.backbone
    kept: dict[int, int] = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*backbone.parameters(), *backbone.buffers())}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    side = backbone.input_rule.side
    device = next(backbone.parameters()).device
    inputs = EncoderInput(torch.zeros(1, 3, side, side, device=device), (make_frame((side, side), backbone.input_rule),))
    # Dropout draws here too, and must leave the run's own draws alone.
    forked = torch.random.fork_rng(devices=[])
    with forked, torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        embeddings = backbone.encode(inputs)
    del embeddings
    return sum(kept.values())


def free_memory() -> int | None:
    """Return the bytes that are free on the GPU, or in the machine without one; None where nobody says."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    told = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", told.read_text(), re.MULTILINE) if told.is_file() else None
    return None if found is None else int(found[1]) * 1024
