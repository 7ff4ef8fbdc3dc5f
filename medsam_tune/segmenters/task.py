"""A task network trained from scratch: the honest baseline beside every tuned SAM, and the network of input augmentation."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.fusion.base import InputFusion
from medsam_tune.geometry import InputRule, normalise
from medsam_tune.prompts.features import check_timm_name
from medsam_tune.prompts.generator import check_one_per_image
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.types import MaskPrediction, SegmentationBatch

# Encoders halve the size five times at most.
_LARGEST_STRIDE = 32


class TaskSegmenter(Segmenter):
    """Segment with a network of segmentation-models-pytorch; one mask per image.

    Args:
        arch: A class of segmentation-models-pytorch, such as ``Unet`` or ``FPN``.
        encoder: One of its encoders, such as ``resnet18``; timm's are named ``tu-...``.
        encoder_weights: A local weight file of the encoder; None starts from random weights, nothing is downloaded.
        side: S, the side of the padded input in pixels, a multiple of 32.
        fusion: What is added to the image before the network; nothing by default.

    Raises:
        RecipeError: If the architecture, the encoder, the side or the fusion does not fit.
        CheckpointError: If the weight file does not fit the encoder.
    """

    def __init__(
        self,
        arch: str = "Unet",
        *,
        encoder: str = "resnet18",
        encoder_weights: str | None = None,
        side: int = 256,
        fusion: InputFusion | None = None,
    ) -> None:
        super().__init__()
        if side < _LARGEST_STRIDE or side % _LARGEST_STRIDE:
            raise RecipeError(f"model.segmenter.side: expected a multiple of {_LARGEST_STRIDE}, got {side}.")
        if fusion is not None and fusion.channels != 3:
            raise RecipeError(f"model.segmenter.fusion: expected a fusion that returns 3 channels, got {fusion.channels}.")
        self._rule = InputRule(side=side, resize="longest_side", normalisation="sam")
        self.fusion = fusion
        self.network = _build_network(arch, encoder)
        if encoder_weights is not None:
            _load_encoder(self.network.get_submodule("encoder"), encoder_weights, encoder)

    @property
    def input_rule(self) -> InputRule:
        """Return the rule: longest side and padding, ImageNet's mean and standard deviation."""
        return self._rule

    def base_weights(self) -> None:
        """Return None: everything is trained."""
        return

    def frozen_parameters(self) -> Sequence[str]:
        """Return no name: everything is trained."""
        return []

    def forward(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return logits (N, 1, S, S); there is no predicted IoU.

        Raises:
            RecipeError: If an image has no object or more than one.
        """
        check_one_per_image(batch, type(self).__name__)
        images = batch.images if self.fusion is None else self.fusion(batch.images, batch.priors)
        logits: Tensor = self.network(normalise(images, batch.frames, self._rule))
        return MaskPrediction(logits)


def _build_network(arch: str, encoder: str) -> nn.Module:
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
    network: nn.Module = getattr(smp, arch)(encoder_name=encoder, encoder_weights=None, in_channels=3, classes=1)
    return network


def _load_encoder(encoder: nn.Module, path: str, name: str) -> None:
    from medsam_tune.backbone.weights import load_state_dict_file

    stored = load_state_dict_file(Path(path))
    try:
        encoder.load_state_dict(stored)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the encoder {name}. {error}") from error
