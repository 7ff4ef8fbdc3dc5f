"""The LightningModule: generic over the seams, it knows steps and checkpoints and no method."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import Metric

from medsam_tune.backbone.base import Backbone
from medsam_tune.backbone.freezing import set_train_modes
from medsam_tune.errors import RecipeError
from medsam_tune.fusion.base import InputFusion
from medsam_tune.inference.stitching import answer
from medsam_tune.losses.base import MaskLoss
from medsam_tune.losses.bce_dice import BceDiceLoss
from medsam_tune.prompt_encoders.base import PromptEncoder
from medsam_tune.prompts.base import PromptSampler
from medsam_tune.segmenters.base import SamParts, Segmenter, ViewsAtTest
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.side.base import SideNetwork
from medsam_tune.tasks.base import Task
from medsam_tune.tasks.segmentation import SegmentationTask
from medsam_tune.training.checkpoint import CURRENT_WEIGHTS, frozen_parts, restore_frozen, trained_entries
from medsam_tune.training.finite import FiniteLosses
from medsam_tune.training.means import RunningMeans
from medsam_tune.training.schedule import check_cycle, check_figure, planned_steps, scheduler_config, step_schedule
from medsam_tune.tuners.base import Tuner
from medsam_tune.types import MaskPrediction, SegmentationBatch


def default_optimizer(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - torch's own ParamsT is private
    """Return AdamW with learning rate 1e-3 and weight decay 1e-4 over ``parameters``."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4)


def tuned(module: pl.LightningModule) -> TuningModule:
    """Return the module that a trainer hands to a callback, typed as ours.

    Raises:
        TypeError: If a callback of ours was given to another module's trainer.
    """
    if not isinstance(module, TuningModule):
        raise TypeError(f"module must be a TuningModule, got {type(module).__name__}.")
    return module


