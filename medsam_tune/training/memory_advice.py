"""A batch that ran out of memory, in a step or where it is scored: the largest part of it that fits is tried, and said."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from torch import Tensor

from medsam_tune.errors import ran_out_of_memory
from medsam_tune.heap import large_buffers_kept
from medsam_tune.inference.stitching import answer
from medsam_tune.types import SegmentationBatch

if TYPE_CHECKING:
    from medsam_tune.training.module import TuningModule


class MemoryAdvice(Callback):
    """Add to an error about memory how many images of the batch would have fitted.

    Not where several processes train: the others would wait for what one of them tries.
    """

    def __init__(self) -> None:
        self._batch: SegmentationBatch | None = None
        self._learns = False

    def _started(self, learns: bool, batch: Any) -> None:  # noqa: ANN401
        self._batch, self._learns = batch if isinstance(batch, SegmentationBatch) else None, learns

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        self._started(True, batch)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._started(False, batch)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_train_batch_end(self, *_: Any) -> None:  # noqa: ANN401
        self._batch = None

    def on_validation_batch_end(self, *_: Any) -> None:  # noqa: ANN401
        self._batch = None

    def on_test_batch_end(self, *_: Any) -> None:  # noqa: ANN401
        self._batch = None

    def on_predict_batch_end(self, *_: Any) -> None:  # noqa: ANN401
        self._batch = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._batch is None or trainer.world_size > 1 or not ran_out_of_memory(exception):
            return
        _forget_frames(exception)
        pl_module.zero_grad(set_to_none=True)
        autocast, module = trainer.precision_plugin.forward_context, cast("TuningModule", pl_module)
        # Whatever else goes wrong with a part of the batch must not stand in for what did with the whole.
        with suppress(RuntimeError, ValueError, TypeError, LookupError):
            if self._learns:
                said = advice(module, self._batch, autocast=autocast, stepped=trainer.global_step > 0)
            else:
                said = scoring_advice(module, self._batch, autocast=autocast)
            exception.add_note(said)


def advice(
    module: TuningModule,
    batch: SegmentationBatch,
    *,
    autocast: Any = nullcontext,  # noqa: ANN401 - what makes a context of the trainer's precision
    stepped: bool = True,
) -> str:
    """Try ever smaller parts of a batch, each forward and backward, and say which keys make a step fit.

    Args:
        module: Keeps its weights; nothing is stepped.
        batch: On the module's device.
        autocast: Makes the context of the forward pass.
        stepped: Whether the optimizer holds its moments already. If not, room for two a weight is held while trying.

    Raises:
        RuntimeError: If a part of the batch fails for another reason than memory.
    """
    images = batch.n_images
    while (images := images // 2) >= 1:
        part = batch.part(0, images)
        if _fits(lambda part=part: _step(module, part, autocast(), 0 if stepped else 2)):  # type: ignore[misc]
            return (
                f"{images} of this batch's {batch.n_images} images fit, as was tried: set data.batch_size={images}, and "
                f"data.global_batch={batch.n_images} to keep so many images a step."
            )
    return (
        "Not even one image of this batch fits beside the network: set model.backbone.checkpointing=true where the encoder "
        "learns, model.objects_per_decode=1 where images hold many objects, or smaller weights."
    )


def scoring_advice(
    module: TuningModule,
    batch: SegmentationBatch,
    *,
    autocast: Any = nullcontext,  # noqa: ANN401 - what makes a context of the trainer's precision
) -> str:
    """Predict ever smaller parts of a batch, without gradients, and say which keys make scoring it fit.

    Args:
        module: Stays as it is.
        batch: On the module's device. Tiles of one image, and slices that see each other, cannot be parted, and are not tried.
        autocast: Makes the context of the forward pass.

    Raises:
        RuntimeError: If a part of the batch fails for another reason than memory.
    """
    if batch.tiles and batch.at_once > 1:
        return f"Set data.eval_batch_size={batch.at_once // 2}: {batch.at_once} tiles went through the network at a time."
    images = 1 if batch.tiles or batch.chunk_length > 1 else batch.n_images
    while (images := images // 2) >= 1:
        part = batch.part(0, images)
        if _fits(lambda part=part: _predict(module, part, autocast())):  # type: ignore[misc]
            return f"{images} of this batch's {batch.n_images} images fit, as was tried: set data.eval_batch_size={images}."
    return (
        "Not even one image of this batch fits beside the network: set model.objects_per_decode=1 where images hold many "
        "objects, data.tiles where they are large, or smaller weights."
    )


def _predict(module: TuningModule, batch: SegmentationBatch, autocast: AbstractContextManager[None]) -> None:
    with torch.no_grad(), autocast:
        answer(module.segmenter, batch)


def _fits(attempt: Callable[[], None]) -> bool:
    try:
        # What the failed step had is kept by the heap, and used again only so.
        with large_buffers_kept():
            attempt()
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        _forget_frames(error)
        return False
    finally:
        _give_back()
    return True


def _step(module: TuningModule, batch: SegmentationBatch, autocast: AbstractContextManager[None], moments: int) -> None:
    """Take the gradients of a batch without keeping them: ``backward`` would speak to the other processes of a training."""
    weights = [p for p in module.parameters() if p.requires_grad]
    room = [torch.zeros_like(weight) for weight in weights for _ in range(moments)]
    with autocast:
        total: Tensor = module.training_loss(batch)
    torch.autograd.grad(total, weights, allow_unused=True)
    del room


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what an error's frames hold: all that the step had made."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    _give_back()


def _give_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
