"""AutoSAM: a network that looks at the image and emits SAM's dense prompt.

Paper: Shaharabany, Dahan, Giryes and Wolf 2023, AutoSAM: Adapting SAM to Medical Images by Overloading the Prompt Encoder,
arXiv 2306.06370. Authors' repository: talshaharabany/AutoSAM @ 3959d72, ``ModelEmb`` in models/model_single.py.

Differs from the authors' code:
- The image is normalised exactly once, and the padding stays zero.
- The feature network ends at stride 16, the last map that is used; 42 % of the authors' parameters never learn.
- The grid and the channels come from the backbone, so any SAM works.
- The prompt may be added to SAM's no-mask embedding and may start there (``prompt_mode``, ``init``).
- Any timm network can stand in for HarDNet.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import Frame, InputRule, normalise
from medsam_tune.prompt_encoders.base import PromptEncoder
from medsam_tune.prompt_encoders.decoder import Norm, OutAct, PromptDecoder
from medsam_tune.prompt_encoders.features import TimmFeatures, build_features
from medsam_tune.prompt_encoders.hardnet import HarDNetArch, HarDNetFeatures
from medsam_tune.types import EncoderInput, ImageEmbeddings, PromptEmbeddings, Queries

Init = Literal["paper", "neutral"]
PromptMode = Literal["dense", "dense_plus_no_mask"]


def generator_images(images: Tensor, frames: Sequence[Frame], size: int) -> Tensor:
    """Normalise padded images (B, 3, S, S) in 0..255 and resize them to (B, 3, size, size).

    ImageNet's mean and standard deviation over the valid area, zeros in the padding, then bilinear from corner to corner
    without antialiasing, as in the authors' train.py. The backbone's own normalisation plays no part.
    """
    normalised = normalise(images, frames, InputRule(int(images.shape[-1])))
    if normalised.shape[-2:] == (size, size):
        return normalised
    return F.interpolate(normalised, (size, size), mode="bilinear", align_corners=True)


def check_one_per_image(queries: Queries, n_images: int, owner: str) -> None:
    """Raise unless exactly one object an image is asked for, in the order of the images.

    Raises:
        RecipeError: If an image has no object or more than one.
    """
    # Counted on the host: a look at the values would wait for the GPU in every step.
    if queries.n_objects != n_images or (queries.image_index.device.type == "cpu" and not _ascending(queries.image_index)):
        raise RecipeError(
            f"data.target: {owner} gives one mask per image, but this batch has {queries.n_objects} objects on {n_images} "
            "images. Set data.target: binary, which joins the labels of an image."
        )


def _ascending(image_index: Tensor) -> bool:
    # A graph that is exported has no values to look at.
    return torch.compiler.is_compiling() or torch.equal(image_index, torch.arange(len(image_index)))


class PromptGenerator(PromptEncoder):
    """Emit one dense prompt per image and no sparse token, as every prompt generator does.

    Args:
        add_no_mask: Whether the network's output is added to SAM's no-mask embedding or stands alone.
    """

    one_per_image = True

    def __init__(self, *, add_no_mask: bool) -> None:
        super().__init__()
        self.add_no_mask = add_no_mask
        self._attached = False

    def attach(self, backbone: Backbone) -> None:
        """Build the layers that depend on the backbone's grid g and channels C.

        Raises:
            RecipeError: If the generator is attached already.
        """
        if self._attached:
            raise RecipeError(
                "model.prompt_encoder: this generator is attached to a backbone already. Build one generator per segmenter."
            )
        self.build(channels=backbone.embed_dim, grid=backbone.embedding_size)
        self._attached = True

    @abstractmethod
    def build(self, *, channels: int, grid: int) -> None:
        """Build the layers that depend on C and g."""

    @abstractmethod
    def generate(self, images: Tensor, frames: Sequence[Frame], image_embeddings: Tensor) -> Tensor:
        """Return the prompt (B, C, g, g) of images (B, 3, S, S) in 0..255 with embeddings (B, C, g, g)."""

    def forward(
        self, queries: Queries, inputs: EncoderInput, embeddings: ImageEmbeddings, backbone: Backbone
    ) -> PromptEmbeddings:
        """Return sparse (B, 0, C) and dense (B, C, g, g) embeddings.

        Raises:
            RecipeError: If an image has no object or more than one.
        """
        check_one_per_image(queries, len(inputs.images), type(self).__name__)
        dense = self.generate(inputs.images, inputs.frames, embeddings.main)
        if self.add_no_mask:
            dense = dense + backbone.no_mask_embedding()
        return PromptEmbeddings(dense.new_zeros(queries.n_objects, 0, dense.shape[1]), dense)


class ImagePromptGenerator(PromptGenerator):
    """Generate the prompt from the image with a feature network and AutoSAM's decoder.

    Args:
        features: Returns maps at strides 4, 8, 16 and, where built so, 32; has ``channels``.
        gen_size: Side of the network's own input in pixels.
        width: None for the paper's decoder, a number for a slimmer one.
        norm: Normalisation of the decoder; ``group`` for batches of 1 to 4 images.
        out_act: ``tanh`` keeps the prompt in -1..1.
        init: ``paper``: random; ``neutral``: the prompt starts as SAM's no-mask embedding, so the segmenter starts as SAM
            without a prompt.
        prompt_mode: ``dense``: the output is the prompt; ``dense_plus_no_mask``: it is added to the no-mask embedding. None
            takes what ``init`` needs.

    Raises:
        RecipeError: If ``init`` and ``prompt_mode`` contradict each other, or ``gen_size`` is too small.
    """

    def __init__(
        self,
        features: HarDNetFeatures | TimmFeatures,
        *,
        gen_size: int = 256,
        width: int | None = None,
        norm: Norm = "batch",
        out_act: OutAct = "tanh",
        init: Init = "paper",
        prompt_mode: PromptMode | None = None,
    ) -> None:
        if init == "neutral" and prompt_mode == "dense":
            raise RecipeError(
                "model.prompt_encoder.prompt_mode: init: neutral starts at SAM's no-mask embedding, prompt_mode: dense leaves "
                "it out. Set prompt_mode: dense_plus_no_mask or init: paper."
            )
        check_gen_size(gen_size)
        super().__init__(add_no_mask=init == "neutral" or prompt_mode == "dense_plus_no_mask")
        self.features = features
        self.gen_size, self.width = gen_size, width
        self.norm, self.out_act, self.init = norm, out_act, init

    def build(self, *, channels: int, grid: int) -> None:
        """Build the decoder."""
        self.decoder = PromptDecoder(
            self.features.channels,
            channels,
            grid=grid,
            width=self.width,
            norm=self.norm,
            out_act=self.out_act,
            zero_init=self.init == "neutral",
        )

    def generate(self, images: Tensor, frames: Sequence[Frame], image_embeddings: Tensor) -> Tensor:
        """Return the prompt (B, C, g, g); the image embeddings are not read."""
        pixels = generator_images(images, frames, self.gen_size).to(next(self.parameters()).dtype)
        prompt: Tensor = self.decoder(self.features(pixels))
        return prompt


def check_gen_size(gen_size: int) -> None:
    """Raise unless the generator's input is at least 32 px wide.

    Raises:
        RecipeError: If ``gen_size`` is smaller.
    """
    if gen_size < 32:
        raise RecipeError(
            f"model.prompt_encoder.gen_size: expected at least 32 pixels, got {gen_size}. The paper uses 256 to 512."
        )


class HarDNetPromptGenerator(ImagePromptGenerator):
    """Generate the prompt with a HarDNet, as AutoSAM does.

    Args:
        arch: The paper uses 85; 39ds is the lightest.
        gen_size: Side of the generator's own input in pixels; 256 to 512 in the authors' code.
        width: None for the paper's decoder, a number such as 64 for a slimmer one.
        norm: Normalisation of the decoder; ``group`` for batches of 1 to 4 images. HarDNet itself keeps BatchNorm.
        out_act: ``tanh`` keeps the prompt in -1..1, as in the paper.
        init: ``paper`` or ``neutral`` (starts as SAM without a prompt).
        prompt_mode: ``dense`` or ``dense_plus_no_mask``; None takes what ``init`` needs.
        use_stride32: Read the map at stride 32 too, through one more block.
        weights: A HarDNet weight file (authors' names or pytorchcv's); None starts from random weights, nothing is downloaded.
    """

    def __init__(
        self,
        arch: HarDNetArch = "68ds",
        *,
        gen_size: int = 256,
        width: int | None = None,
        norm: Norm = "batch",
        out_act: OutAct = "tanh",
        init: Init = "paper",
        prompt_mode: PromptMode | None = None,
        use_stride32: bool = False,
        weights: str | None = None,
    ) -> None:
        features = build_features(f"hardnet{arch}", strides=_strides(use_stride32), weights=weights)
        super().__init__(
            features, gen_size=gen_size, width=width, norm=norm, out_act=out_act, init=init, prompt_mode=prompt_mode
        )


class TimmPromptGenerator(ImagePromptGenerator):
    """Generate the prompt with any timm network that has feature maps at strides 4, 8 and 16.

    Args:
        encoder: A timm name.
        gen_size: Side of the generator's own input in pixels.
        width: None for the paper's decoder over the network's channels, a number for a slimmer one.
        norm: Normalisation of the decoder; ``group`` for batches of 1 to 4 images.
        out_act: ``tanh`` keeps the prompt in -1..1, as in the paper.
        init: ``paper`` or ``neutral`` (starts as SAM without a prompt).
        prompt_mode: ``dense`` or ``dense_plus_no_mask``; None takes what ``init`` needs.
        use_stride32: Read the map at stride 32 too, through one more block.
        weights: A timm weight file of the whole network; None starts from random weights, nothing is downloaded.
    """

    def __init__(
        self,
        encoder: str = "resnet18",
        *,
        gen_size: int = 256,
        width: int | None = None,
        norm: Norm = "batch",
        out_act: OutAct = "tanh",
        init: Init = "paper",
        prompt_mode: PromptMode | None = None,
        use_stride32: bool = False,
        weights: str | None = None,
    ) -> None:
        features = build_features(encoder, strides=_strides(use_stride32), weights=weights)
        super().__init__(
            features, gen_size=gen_size, width=width, norm=norm, out_act=out_act, init=init, prompt_mode=prompt_mode
        )


def _strides(use_stride32: bool) -> tuple[int, ...]:
    return (4, 8, 16, 32) if use_stride32 else (4, 8, 16)