class TuningModule(pl.LightningModule):
    """Train what the recipe inserts into, or puts around, a frozen network.

    Args:
        backbone: The promptable network; a task network has none.
        prompts: How prompts are drawn from the true masks, in training and evaluation; none asks without a prompt.
        prompt_encoder: What turns queries into prompt embeddings; SAM's own by default.
        tuner: What is inserted into the backbone.
        fusion: What is added to the image before the encoder.
        side: A trained branch that refines the image embedding.
        segmenter: What joins the parts above, with arguments of its own only; ``SamSegmenter`` by default.
        objects_per_decode: Objects decoded at once; 0 leaves it to the device: 4 on a CPU, all of a batch on a GPU.
        views_at_test: ``mirror`` lets tests and predictions see each image as it lies and mirrored, ``flips`` also upside down
            and both, and averages the probabilities; two or four encoder passes an image. Validation sees it once.
        smallest_part: Islands of a mask below this share of its largest island are dropped, and holes below it filled, wherever
            masks are made: in validation, test and prediction. 0 keeps all.
        task: What is learned; segmentation by default.
        loss: The training loss; BCE + Dice by default.
        optimizer: Called with the trainable parameters only.
        scheduler: A torch learning-rate scheduler, stepped every epoch (``OneCycleLR`` and ``CyclicLR`` every optimizer step;
            ``ReduceLROnPlateau`` watches val/dice, or its ``monitor``); excludes ``schedule``.
        schedule: Learning-rate curve over the whole training, stepped every optimizer step.
        warmup_steps: Optimizer steps of linear warm-up before ``schedule``.

    Raises:
        RecipeError: If the parts contradict each other.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | None = None,
        prompts: PromptSampler | None = None,
        prompt_encoder: PromptEncoder | None = None,
        tuner: Tuner | None = None,
        fusion: InputFusion | None = None,
        side: SideNetwork | None = None,
        segmenter: Callable[[SamParts], Segmenter] = SamSegmenter,
        objects_per_decode: int = 0,
        views_at_test: ViewsAtTest = "one",
        smallest_part: float = 0.0,
        task: Task | None = None,
        loss: MaskLoss | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        scheduler: LRSchedulerCallable | None = None,
        schedule: Literal["constant", "cosine", "poly"] = "constant",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        if scheduler is not None and (schedule != "constant" or warmup_steps):
            raise RecipeError("model.scheduler: excludes model.schedule and model.warmup_steps; keep one of them.")
        parts = SamParts(
            backbone, prompts, prompt_encoder, tuner, fusion, side, objects_per_decode, views_at_test, smallest_part
        )
        self.segmenter: Segmenter = segmenter(parts)
        _check_tests(self.segmenter, parts)
        self.task: Task = task or SegmentationTask()
        self.task.attach(self.segmenter)
        self.loss: MaskLoss = loss or BceDiceLoss()
        self.loss.check_network(classes=bool(self.segmenter.classes()), iou=self.segmenter.predicts_iou())
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.val_metric = self.task.metric()
        self.test_metric = self.task.test_metric()
        self.last_loss = torch.zeros(())
        self.means = RunningMeans()
        self.finite = FiniteLosses(torch.device("cpu"))
        self._gradients_checked, self._validating = False, False

    @property
    def side_px(self) -> int:
        """Return S, the side of the network input in pixels."""
        return self.segmenter.input_rule.side

    def forward(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return the segmenter's logits for a batch."""
        return answer(self.segmenter, batch)

    def train(self, mode: bool = True) -> TuningModule:
        """Switch to train mode, keeping whatever is frozen (its BatchNorm, its DropPath) in eval mode."""
        super().train(mode)
        for part in self._parts().values():
            set_train_modes(part, mode)
        return self

    def on_fit_start(self) -> None:
        self.finite = FiniteLosses(self.device)
        # The cache ran the encoder in eval mode, and Lightning keeps modes as it finds them.
        self.train()

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer gets.

        Raises:
            RecipeError: If nothing is trainable.
        """
        trainable = [p for _, p in self._learning()]
        if not trainable:
            raise RecipeError(
                "model: nothing is trainable. Name parts in model.backbone.trainable, or set a tuner or a prompt generator."
            )
        return trainable

    def check_optimizer(self) -> None:
        """Build optimizer and scheduler once on a parameter that is thrown away.

        Raises:
            RecipeError: If a class refuses its settings, or the scheduler watches a figure in the wrong direction or one that
                nothing logs.
        """
        optimizer = self._thrown_away()
        if self.scheduler_factory is not None:
            scheduler = _made("scheduler", self.scheduler_factory, optimizer)
            monitor = scheduler_config(scheduler, default=self.task.monitor).get("monitor")
            check_figure("model.scheduler.monitor", monitor, self.validation_figures())

    def check_schedule(self, total_steps: float) -> None:
        """Hold the learning-rate curve against the length of the training.

        Raises:
            RecipeError: If the curve is over before it, or needs an end that a time limit alone does not set.
        """
        optimizer = self._thrown_away()
        if self.scheduler_factory is not None:
            check_cycle(_made("scheduler", self.scheduler_factory, optimizer), total_steps)
        else:
            step_schedule(optimizer, self.schedule, warmup_steps=self.warmup_steps, total_steps=total_steps)

    def validation_figures(self) -> list[str]:
        """Return the names of what a validation logs."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a metric that saw nothing yet has the names all the same
            return [f"val/{name}" for name in self.task.figures(self.task.metric())]

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        batch = self._known(batch)
        terms = self._losses(batch)
        total = torch.stack(list(terms.values())).sum()
        looked = self.finite.add(total, self.global_step, batch.image_ids)
        self.last_loss = total.detach()
        losses = {"train/loss": total, **{f"train/{name}": value for name, value in terms.items()}}
        weight = batch.n_objects or batch.n_images
        self.means.add(losses, weight)
        if looked:
            # A bar shows numbers, and a GPU has to be waited for to know one.
            self.log("train/loss_step", self.last_loss, batch_size=weight, prog_bar=True, logger=False)
        return total

    def training_loss(self, batch: SegmentationBatch) -> Tensor:
        """Return the summed loss of a batch, as a training step has it; nothing is logged or counted."""
        return torch.stack(list(self._losses(self._known(batch)).values())).sum()

    def _losses(self, batch: SegmentationBatch) -> dict[str, Tensor]:
        return {**self.task.training_losses(self.segmenter, batch, self.loss), **self.segmenter.auxiliary_losses()}

    def on_after_backward(self) -> None:
        self.segmenter.after_backward(self.global_step)
        if self._gradients_checked:
            return
        self._gradients_checked = True
        silent = [name for name, p in self._learning() if p.grad is None]
        if silent:
            raise RecipeError(
                f"model: {len(silent)} trainable parameters take no part in the loss and plain ddp would fail: "
                f"{', '.join(silent[:5])}{' ...' if len(silent) > 5 else ''}. Freeze them or add a loss that uses them."
            )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step the optimizer as Lightning does, then let the segmenter act on the new weights."""
        step = self.global_step
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.segmenter.after_step(step)

    def on_validation_epoch_start(self) -> None:
        self._validating = True

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, MaskPrediction]:
        once = replace(self._known(batch), one_view=True)
        prediction = self.task.score(self.val_metric, self.segmenter, once, self.loss)
        return {} if prediction is None else {"prediction": prediction}

    def on_validation_epoch_end(self) -> None:
        self._validating = False
        self._log_metric("val", self.val_metric)

    def test_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        self.task.score(self.test_metric, self.segmenter, self._known(batch), self.loss)

    def on_test_epoch_end(self) -> None:
        self._log_metric("test", self.test_metric, reset=False)

    def predict_step(self, batch: SegmentationBatch, batch_idx: int) -> MaskPrediction:
        # Images of a labelled folder are new images here: nothing may be drawn from their truth.
        return self.forward(replace(batch, truth=None))

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's own union
        optimizer = _made("optimizer", self.optimizer_factory, self.trainable_parameters())
        if self.scheduler_factory is not None:
            scheduler = _made("scheduler", self.scheduler_factory, optimizer)
            return {"optimizer": optimizer, "lr_scheduler": scheduler_config(scheduler, default=self.task.monitor)}
        if self.schedule == "constant" and not self.warmup_steps:
            return optimizer
        total_steps = planned_steps(self.trainer)
        scheduler = step_schedule(optimizer, self.schedule, warmup_steps=self.warmup_steps, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.finite.look()
        weights = self.segmenter.base_weights()
        if self._validating and CURRENT_WEIGHTS in checkpoint:
            # A callback that averages has changed places with the network for this validation.
            averaged = checkpoint[CURRENT_WEIGHTS]
            checkpoint[CURRENT_WEIGHTS], checkpoint["state_dict"] = checkpoint["state_dict"], averaged
        for name in {"state_dict", CURRENT_WEIGHTS} & checkpoint.keys():
            checkpoint[name] = trained_entries(self, checkpoint[name])
        checkpoint["base_weights"] = None if weights is None else {"name": weights.name, "sha256": weights.sha256}
        checkpoint["frozen"] = frozen_parts(self)
        checkpoint["tuner"] = self.segmenter.extra_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainer = self._trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            # Lightning would take them in place of the averaged weights, which were validated.
            checkpoint.pop(CURRENT_WEIGHTS, None)
        restore_frozen(self, checkpoint)
        self.segmenter.load_extra_state(checkpoint.get("tuner", {}))

    def _thrown_away(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = _made("optimizer", self.optimizer_factory, [nn.Parameter(torch.zeros(1))])
        return optimizer

    def _parts(self) -> dict[str, nn.Module]:
        return {"segmenter": self.segmenter, "task": self.task}

    def _learning(self) -> list[tuple[str, nn.Parameter]]:
        """Return what learns by name, the segmenter's first."""
        return [(name, p) for part in self._parts().values() for name, p in part.named_parameters() if p.requires_grad]

    def _known(self, batch: SegmentationBatch) -> SegmentationBatch:
        """Return what the task may know of a batch: images without a mask file look as if they showed nothing."""
        return batch if self.task.needs_masks else replace(batch, truth=None)

    def _log_metric(self, stage: str, metric: Metric, *, reset: bool = True) -> None:
        values = {f"{stage}/{name}": value for name, value in self.task.figures(metric).items()}
        self.log_dict(values, prog_bar=stage == "val", sync_dist=True)
        if reset:
            metric.reset()


