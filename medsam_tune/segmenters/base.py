"""The seam from image to mask logits, and the parts a segmenter is built from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone, WeightsIdentity
from medsam_tune.errors import RecipeError
from medsam_tune.fusion.base import InputFusion
from medsam_tune.geometry import Frame, InputRule
from medsam_tune.losses.base import MaskLoss
from medsam_tune.prompt_encoders.base import PromptEncoder
from medsam_tune.prompts.base import PromptSampler
from medsam_tune.side.base import SideNetwork
from medsam_tune.tuners.base import Tuner
from medsam_tune.types import MaskPrediction, Queries, SegmentationBatch

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule


ViewsAtTest = Literal["one", "mirror", "flips"]
"""How a test looks at an image: as it lies; mirrored too; or as it lies, mirrored, upside down and both."""


@dataclass(frozen=True)
class SamParts:
    """Hold the parts that a recipe names under ``model``; a segmenter receives them and never repeats them.

    Attributes:
        backbone: The network that is tuned, frozen but for what its ``trainable`` names; None for a network of its own.
        prompts: How prompts are drawn from the truth; None asks without a prompt.
        prompt_encoder: What turns queries into prompt embeddings; None is SAM's own.
        tuner: What is inserted into the backbone.
        fusion: What is added to the image before the network. A prompt encoder and a side network that read the image see it
            without.
        side: A trained branch that refines the image embedding.
        objects_per_decode: Objects decoded at once; 0 leaves it to the device: 4 on a CPU, all on a GPU. Each object
            holds about 140 MB during a training step at g = 64.
        views_at_test: In tests and predictions ``mirror`` averages the probabilities of two views of an image, ``flips`` of
            four, each an encoder pass; for networks that need no prompt.
        smallest_part: Islands of a mask below this share of its largest island are dropped, and holes below it filled; 0 keeps
            all.
    """

    backbone: Backbone | None = None
    prompts: PromptSampler | None = None
    prompt_encoder: PromptEncoder | None = None
    tuner: Tuner | None = None
    fusion: InputFusion | None = None
    side: SideNetwork | None = None
    objects_per_decode: int = 0
    views_at_test: ViewsAtTest = "one"
    smallest_part: float = 0.0


class Segmenter(nn.Module, ABC):
    """Map a batch to mask logits, one row an object.

    Attributes:
        views_at_test: Which views of an image ``inference.stitching.answer`` averages; ``forward`` itself sees one.
        smallest_part: What its masks drop and fill, as ``SamParts`` says; logits know nothing of it.
    """

    views_at_test: ViewsAtTest = "one"
    smallest_part: float = 0.0

    @property
    @abstractmethod
    def input_rule(self) -> InputRule:
        """Return the input rule that the data must follow."""

    @abstractmethod
    def forward(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return logits (N, M, h, w) for the batch's N objects.

        Prompts that the batch's queries bring are answered; without any, the recipe's own way of asking is taken.

        Raises:
            ValueError: If that way needs the truth and the batch has none.
        """

    @abstractmethod
    def base_weights(self) -> WeightsIdentity | None:
        """Return the identity of the frozen weights under the trained ones, or None when all is trained from scratch."""

    def encoder_engine(self) -> str | None:
        """Return name and version of what encodes images on a CPU, for the key of a cache; None for PyTorch."""
        return None

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes that label every image, in their order; empty where objects are segmented."""
        return ()

    def masks_per_image(self) -> int:
        """Return how many objects every new image is asked for: one, or one a class."""
        return max(1, len(self.classes()))

    def takes_prompts(self) -> bool:
        """Tell whether it answers the boxes, points and masks of a query. False by default."""
        return False

    def predicts_iou(self) -> bool:
        """Tell whether its answer says how good each mask is, which ``IouHeadLoss`` compares. True by default."""
        return True

    def reads_names(self) -> bool:
        """Tell whether it is asked by what is to be found, ``Queries.names``. False by default."""
        return False

    def asks_user(self) -> str | None:
        """Return None where new images need no prompt, else how the model was asked in training, such as ``BoxPrompt``."""
        return None

    def reads_priors(self) -> bool:
        """Tell whether it needs the batch's prior maps. False by default."""
        return False

    def mixes_slices(self) -> bool:
        """Tell whether the answer about a slice rests on the other slices of its chunk. False by default."""
        return False

    def fresh_parts(self) -> tuple[str, ...]:
        """Return the names of the network's own modules for which its weights have no values; none by default."""
        return ()

    def given(self, batch: SegmentationBatch) -> Queries:
        """Return the batch's queries with every prompt that the answer of ``forward`` rests on; as they are by default."""
        return batch.queries

    def not_precomputable(self) -> str | None:
        """Return None when the image embedding is static, else the recipe key that makes it dynamic and why."""
        return "model.segmenter: this segmenter has no frozen encoder, so there is no embedding to cache"

    def not_mergeable(self) -> str | None:
        """Return None when the tuned network can be written as one plain checkpoint, else why not."""
        return f"model.segmenter: {type(self).__name__} is no plain SAM"

    def embedded(self, batch: SegmentationBatch) -> SegmentationBatch:
        """Return the batch with the embeddings of its images, so that several questions cost one encoder pass."""
        return batch

    def candidates(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return SAM's three masks for an ambiguous prompt; the one of ``forward`` where a network has only one."""
        prediction: MaskPrediction = self(batch)
        return prediction

    def every_mask(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return the mask of ``forward`` and then the ``candidates``; that of ``forward`` where a network has only one."""
        prediction: MaskPrediction = self(batch)
        return prediction

    def encode(self, images: Tensor, frames: Sequence[Frame]) -> Tensor:
        """Return the static image embeddings of B images as the one tensor (B, ...) that is kept.

        Raises:
            NotImplementedError: If ``not_precomputable`` names a reason.
        """
        raise NotImplementedError(self.not_precomputable())

    def first_tuned(self) -> str:
        """Return the dotted name of the encoder's first block that is tuned, where blocks before it are fixed.

        Raises:
            RecipeError: If there is no such; the message says why.
        """
        raise RecipeError(f"data.cache_embeddings: prefix cannot be combined with {self.not_precomputable()}. Set it to false.")

    def encode_prefix(self, images: Tensor, frames: Sequence[Frame]) -> Tensor:
        """Return what reaches the encoder's first tuned block for B images, the tensor (B, ...) that is kept.

        Raises:
            RecipeError: As ``first_tuned``.
        """
        raise NotImplementedError(self.first_tuned())

    def untuned(self) -> Segmenter | None:
        """Return the same network, asked in the same way, without anything that was trained; None where there is no such."""
        return None

    def check_data(self, data: SegmentationDataModule) -> None:
        """Refuse data that this network cannot learn from, before any work; accepts all by default.

        Raises:
            RecipeError: Naming the key.
        """

    def inference_variants(self, batch: SegmentationBatch) -> Mapping[str, MaskPrediction]:
        """Return what every kind of inference that it offers predicts, by name; none by default."""
        return {}

    def drawn(self, batch: SegmentationBatch) -> SegmentationBatch:
        """Return a training batch with the prompts that can be drawn before it moves to a GPU, which need not wait then."""
        return batch

    def training_losses(self, batch: SegmentationBatch, loss: MaskLoss) -> dict[str, Tensor]:
        """Return the scalar terms of one training step, by name; their sum is minimised by one backward pass.

        A segmenter that predicts a batch several times (rounds of clicks, raw and fused input) returns the weighted terms of
        all its predictions; by default there is one prediction.
        """
        terms: dict[str, Tensor] = loss(self(batch), batch)
        return terms

    def auxiliary_losses(self) -> Mapping[str, Tensor]:
        """Return scalars added to the loss, by name; none by default."""
        return {}

    def after_backward(self, step: int) -> None:
        """Run after each backward pass; nothing by default."""

    def after_step(self, step: int) -> None:
        """Run after each step of the optimizer, counted from 0; nothing by default."""

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the state dict; nothing by default."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``extra_state`` returned; nothing by default."""


def check_one_per_image_target(target: str, owner: str) -> None:
    """Refuse a target with several objects an image for a network that answers one.

    Raises:
        RecipeError: If the target is not ``binary``.
    """
    if target != "binary":
        raise RecipeError(
            f"data.target: {owner} gives one mask per image, so labels must be joined; got {target}. Set data.target: binary, "
            "or take a network that is asked with boxes, as in the recipe medsam_box, which gives every object its own mask."
        )
