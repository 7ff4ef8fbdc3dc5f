"""Ladder network: a ResNet-18 beside the frozen encoder, joined at the embedding by a gate.

Paper: Chai et al. 2023, Ladder Fine-tuning approach for SAM integrating complementary network, arXiv 2306.12737 (SAM-LST).
Authors' code: 11yxk/SAM-LST @ 3cc17b9.

Differs from the authors' code:
- With ``join: residual`` (the default) the branch starts switched off, so training starts at SAM. ``join: convex`` is theirs:
  both are mixed half and half at the start.
- The ResNet starts from random weights unless ``weights`` names a file; nothing is downloaded.
- It reads pixels normalised by ImageNet's mean and standard deviation, theirs as the data set stores them; padding is black.
- Other grids and channel counts are met by a resize and a 1x1 convolution; theirs fits 16 pixels a cell and 256 channels only.
- What of the mask decoder learns is named by the backbone's ``trainable``; theirs is ``mask_decoder.output_upscaling``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.backbone.weights import load_state_dict_file
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.side.base import SideNetwork
from medsam_tune.types import EncoderInput, ImageEmbeddings

_MEAN = (123.675, 116.28, 103.53)
_DEVIATION = (58.395, 57.12, 57.375)
_STRIDE = 16
_CHANNELS = 256


class LadderNetwork(SideNetwork):
    """Add a small convolutional network's view of the image to SAM's embedding; no gradient passes through the encoder.

    Args:
        join: ``residual``: E + g * R, g = 0 at the start. ``convex``: s * E + (1 - s) * R, s = sigmoid(g) = 0.5 at the start.
        image_side: Side in pixels to which the image is resized for the branch; null keeps S.
        weights: A file with ResNet-18 weights under torchvision's names; null starts at random.

    Raises:
        RecipeError: If ``image_side`` is no positive multiple of 16.
        CheckpointError: If the file is missing or does not hold a ResNet-18.
    """

    def __init__(
        self,
        *,
        join: Literal["residual", "convex"] = "residual",
        image_side: int | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if image_side is not None and (image_side <= 0 or image_side % _STRIDE):
            raise RecipeError(
                f"model.side.image_side: {image_side} is no positive multiple of {_STRIDE}. "
                f"Set {max(1, round(image_side / _STRIDE)) * _STRIDE}, or null for the input's own."
            )
        self.join = join
        self.image_side = image_side
        self.branch = _resnet18_until_stride_16(weights)
        self.gate = nn.Parameter(torch.zeros(1))
        self.project: nn.Module = nn.Identity()
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(3, 1, 1), persistent=False)

    def attach(self, backbone: Backbone) -> None:
        """Project to the backbone's channels where it has not the ResNet's 256."""
        if backbone.embed_dim != _CHANNELS:
            self.project = nn.Conv2d(_CHANNELS, backbone.embed_dim, 1)

    def forward(self, inputs: EncoderInput, embeddings: ImageEmbeddings) -> ImageEmbeddings:
        """Map images (B, 3, S, S) in 0..255 and embeddings (B, C, g, g) to embeddings (B, C, g, g)."""
        return replace(embeddings, main=self._joined(inputs.images, embeddings.main))

    def _joined(self, images: Tensor, image_embeddings: Tensor) -> Tensor:
        pixels = (images - self.get_buffer("mean")) / self.get_buffer("deviation")
        if self.image_side is not None:
            pixels = F.interpolate(pixels, (self.image_side, self.image_side), mode="bilinear", antialias=True)
        seen = cast(Tensor, self.project(self.branch(pixels.to(self.gate.dtype))))
        if seen.shape[-2:] != image_embeddings.shape[-2:]:
            seen = F.interpolate(seen, image_embeddings.shape[-2:], mode="bilinear")
        if self.join == "residual":
            return image_embeddings + self.gate * seen
        share = torch.sigmoid(self.gate)
        return share * image_embeddings + (1 - share) * seen


def _resnet18_until_stride_16(weights: str | None) -> nn.Sequential:
    """Build torchvision's ResNet-18 up to its third stage: 256 channels at a sixteenth of the side."""
    from torchvision.models import resnet18  # type: ignore[import-untyped]

    network = resnet18(weights=None)
    if weights is not None:
        _load(network, Path(weights))
    stages = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    return nn.Sequential(OrderedDict((name, network.get_submodule(name)) for name in stages))


def _load(network: nn.Module, path: Path) -> None:
    state = load_state_dict_file(path)
    wanted = network.state_dict()
    faults = [name for name in wanted if name not in state or state[name].shape != wanted[name].shape]
    if faults:
        raise CheckpointError(
            f"{path}: is no ResNet-18 under torchvision's names: {len(faults)} entries are missing or of another shape "
            f"({', '.join(faults[:3])}). Save torchvision's resnet18().state_dict()."
        )
    network.load_state_dict({name: state[name] for name in wanted})
