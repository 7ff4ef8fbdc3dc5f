"""What a network is made of, for whoever inserts something: blocks, layers by what they do, rows of q, k and v, idle parts.

A backbone describes itself (``Backbone.anatomy``) in the file that holds its family, where its attribute names are known.
Tuners ask and know none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from medsam_tune.backbone.recomputing import RecomputingBlock
from medsam_tune.errors import RecipeError

Projection = Literal["q", "k", "v"]
Output = Literal["single_mask", "multimask", "class_masks"]

PART_NAMES = (
    "image_encoder.attention",
    "image_encoder.attention.qkv",
    "image_encoder.attention.proj",
    "image_encoder.mlp",
    "image_encoder.norm",
    "image_encoder.patch_embed",
    "image_encoder.neck",
    "mask_decoder.attention",
    "mask_decoder.attention.self",
    "mask_decoder.attention.cross",
    "mask_decoder.attention.q",
    "mask_decoder.attention.k",
    "mask_decoder.attention.v",
    "mask_decoder.attention.out",
    "mask_decoder.mlp",
    "mask_decoder.norm",
    "mask_decoder.upscaling",
    "mask_decoder.hypernetwork",
)
"""What a part is called in every family that has it, so that a recipe holds for all of them; a family may add its own."""


ENCODER_PLACES = ("attention_adapter", "mlp_adapter", "input_adapter", "middle_adapter", "depth_adapter")
"""Where an open encoder block may hold an adapter, see ``Block.places``."""


class AdapterPlace(nn.Module):
    """Stand where an adapter may come, and change nothing.

    Args:
        kind: The place's name in its block, such as ``attention_adapter``.
        channels: C of the tokens there.
    """

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.channels = channels

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """Return what leaves the block as it is: 0 beside an MLP, else the first input."""
        return x.new_zeros(()) if self.kind == "mlp_adapter" else x


@dataclass(frozen=True)
class Block:
    """Describe one block of an image encoder or of a mask decoder's transformer.

    Attributes:
        name: Dotted name in the backbone.
        module: The block itself.
        width: C, channels of its tokens.
        layers: Dotted names of its layers by what they do (``attention``, ``attention.qkv``, ``attention.proj``, ``mlp``,
            ``norm``); what a block has not is left out.
        attention: What attends; None in a convolutional block. A decoder's block names its first.
        mlp: The MLP; None in a convolutional block.
        norms: Its norms in the order of the forward pass.
        window: Side in tokens of the window that it attends in; 0 attends over the whole grid.
        stage: Stage of a hierarchical encoder, from 0.
        places: Attributes of an open block that hold an adapter or None: ``attention_adapter`` (maps the attention's output
            before the residual add) and ``mlp_adapter`` (given the stream before and after the MLP's norm, added beside the
            MLP), in an encoder also ``input_adapter``, ``middle_adapter`` and ``depth_adapter``, in a decoder ``token_adapter``
            and ``image_adapter``; empty where none can come.
        opened: Makes a module with these places and the same parameters out of the block; None where the block has them itself.
    """

    name: str
    module: nn.Module
    width: int
    layers: Mapping[str, tuple[str, ...]]
    attention: nn.Module | None = None
    mlp: nn.Module | None = None
    norms: tuple[nn.Module, ...] = ()
    window: int = 0
    stage: int = 0
    places: tuple[str, ...] = ()
    opened: Callable[[nn.Module], nn.Module] | None = None


def attending_block(
    name: str,
    block: nn.Module,
    *,
    mlp: tuple[str, ...],
    norms: tuple[str, ...],
    window: int,
    opened: Callable[[nn.Module], nn.Module],
    stage: int = 0,
) -> Block:
    """Describe an encoder block with one fused projection for q, k and v in ``attn`` and with an ``mlp``.

    Args:
        name: Dotted name in the backbone.
        block: The block.
        mlp: Names of the MLP's layers in the block.
        norms: Names of its norms, in the order of the forward pass.
        window: As in ``Block``.
        opened: As in ``Block``.
        stage: As in ``Block``.
    """
    qkv, proj = f"{name}.attn.qkv", f"{name}.attn.proj"
    layers = {"attention": (qkv, proj), "attention.qkv": (qkv,), "attention.proj": (proj,)}
    named = {"mlp": mlp, "norm": norms}
    return Block(
        name=name,
        module=block,
        width=len(block.get_submodule(norms[0]).get_parameter("weight")),
        layers={**layers, **{part: tuple(f"{name}.{layer}" for layer in found) for part, found in named.items()}},
        attention=block.get_submodule("attn"),
        mlp=block.get_submodule("mlp"),
        norms=tuple(block.get_submodule(norm) for norm in norms),
        window=window,
        stage=stage,
        places=ENCODER_PLACES,
        opened=opened,
    )


@dataclass(frozen=True)
class EncoderAnatomy:
    """Describe an image encoder.

    Attributes:
        blocks: In the order of the forward pass, convolutional ones among them; recipes count them from 0.
        parts: Dotted names of the layers outside of blocks, by part name.
        projections: Which output rows (C,) int64 of a layer are q, k or v, by the layer's name; a layer that makes one of them
            alone has that one.
        grid_layers: Layers that read tokens as (B, H, W, C); others read (B, L, C).
        patch_embed: Dotted name of what maps normalised images (B, 3, S, S) to the first tokens (B, h, w, C).
        patch_stride: Pixels per token there.
    """

    blocks: tuple[Block, ...]
    parts: Mapping[str, tuple[str, ...]]
    projections: Mapping[str, Mapping[Projection, Tensor]]
    grid_layers: frozenset[str]
    patch_embed: str
    patch_stride: int

    def rows(self, layer: str, which: Projection) -> Tensor:
        """Return which output rows (C,) int64 of the projection ``layer`` are q, k or v, in the order of the heads.

        Raises:
            ValueError: If the layer makes none of these.

        Examples:
            >>> from medsam_tune.backbone import SamBackbone
            >>> SamBackbone("random_tiny").anatomy().encoder.rows("image_encoder.blocks.0.attn.qkv", "k")[:3]
            tensor([32, 33, 34])
        """
        if which not in self.projections.get(layer, {}):
            known = ", ".join(self.projections)
            raise ValueError(f"layer must be a projection of the encoder that makes {which} ({known}), got {layer!r}.")
        return self.projections[layer][which]


@dataclass(frozen=True)
class DecoderAnatomy:
    """Describe a mask decoder.

    Attributes:
        blocks: Of its transformer.
        parts: Dotted names of its layers by part name.
        idle: Dotted names of modules that an output never reaches, so that a loss on it gives them no gradient.
        without_effect: Dotted names of parameters that change no output, such as the bias of keys, which softmax ignores.
    """

    blocks: tuple[Block, ...]
    parts: Mapping[str, tuple[str, ...]]
    idle: Mapping[Output, tuple[str, ...]]
    without_effect: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Anatomy:
    """Describe a promptable network as it is now; ask again after something was inserted.

    Attributes:
        encoder: Its image encoder.
        decoder: Its mask decoder.
        norm_kinds: Types of its layer norms.
    """

    encoder: EncoderAnatomy
    decoder: DecoderAnatomy
    norm_kinds: tuple[type[nn.Module], ...] = field(default=(nn.LayerNorm,))

    def block_parts(self) -> tuple[str, ...]:
        """Return the names of the parts that the encoder's blocks consist of."""
        found = {f"image_encoder.{part}" for block in self.encoder.blocks for part in block.layers}
        return _in_order(found)

    def part_names(self) -> tuple[str, ...]:
        """Return all part names, encoder first."""
        return _in_order({*self.block_parts(), *self.encoder.parts, *self.decoder.parts})

    def reached(self, name: str, output: Output) -> bool:
        """Tell whether a loss on ``output`` gives the parameter of this dotted name a gradient."""
        return not any(name == path or name.startswith(f"{path}.") for path in self.decoder.idle[output])