def _check_tests(segmenter: Segmenter, parts: SamParts) -> None:
    """Refuse views for a network whose prompt lies where it was drawn, and what its masks cannot or do not keep."""
    if parts.views_at_test != "one" and (prompt := segmenter.asks_user()) is not None:
        raise RecipeError(
            f"model.views_at_test: {parts.views_at_test} flips images, but this model is asked by {prompt} on the image as it "
            "lies. Leave it out; it is for models that need no prompt."
        )
    if parts.views_at_test != "one" and segmenter.mixes_slices():
        raise RecipeError(
            f"model.views_at_test: {parts.views_at_test} flips single images, but this model's tuner mixes the slices of a "
            "chunk. Leave it out; data.chunk_stride averages what overlapping windows answer."
        )
    if parts.smallest_part and segmenter.classes():
        raise RecipeError(
            "model.smallest_part: a hole in one class is another class or background, so nothing is filled where every pixel "
            "has one class. Leave it out."
        )
    for key in ("views_at_test", "smallest_part"):
        if getattr(segmenter, key) != getattr(parts, key):
            raise RecipeError(
                f"model.{key}: {type(segmenter).__name__} does not keep it. Set self.{key} = parts.{key} there, or leave the "
                "key out."
            )


def _made(key: str, factory: Callable[[Any], Any], given: object) -> Any:  # noqa: ANN401 - an optimizer or a scheduler
    """Call a factory of the recipe; what the class refuses is a fault of its key."""
    try:
        return factory(given)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model.{key}: {' '.join(str(error).split())}. Correct its init_args.") from error
