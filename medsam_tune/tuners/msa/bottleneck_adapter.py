"""Medical SAM Adapter: bottleneck adapters in every encoder block and in the mask decoder, beside a frozen SAM.

Paper: Wu et al., Medical SAM Adapter: Adapting Segment Anything Model for Medical Image Segmentation, arXiv 2304.12620
(Medical Image Analysis 102, 2025). Authors' repository: SuperMedIntel/Medical-SAM-Adapter @ 0add836, GPL-3.0. This file was
written from the paper's description and contains none of its code.

Differs from the authors' code:
- SAM stays segment_anything's own, every key of it loaded; theirs drops 32 keys and rewires the decoder.
- LN1 acts before the windows are padded, as in SAM; theirs pads first, which changes 23 % of the tokens.
- Up-projections start at zero, so an untrained adapter changes nothing (``init: repo`` gives theirs).
- The decoder adapters and hyper-prompting of the paper exist.
- ReLU as in the paper (theirs: GELU); the bottleneck's width is set by ``ratio`` or ``rank`` (theirs raises for any).
- Without train_mask_decoder the decoder is frozen, as in the paper; theirs trains all of it.
- No depth adapters: they are for volumes, this is the 2-D method, and theirs are allocated although they take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.base import decoder_names
from medsam_tune.tuners.msa.bottleneck import Activation, Init, check_bottleneck
from medsam_tune.tuners.msa.bottleneck_peft import BottleneckConfig, place_names
from medsam_tune.tuners.parts import BlockRange
from medsam_tune.tuners.peft_tuner import PeftTuner


class BottleneckAdapter(PeftTuner):
    """Adapt SAM by small bottlenecks (Medical SAM Adapter).

    Encoder block: a' = a + Up(act(Down(a))) on the attention's output a before the residual add, and
    y = h + MLP(LN2(h)) + mlp_scale * Up(act(Down(LN2(h)))). Decoder block: an adapter after the token-to-image attention, with
    ``hyper`` steered by the prompt tokens, one beside the MLP, and one on the image tokens.

    Args:
        ratio: Width of the bottleneck as a share of the channels; 0.25 in the authors' code, 1/16 gives the paper's count.
        rank: Width in channels; wins over ``ratio``.
        activation: ``relu`` (paper) or ``gelu`` (authors' code).
        mlp_scale: Factor of the adapters beside the MLPs; 0.5 in the authors' code.
        mlp_input: ``normed``: they read LN2(h), as in the authors' code; ``residual``: they read h, as in the paper's figure.
        init: ``identity``: nothing changes before training; ``repo``: PyTorch's own, which moves the output.
        placement: Where in an encoder block: ``attention``, ``mlp`` or both; empty leaves the encoder alone.
        blocks: First and last encoder block, both included; null is all.
        decoder: ``none``, ``adapters``, or ``hyper`` for adapters with hyper-prompting, which needs box or point prompts.
        hyper_layers: How many prompt-written matrices follow each other.
        train_mask_decoder: Train the mask decoder's own weights too (authors' code: true, paper: false).

    Raises:
        RecipeError: If a width is less than 1 or nothing would be trained.
    """

    def __init__(
        self,
        *,
        ratio: float = 0.25,
        rank: int | None = None,
        activation: Activation = "relu",
        mlp_scale: float = 0.5,
        mlp_input: Literal["normed", "residual"] = "normed",
        init: Init = "identity",
        placement: Sequence[Literal["attention", "mlp"]] = ("attention", "mlp"),
        blocks: BlockRange | None = None,
        decoder: Literal["none", "adapters", "hyper"] = "hyper",
        hyper_layers: int = 1,
        train_mask_decoder: bool = False,
    ) -> None:
        if not placement and decoder == "none":
            raise RecipeError("model.tuner.placement: is empty and decoder is none, so no adapter is placed. Set one of them.")
        check_bottleneck(ratio=ratio, rank=rank)
        if hyper_layers < 1:
            raise RecipeError(f"model.tuner.hyper_layers: {hyper_layers} is no number of layers. Set 1, or decoder: adapters.")
        config = BottleneckConfig(
            ratio=ratio,
            rank=rank,
            activation=activation,
            mlp_scale=mlp_scale,
            mlp_input=mlp_input,
            init=init,
            placement=placement,
            blocks=blocks,
            decoder=decoder,
            hyper_layers=hyper_layers,
        )
        super().__init__(config, parts=(), blocks=blocks)
        self.train_mask_decoder = train_mask_decoder
        self.declares_identity = init == "identity"
        self.identity_note = "" if self.declares_identity else "init: repo starts the up-projections at random"

    def insert(self, backbone: Backbone) -> list[str]:
        """Put the adapters into their places and return the names of what learns.

        Raises:
            RecipeError: If the block range does not fit the encoder.
        """
        names = super().insert(backbone)
        if self.train_mask_decoder:
            names += [name for name in decoder_names(backbone) if name not in set(names)]
        return names

    def targets(self, backbone: Backbone) -> list[str]:
        """Return the places of the adapters."""
        return place_names(backbone, self.config)