def open_block(network: nn.Module, block: Block, *wanted: str) -> nn.Module:
    """Give a block its places for adapters, in place, and return it; one that is open already stays.

    Args:
        network: Where the block lives.
        block: From the network's anatomy.
        *wanted: Places that will be filled.

    Raises:
        RecipeError: If the block has no places, or not those that are wanted.
    """
    if not block.places or not set(wanted) <= set(block.places):
        raise RecipeError(
            f"model.tuner: {type(network).__name__} has no places for adapters in {block.name}. "
            "Choose a tuner of layers such as LoRA, or another backbone."
        )
    module = network.get_submodule(block.name)
    if block.opened is not None and not all(hasattr(module, place) for place in block.places):
        module = block.opened(module)
        network.set_submodule(block.name, module)
    return module


def take_over(opened: nn.Module, block: nn.Module) -> None:
    """Make the children of ``block`` those of ``opened``, so that every parameter keeps its name."""
    for name, child in block.named_children():
        opened.add_module(name, child)
    opened.training = block.training
    if isinstance(opened, RecomputingBlock) and isinstance(block, RecomputingBlock):
        opened.checkpointing = block.checkpointing


def _in_order(names: set[str]) -> tuple[str, ...]:
    known = [name for name in PART_NAMES if name in names]
    return (*known, *sorted(names.difference(known)))
