"""A task network trained from scratch: the honest baseline beside every tuned SAM, and the network of input augmentation.

Training on raw and fused images and the choice between two outputs follow SAMAug: Zhang, Zhou, Wang, Liang and Chen 2023,
arXiv 2304.11332. Authors' repository: yizhezhang2000/SAMAug @ 53d84a4.

Differs from the authors' code:

- The losses on the raw and on the fused image are summed for one step of the optimizer, beta * raw + lambda * fused, as the
  paper writes it; the released script takes a step on the raw image, then another on the fused one.
- The choice between two outputs compares the entropy of their probabilities, as the paper says, over the valid area; the script
  compares mean distances from 0.5 after each map was stretched to 0..1 by its own minimum and maximum.
- Any network of segmentation-models-pytorch; the script is made for HSNet. Its three training scales are not reproduced.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.fusion.base import InputFusion
from medsam_tune.geometry import InputRule, normalise, valid_region
from medsam_tune.losses.base import MaskLoss
from medsam_tune.prompt_encoders.features import check_timm_name
from medsam_tune.prompt_encoders.generator import check_one_per_image
from medsam_tune.segmenters.base import SamParts, Segmenter, check_one_per_image_target
from medsam_tune.types import MaskPrediction, SegmentationBatch

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule

Inference = Literal["raw", "augmented", "mean", "min_entropy"]
Branch = Literal["raw", "augmented"]
INFERENCES: tuple[Inference, ...] = ("raw", "augmented", "mean", "min_entropy")
BRANCHES: tuple[Branch, ...] = ("raw", "augmented")
# Encoders halve the size five times at most.
_LARGEST_STRIDE = 32


class TaskSegmenter(Segmenter):
    """Segment with a network of segmentation-models-pytorch; one mask per image.

    With ``model.fusion`` one network sees every training image twice, raw and augmented (fused with its priors), in one pass.

    Args:
        parts: May hold a fusion, what is added to the image before the network; nothing else has a place here.
        arch: A class of segmentation-models-pytorch, such as ``Unet`` or ``FPN``.
        encoder: One of its encoders, such as ``resnet18``; timm's are named ``tu-...``.
        encoder_weights: A local weight file of the encoder; None starts from random weights, nothing is downloaded.
        side: S, the side of the padded input in pixels, a multiple of 32.
        raw_weight: With a fusion, factor of the loss on raw images, SAMAug's beta; 0 leaves these images out.
        augmented_weight: Factor of the loss on augmented images, SAMAug's lambda; 0 leaves these out.
        inference: What predicts: ``raw``, ``augmented``, the ``mean`` of their probabilities, or per image the one of
            ``min_entropy``: the lower binary entropy, averaged over the valid area. None is ``augmented`` with a fusion, and
            without one there is nothing to choose.

    Raises:
        RecipeError: If the architecture, the encoder, the side, a weight or the choice of inference does not fit.
        CheckpointError: If the weight file does not fit the encoder.
    """

    def __init__(
        self,
        parts: SamParts,
        arch: str = "Unet",
        *,
        encoder: str = "resnet18",
        encoder_weights: str | None = None,
        side: int = 256,
        raw_weight: float = 1.0,
        augmented_weight: float = 1.0,
        inference: Inference | None = None,
    ) -> None:
        super().__init__()
        fusion = _only_fusion(parts)
        self.views_at_test, self.smallest_part = parts.views_at_test, parts.smallest_part
        if side < _LARGEST_STRIDE or side % _LARGEST_STRIDE:
            raise RecipeError(f"model.segmenter.side: expected a multiple of {_LARGEST_STRIDE}, got {side}.")
        _check_blending(fusion, raw_weight=raw_weight, augmented_weight=augmented_weight, inference=inference)
        self._rule = InputRule(side)
        self.fusion = fusion
        self.branch_weights: Mapping[Branch, float] = {"raw": raw_weight, "augmented": augmented_weight}
        self.inference: Inference = inference or ("raw" if fusion is None else "augmented")
        self.network = _build_network(arch, encoder, channels=3 if fusion is None else fusion.channels)
        if encoder_weights is not None:
            _load_encoder(self.network.get_submodule("encoder"), encoder_weights, encoder)

    @property
    def input_rule(self) -> InputRule:
        """Return the rule: longest side and padding, ImageNet's mean and standard deviation."""
        return self._rule

    def reads_priors(self) -> bool:
        """Return True where the fusion does."""
        return self.fusion is not None and self.fusion.reads_priors

    def check_data(self, data: SegmentationDataModule) -> None:
        """Refuse several objects an image.

        Raises:
            RecipeError: If ``data.target`` is not ``binary``.
        """
        check_one_per_image_target(data.target, type(self).__name__)

    def predicts_iou(self) -> bool:
        """Return False: there is no head for it."""
        return False

    def base_weights(self) -> None:
        """Return None: everything is trained."""
        return

    def forward(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return logits (N, 1, S, S) of the recipe's inference; there is no predicted IoU.

        Raises:
            RecipeError: If an image has no object or more than one, or a fusion finds no priors.
        """
        branches = [branch for branch in BRANCHES if self.inference in (branch, "mean", "min_entropy")]
        logits = self._branch_logits(batch, branches)
        return MaskPrediction(_combine(logits, self.inference, batch))

    def training_losses(self, batch: SegmentationBatch, loss: MaskLoss) -> dict[str, Tensor]:
        """Return beta * loss(raw) + lambda * loss(augmented), term by term: ``raw_bce``, ``augmented_bce`` and so on.

        Without a fusion: the terms of the loss under their own names.

        Raises:
            RecipeError: If an image has no object or more than one, or the fusion finds no priors.
        """
        if self.fusion is None:
            return super().training_losses(batch, loss)
        branches = [branch for branch in BRANCHES if self.branch_weights[branch]]
        return {
            f"{branch}_{name}": self.branch_weights[branch] * term
            for branch, logits in self._branch_logits(batch, branches).items()
            for name, term in loss(MaskPrediction(logits), batch).items()
        }

    def inference_variants(self, batch: SegmentationBatch) -> dict[str, MaskPrediction]:
        """Return what every kind of inference predicts, from one forward pass; nothing where there is no fusion.

        Raises:
            RecipeError: If an image has no object or more than one, or the fusion finds no priors.
        """
        if self.fusion is None:
            return {}
        logits = self._branch_logits(batch, BRANCHES)
        return {inference: MaskPrediction(_combine(logits, inference, batch)) for inference in INFERENCES}

    def _branch_logits(self, batch: SegmentationBatch, branches: Sequence[Branch]) -> dict[Branch, Tensor]:
        """Run the network once over the raw and augmented inputs that ``branches`` names: (B, 1, S, S) each."""
        check_one_per_image(batch.queries, batch.n_images, type(self).__name__)
        inputs = torch.cat([self._network_input(batch, augmented=branch == "augmented") for branch in branches])
        # A predictor may be moved to half precision.
        inputs = inputs.to(next((weights.dtype for weights in self.network.parameters()), inputs.dtype))
        return dict(zip(branches, self.network(inputs).chunk(len(branches)), strict=True))

    def _network_input(self, batch: SegmentationBatch, *, augmented: bool) -> Tensor:
        images, frames, fusion = batch.images, batch.frames, self.fusion
        if fusion is None:
            return normalise(images, frames, self._rule)
        if fusion.space == "normalised":
            images = normalise(images, frames, self._rule)
        fused: Tensor = fusion(images, batch.priors) if augmented else fusion.without_priors(images)
        return fused if fusion.space == "normalised" else normalise(fused, frames, self._rule, limits=images)


def _only_fusion(parts: SamParts) -> InputFusion | None:
    for name in ("backbone", "prompts", "prompt_encoder", "tuner", "side"):
        if getattr(parts, name) is not None:
            raise RecipeError(f"model.{name}: TaskSegmenter is a network of its own and has no place for it. Remove the key.")
    return parts.fusion


def mean_probability_logits(*logits: Tensor) -> Tensor:
    """Return the logit of the mean of several probabilities, from their logits; exact where all saturate.

    Args:
        logits: Of one shape.

    Examples:
        >>> mean_probability_logits(torch.tensor([3.0, 200.0]), torch.tensor([-3.0, 200.0]))
        tensor([  0., 200.])
    """
    stacked = torch.stack(logits)
    return F.logsigmoid(stacked).logsumexp(dim=0) - F.logsigmoid(-stacked).logsumexp(dim=0)


def mean_entropy(logits: Tensor, region: Tensor) -> Tensor:
    """Return the binary entropy of sigmoid(logits) in nats, averaged over a region: (B,).

    Args:
        logits: (B, 1, S, S).
        region: (B, 1, S, S) bool, True where the image is.
    """
    # -p log p - (1 - p) log(1 - p), written so that it is exact for large logits.
    entropy = F.softplus(logits) - logits * logits.sigmoid()
    return torch.where(region, entropy, 0.0).sum(dim=(1, 2, 3)) / region.sum(dim=(1, 2, 3))


def _combine(logits: Mapping[Branch, Tensor], inference: Inference, batch: SegmentationBatch) -> Tensor:
    if inference == "raw" or inference == "augmented":
        return logits[inference]
    # Under autocast half precision would round saturated logits away.
    raw, augmented = logits["raw"].float(), logits["augmented"].float()
    if inference == "mean":
        return mean_probability_logits(raw, augmented)
    region = valid_region(batch.frames, raw.shape[-1], raw.device)
    augmented_is_surer = mean_entropy(augmented, region) < mean_entropy(raw, region)
    return torch.where(augmented_is_surer[:, None, None, None], augmented, raw)


def _check_blending(
    fusion: InputFusion | None, *, raw_weight: float, augmented_weight: float, inference: Inference | None
) -> None:
    if fusion is None and (inference is not None or (raw_weight, augmented_weight) != (1.0, 1.0)):
        raise RecipeError(
            "model.segmenter: raw_weight, augmented_weight and inference tell raw from augmented images, and without a fusion "
            "all are raw. Set model.fusion, or leave these keys out."
        )
    for name, value in (("raw_weight", raw_weight), ("augmented_weight", augmented_weight)):
        if value < 0:
            raise RecipeError(f"model.segmenter.{name}: must be 0 or more, got {value}.")
    if raw_weight == augmented_weight == 0:
        raise RecipeError(
            "model.segmenter: raw_weight and augmented_weight are both 0, so nothing is learned. Set one above 0."
        )


def _build_network(arch: str, encoder: str, *, channels: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    classes = [name for name in dir(smp) if isinstance(getattr(smp, name), type) and issubclass(getattr(smp, name), nn.Module)]
    if arch not in classes:
        raise RecipeError(f"model.segmenter.arch: expected one of {', '.join(classes)}, got {arch!r}.")
    known = smp.encoders.get_encoder_names()
    if encoder.startswith("tu-"):
        check_timm_name(encoder.removeprefix("tu-"))
    elif encoder not in known:
        close = ", ".join(difflib.get_close_matches(encoder, known, n=3)) or "none"
        raise RecipeError(
            f"model.segmenter.encoder: segmentation-models-pytorch has no encoder {encoder!r}. Close names: {close}. "
            "timm's encoders are named tu-NAME."
        )
    build = getattr(smp, arch)
    network: nn.Module = build(encoder_name=encoder, encoder_weights=None, in_channels=channels, classes=1)
    return network


def _load_encoder(encoder: nn.Module, path: str, name: str) -> None:
    from medsam_tune.backbone.weights import load_state_dict_file

    stored = load_state_dict_file(Path(path))
    try:
        encoder.load_state_dict(stored)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the encoder {name}. {error}") from error
