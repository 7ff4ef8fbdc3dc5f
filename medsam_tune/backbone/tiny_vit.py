"""TinyViT image encoder of MobileSAM and LiteMedSAM, with the parameter names of their released files.

Paper: Wu et al. 2022, TinyViT: Fast Pretraining Distillation for Small Vision Transformers; MobileSAM: Zhang et al. 2023.
Authors' code: https://github.com/ChaoningZhang/MobileSAM @ d6c9073, ``mobile_sam/modeling/tiny_vit_sam.py`` (Apache-2.0); the
LiteMedSAM branch of https://github.com/bowang-lab/MedSAM changes the stem from two strided 3x3 to two 1x1 convolutions.

Differs from the authors' code:
- The attention biases are looked up in every forward pass; theirs are cached when eval mode begins, which goes stale when
  weights are loaded or trained afterwards.
- The input size is read from the tensor, so any side that the strides divide works; theirs is fixed at construction.
- Tensors stay channels-last throughout.
- No classification head (MobileSAM's file holds an unused one) and no drop path (0 in both released settings).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from medsam_tune.backbone.anatomy import Block, EncoderAnatomy, Projection, attending_block, take_over
from medsam_tune.backbone.encoder_places import DepthPlace, SliceAttention, attend_adapted, close_places
from medsam_tune.backbone.recomputing import RecomputingBlock
from medsam_tune.backbone.whole_chunks import depth_attention

_HOME = "image_encoder"


class ConvNorm(nn.Sequential):
    """Convolve without bias, keep the size but for the stride, and batch-normalise."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=conv, bn=nn.BatchNorm2d(out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W'); with fixed statistics the norm is a factor and a summand of the convolution."""
        conv, norm = cast(nn.Conv2d, self.c), cast(nn.BatchNorm2d, self.bn)
        if norm.training or not (is_plain(conv, nn.Conv2d) and is_plain(norm, nn.BatchNorm2d)):
            return cast(Tensor, norm(conv(x)))
        weight, bias = self.folded()
        if self.is_pointwise():
            # PyTorch sends these to its slow convolution where channels are last.
            return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        return F.conv2d(x, weight, bias, conv.stride, cast("tuple[int, int]", conv.padding), groups=conv.groups)

    def is_pointwise(self) -> bool:
        """Say whether it maps each pixel for itself."""
        conv = cast(nn.Conv2d, self.c)
        return conv.kernel_size == (1, 1) and conv.stride == (1, 1)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight (C', C / groups, k, k) and bias (C') of the convolution with the norm's fixed statistics in them."""
        conv, norm = cast(nn.Conv2d, self.c), cast(nn.BatchNorm2d, self.bn)
        scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
        return conv.weight * scale[:, None, None, None], norm.bias - cast(Tensor, norm.running_mean) * scale


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Say whether a layer is of this class itself and nobody hooked into it, so that its weights are all that it does."""
    return type(layer) is kind and not layer._forward_hooks and not layer._forward_pre_hooks


class Stem(nn.Module):
    """Embed pixels: (B, 3, S, S) to (B, C, S, S) by 1x1 convolutions, or to a quarter of the side by strided 3x3 ones."""

    def __init__(self, channels: int, stride: Literal[1, 4]) -> None:
        super().__init__()
        kernel, step = (3, 2) if stride == 4 else (1, 1)
        first = ConvNorm(3, channels // 2, kernel, stride=step)
        self.seq = nn.Sequential(first, nn.GELU(), ConvNorm(channels // 2, channels, kernel, stride=step))

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return cast(Tensor, self.seq(images))


class ConvBlock(RecomputingBlock):
    """Expand four times, convolve each channel, project back, add the input (MobileNet v2's block with GELU)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.conv1 = ConvNorm(channels, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels)

    def mix(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(hidden))


class PatchMerging(nn.Module):
    """Change the channels and divide the side by ``stride``."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, stride=stride, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        return cast(Tensor, self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class WindowAttention(nn.Module):
    """Attend within one window, with a learned bias per head for each absolute offset (|dy|, |dx|).

    The rows of ``qkv`` interleave per head: q, k and v of head 0, then those of head 1; SAM's ViT has all q, all k, all v.

    Args:
        channels: C, divided by the heads.
        num_heads: Heads.
        window: Side of the window in tokens.
    """

    bias_index: Tensor

    def __init__(self, channels: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window * window))
        self.register_buffer("bias_index", _offset_index(window), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map windows (W, L, C) of L = window * window tokens to the same shape."""
        return cast(Tensor, self.proj(self.attended(self.qkv(self.norm(tokens)), self.bias())))

    def bias(self) -> Tensor:
        """Return what is added to the scores, (heads, L, L)."""
        return self.attention_biases[:, self.bias_index]

    def attended(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Attend by queries, keys and values (W, L, 3 C), and return (W, L, C)."""
        query, key, value = qkv.view(*qkv.shape[:2], self.num_heads, -1).transpose(1, 2).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype)[None])
        return attended.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Normalise, widen four times, GELU, project back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        return cast(Tensor, self.fc2(F.gelu(self.fc1(self.norm(x)))))


class AttentionBlock(RecomputingBlock):
    """Window attention, a depthwise 3x3 convolution, and an MLP."""

    def __init__(self, channels: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(channels, num_heads, window)
        self.local_conv = ConvNorm(channels, channels, 3, groups=channels)
        self.mlp = Mlp(channels)

    def mix(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        tokens = x.permute(0, 2, 3, 1)
        tokens = tokens + self._attend(tokens)
        mixed: Tensor = self.local_conv(tokens.permute(0, 3, 1, 2))
        tokens = mixed.permute(0, 2, 3, 1)
        return cast(Tensor, tokens + self.mlp(tokens)).permute(0, 3, 1, 2)

    def _attend(self, tokens: Tensor) -> Tensor:
        """Attend within windows of (B, H, W, C); the zeros that fill the last windows take part, as in the released network."""
        batch, height, width, channels = tokens.shape
        side = self.window
        padded = F.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = padded.shape[1] // side, padded.shape[2] // side
        windows = padded.view(batch, rows, side, columns, side, channels).transpose(2, 3)
        attended = self.attn(windows.reshape(-1, side * side, channels))
        attended = attended.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        filled: Tensor = attended.reshape(padded.shape)
        return filled[:, :height, :width]


class Stage(nn.Module):
    """Blocks of one width, then a patch merging, but for the last stage."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the next stage's input."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else cast(Tensor, self.downsample(x))


class TinyViT(nn.Module):
    """Encode images (B, 3, S, S) to embeddings (B, C, g, g) with g = S / (4 * stem_stride).

    Args:
        img_size: S the weights were trained at, in pixels; read by segment_anything's predictor.
        stem_stride: 4 for MobileSAM (1024 to a grid of 64), 1 for LiteMedSAM (256 to 64).
        embed_dims: Channels of the four stages.
        depths: Blocks of the four stages; the first stage's are convolutional.
        num_heads: Heads of the four stages; the first is not used.
        windows: Window sides of the four stages in tokens; the first is not used.
        out_channels: C.
    """

    def __init__(
        self,
        img_size: int,
        stem_stride: Literal[1, 4],
        *,
        embed_dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (2, 4, 5, 10),
        windows: Sequence[int] = (7, 7, 14, 7),
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.stem_stride = stem_stride
        self.patch_embed = Stem(embed_dims[0], stem_stride)
        stages = []
        for i, (dim, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            blocks = [ConvBlock(dim) if i == 0 else AttentionBlock(dim, num_heads[i], windows[i]) for _ in range(depth)]
            # The last merging keeps the side: the grid of the embedding is that of the third stage.
            merging = PatchMerging(dim, embed_dims[i + 1], stride=1 if i == 2 else 2) if i < 3 else None
            stages.append(Stage(blocks, merging))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dims[-1], out_channels, 1, bias=False),
            LayerNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            LayerNorm2d(out_channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, S, S) to image embeddings (B, C, g, g)."""
        x = self.embedded(images)
        for layer in self.layers:
            x = layer(x)
        return self.finished(x)

    def embedded(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, S, S) to the first block's input (B, C, H, W)."""
        # On CPU the convolutions are faster on this layout, and the token view (B, H, W, C) costs no copy.
        return cast(Tensor, self.patch_embed(images.contiguous(memory_format=torch.channels_last)))

    def finished(self, x: Tensor) -> Tensor:
        """Map the last block's output (B, C, g, g) to image embeddings."""
        return cast(Tensor, self.neck(x)).contiguous()


class OpenTinyVitBlock(AttentionBlock):
    """Stand for an attention block of TinyViT; the norms live inside its attention and its MLP.

    Attributes:
        attention_adapter: Maps the attention's output (B, H, W, C) before it is added to the residual.
        mlp_adapter: Called with the stream before and after the MLP's norm, both (B, H, W, C); added beside the MLP.
        input_adapter: Maps the block's input (B, H, W, C).
        middle_adapter: Maps the stream (B, H, W, C) between the local convolution and the MLP.
        depth_adapter: A ``DepthPlace``, which maps the attention over the slices of a chunk, to be added to the attention's.

    Args:
        block: The block whose children are taken over.
    """

    attention_adapter: nn.Module | None
    mlp_adapter: nn.Module | None
    input_adapter: nn.Module | None
    middle_adapter: nn.Module | None
    depth_adapter: DepthPlace | None

    def __init__(self, block: nn.Module) -> None:
        # Not AttentionBlock's own: it would build fresh children.
        nn.Module.__init__(self)
        take_over(self, block)
        self.window = cast(AttentionBlock, block).window
        close_places(self)

    def mix(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        tokens = x.permute(0, 2, 3, 1)
        if self.input_adapter is not None:
            tokens = self.input_adapter(tokens)
        tokens = tokens + attend_adapted(self, self._slice_attention(), tokens)
        mixed: Tensor = self.local_conv(tokens.permute(0, 3, 1, 2))
        tokens = mixed.permute(0, 2, 3, 1)
        if self.middle_adapter is not None:
            tokens = self.middle_adapter(tokens)
        result: Tensor = tokens + self.mlp(tokens)
        if self.mlp_adapter is not None:
            result = result + self.mlp_adapter(tokens, self.mlp.norm(tokens))
        return result.permute(0, 3, 1, 2)

    def _slice_attention(self) -> SliceAttention:
        return _InPlaneAndDepth(self._attend, self.attn)


@dataclass(frozen=True)
class _InPlaneAndDepth:
    """Attend within windows, and over slices with the same weights; each projects for itself, for windows come first here."""

    in_plane: Callable[[Tensor], Tensor]
    attention: WindowAttention

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.in_plane(tokens)

    def with_slices(self, tokens: Tensor, n_slices: int, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        attention = self.attention
        projected = attention.qkv(attention.norm(tokens)).flatten(1, 2).unflatten(-1, (attention.num_heads, -1))
        q, k, v = projected.chunk(3, dim=-1)
        across = attention.proj(depth_attention(q, k, v, n_slices, bias).view(tokens.shape))
        return self.in_plane(tokens), across


def tiny_vit_chain(encoder: TinyViT) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the links of the forward pass by dotted name: stem, blocks with the mergings between stages, neck."""
    chain: dict[str, Callable[[Tensor], Tensor]] = {f"{_HOME}.patch_embed": encoder.embedded}
    for stage, layer in enumerate(cast(Sequence[Stage], encoder.layers)):
        home = f"{_HOME}.layers.{stage}"
        chain |= {f"{home}.blocks.{i}": block for i, block in enumerate(layer.blocks)}
        if layer.downsample is not None:
            chain[f"{home}.downsample"] = layer.downsample
    return {**chain, f"{_HOME}.neck": encoder.finished}


def tiny_vit_anatomy(encoder: TinyViT) -> EncoderAnatomy:
    """Describe a TinyViT, or one whose blocks are open; its fused rows are q, k and v of head 0, then those of head 1."""
    blocks = tuple(
        _describe(f"{_HOME}.layers.{stage}.blocks.{i}", block, stage)
        for stage, layer in enumerate(cast(Sequence[Stage], encoder.layers))
        for i, block in enumerate(layer.blocks)
    )
    attending = [block for block in blocks if block.attention is not None]
    parts = {
        f"{_HOME}.{child}": tuple(f"{_HOME}.{child}.{name}" for name, _ in encoder.get_submodule(child).named_modules() if name)
        for child in ("patch_embed", "neck")
    }
    return EncoderAnatomy(
        blocks=blocks,
        parts=parts,
        projections={block.layers["attention.qkv"][0]: _rows(cast(WindowAttention, block.attention)) for block in attending},
        # Attention reads its windows as (B, L, C).
        grid_layers=frozenset(name for block in attending for name in block.layers["mlp"]),
        patch_embed=f"{_HOME}.patch_embed",
        patch_stride=encoder.stem_stride,
    )


def _describe(name: str, block: nn.Module, stage: int) -> Block:
    if isinstance(block, ConvBlock):
        return Block(name, block, width=len(cast(Tensor, block.conv3.get_submodule("c").weight)), layers={}, stage=stage)
    window = cast(AttentionBlock, block).window
    layers, norms = ("mlp.fc1", "mlp.fc2"), ("attn.norm", "mlp.norm")
    return attending_block(name, block, mlp=layers, norms=norms, window=window, opened=OpenTinyVitBlock, stage=stage)


def _rows(attention: WindowAttention) -> dict[Projection, Tensor]:
    by_head = torch.arange(len(attention.qkv.weight), device="cpu").view(attention.num_heads, 3, -1)
    q, k, v = (by_head[:, which].reshape(-1) for which in range(3))
    return {"q": q, "k": k, "v": v}


def _offset_index(window: int) -> Tensor:
    """Return (L, L) int64: for each pair of tokens the index |dy| * window + |dx| of their bias."""
    y, x = torch.arange(window * window) // window, torch.arange(window * window) % window
    return (y[:, None] - y).abs() * window + (x[:, None] - x).abs()
