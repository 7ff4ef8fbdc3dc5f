"""TinyViT without gradients on a CPU: weights laid out for oneDNN once, norms folded in, GELU and residual within the product.

PyTorch lays weights out anew in each call, and writes a product to memory before GELU reads it. Its inductor calls the same
operators of oneDNN: https://github.com/pytorch/pytorch @ v2.14.0, ``aten/src/ATen/native/mkldnn/Linear.cpp`` and ``Conv.cpp``.
Tokens that are wide for a moment are made strip by strip: they stay in a core's cache, and memory needs no fresh pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Final, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from medsam_tune.backbone.tiny_vit import (
    AttentionBlock,
    ConvBlock,
    ConvNorm,
    Mlp,
    PatchMerging,
    Stage,
    Stem,
    TinyViT,
    WindowAttention,
)

Step = Callable[[Tensor], Tensor]
_Module = TypeVar("_Module", bound=nn.Module)
_After = Literal["none", "gelu"]
# Numbers in a strip of wide tokens, 2 MiB. With half of them, or eight times as many, a pass takes 2 to 5 % longer (Zen 4).
_STRIP: Final = 1 << 19


def has_onednn() -> bool:
    """Say whether this build of PyTorch has oneDNN's packed products."""
    names = ("_reorder_linear_weight", "_linear_pointwise", "_convolution_pointwise")
    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built_in and all(hasattr(torch.ops.mkldnn, name) for name in names)


def pack_tiny_vit(encoder: TinyViT, side: int) -> Step:
    """Return what maps normalised float32 images (B, 3, S, S) to the encoder's embeddings (B, C, g, g), image by image.

    Nothing keeps a graph. Results differ by rounding. Once a weight of the encoder has changed, it is to be packed anew.

    Args:
        encoder: A network in eval mode whose modules nobody replaced or hooked into.
        side: S; other sides give the same results, only slower.

    Raises:
        TypeError: If a module is of another class than TinyViT's own.
    """
    side //= encoder.stem_stride
    steps = [_stem(_of(encoder.patch_embed, Stem), side)]
    for stage in cast(Sequence[Stage], encoder.layers):
        steps += [_block(block, side) for block in stage.blocks]
        if stage.downsample is not None:
            steps.append(_merging(_of(stage.downsample, PatchMerging), side))
            side //= _stride(stage.downsample.conv2)
    return partial(_run, [*steps, _neck(encoder.neck, side)])


def _run(steps: Sequence[Step], pixels: Tensor) -> Tensor:
    with torch.no_grad():
        found = [_run_one(steps, image[None]) for image in pixels]
    return found[0] if len(found) == 1 else torch.cat(found)


def _run_one(steps: Sequence[Step], image: Tensor) -> Tensor:
    tokens = _tokens(image).contiguous()
    for step in steps:
        tokens = step(tokens)
    return _image(tokens).contiguous()


def _tokens(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1)


def _image(tokens: Tensor) -> Tensor:
    return tokens.permute(0, 3, 1, 2)


def _strips(height: int, lines: int) -> Iterator[slice]:
    yield from (slice(top, min(top + lines, height)) for top in range(0, height, lines))


def _lines(height: int, line: int, channels: int) -> int:
    """Return how many lines of so many tokens a strip has."""
    return max(1, min(height, _STRIP // (line * channels)))


def _of(module: object, kind: type[_Module]) -> _Module:
    """Return a module of this very class.

    Raises:
        TypeError: If it is of another, which may do something of its own.
    """
    if type(module) is not kind:
        raise TypeError(f"{type(module).__name__} stands where {kind.__name__} was expected")
    return module


class _Product:
    """A linear layer (..., C) to (..., C'), with GELU or a summand if wanted.

    Args:
        weight: (C', C).
        bias: (C').
        rows: Tokens at a time, for which the weight is laid out.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rows: int) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
        self._bias = bias.detach().clone()

    def __call__(self, tokens: Tensor, after: _After = "none") -> Tensor:
        found = torch.ops.mkldnn._linear_pointwise(
            tokens, self._weight, self._bias, after, [], "none" if after == "gelu" else ""
        )
        return cast(Tensor, found)

    def plus(self, tokens: Tensor, summand: Tensor) -> Tensor:
        """Return the product and a summand of its shape."""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(tokens, summand, self._weight, self._bias, "add"))


class _Convolution:
    """A convolution of tokens (B, H, W, C), with GELU if wanted.

    Args:
        conv: Stride, padding and groups.
        weight: (C', C / groups, k, k).
        bias: (C'), if there is one.
    """

    def __init__(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight.detach().clone(), None if bias is None else bias.detach()
        self._settings: tuple[Any, ...] = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)

    def __call__(self, tokens: Tensor, after: _After = "none", *, margin: int | None = None) -> Tensor:
        """Return (B, H', W', C').

        Args:
            tokens: (B, H, W, C).
            after: What follows.
            margin: Lines of zeros above and below in place of the layer's own.
        """
        padding, *settings = self._settings
        padding = padding if margin is None else [margin, padding[1]]
        rest: tuple[Any, ...] = (after, [], "none" if after == "gelu" else "")
        found = torch.ops.mkldnn._convolution_pointwise(_image(tokens), self._weight, self._bias, padding, *settings, *rest)
        return _tokens(found)


def _linear(layer: nn.Linear, rows: int) -> _Product:
    return _Product(layer.weight, layer.bias, rows)


def _conv_norm(layer: ConvNorm, rows: int) -> _Product | _Convolution:
    return _pointwise(layer, rows) if layer.is_pointwise() else _convolution(layer)


def _pointwise(layer: ConvNorm, rows: int) -> _Product:
    weight, bias = _folded(layer)
    return _Product(weight.flatten(1), bias, rows)


def _convolution(layer: ConvNorm) -> _Convolution:
    return _Convolution(cast(nn.Conv2d, layer.c), *_folded(layer))


def _folded(layer: ConvNorm) -> tuple[Tensor, Tensor]:
    _of(layer.c, nn.Conv2d)
    _of(layer.bn, nn.BatchNorm2d)
    return _of(layer, ConvNorm).folded()


def _stride(layer: ConvNorm) -> int:
    return cast(nn.Conv2d, layer.c).stride[0]


def _stem(stem: Stem, side: int) -> Step:
    first, gelu, second = stem.seq
    _of(gelu, nn.GELU)
    widen, project = (_conv_norm(_of(layer, ConvNorm), side * side) for layer in (first, second))
    return lambda tokens: project(widen(tokens, "gelu"))


class _Bottleneck:
    """Widen, GELU, 3x3 convolution, GELU, strip by strip.

    Args:
        block: What has ``conv1`` and ``conv2``.
        side: Side of its input in tokens.
    """

    def __init__(self, block: ConvBlock | PatchMerging, side: int) -> None:
        width = cast(nn.Conv2d, _of(block.conv1, ConvNorm).c).out_channels
        self.stride = _stride(_of(block.conv2, ConvNorm))
        self.lines = _lines(side // self.stride, side * self.stride, width)
        self._widen = _pointwise(block.conv1, (self.lines * self.stride + 2) * side)
        self._spread = _convolution(block.conv2)

    def strips(self, tokens: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the lines of the output of each strip, and the strip (B, lines, W', C') before its projection."""
        height = tokens.shape[1]
        for lines in _strips(-(-height // self.stride), self.lines):
            # A 3x3 convolution needs a line above and one below.
            first, last = lines.start * self.stride - 1, (lines.stop - 1) * self.stride + 2
            wide = self._widen(tokens[:, max(first, 0) : last], "gelu")
            yield lines, self._spread(_framed(wide, above=first < 0, below=last > height), "gelu", margin=0)


def _framed(tokens: Tensor, *, above: bool, below: bool) -> Tensor:
    """Add a line of zeros where the image ends."""
    return F.pad(tokens, (0, 0, 0, 0, int(above), int(below))) if above or below else tokens


def _merging(merging: PatchMerging, side: int) -> Step:
    bottleneck = _Bottleneck(merging, side)
    project = _pointwise(merging.conv3, bottleneck.lines * side // bottleneck.stride)
    return lambda tokens: torch.cat([project(strip) for _, strip in bottleneck.strips(tokens)], 1)


def _block(block: nn.Module, side: int) -> Step:
    return _conv_block(block, side) if type(block) is ConvBlock else _attention_block(_of(block, AttentionBlock), side)


def _conv_block(block: ConvBlock, side: int) -> Step:
    bottleneck = _Bottleneck(block, side)
    project = _pointwise(block.conv3, bottleneck.lines * side)

    def run(tokens: Tensor) -> Tensor:
        found = torch.empty_like(tokens)
        for lines, strip in bottleneck.strips(tokens):
            torch.ops.aten.gelu.out(project.plus(strip, tokens[:, lines]), out=found[:, lines])
        return found

    return run


def _attention_block(block: AttentionBlock, side: int) -> Step:
    attend, mlp = _attention(_of(block.attn, WindowAttention), block.window, side), _mlp(_of(block.mlp, Mlp), side)
    local = _convolution(block.local_conv)
    return lambda tokens: mlp(local(attend(tokens)))


def _attention(attention: WindowAttention, window: int, side: int) -> Step:
    """Return what adds the attention of tokens (1, H, W, C) within windows to them, a row of windows at a time.

    The zeros that fill the last windows have one query, key and value, and nobody asks for their output.
    """
    norm, rows = _of(attention.norm, nn.LayerNorm), window * side
    qkv, proj = (_linear(_of(layer, nn.Linear), rows) for layer in (attention.qkv, attention.proj))
    bias = attention.bias().detach()

    def attend(tokens: Tensor) -> Tensor:
        places, beyond, back = _window_places(tokens.shape[1], tokens.shape[2], window)
        windows = qkv(norm(tokens)).flatten(0, 2).index_select(0, places)
        if len(beyond):
            windows[beyond] = qkv(norm(tokens.new_zeros(1, tokens.shape[3])))
        attended = attention.attended(windows.view(-1, window * window, windows.shape[1]), bias).flatten(0, 1)
        return proj(attended.index_select(0, back).view(tokens.shape))

    return partial(_add_in_strips, attend, window)


@cache
def _window_places(height: int, width: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return where windows lie.

    Returns:
        For each place in the windows, one window after the other, the token that comes there; the places that no token fills;
        for each token (H * W) its place.
    """
    grid = torch.arange(height * width).view(height, width)
    filled = F.pad(grid, (0, -width % window, 0, -height % window), value=-1)
    rows, columns = (side // window for side in filled.shape)
    places = filled.view(rows, window, columns, window).transpose(1, 2).flatten()
    beyond = (places < 0).nonzero()[:, 0]
    return places.clamp(min=0), beyond, places.argsort()[len(beyond) :]


def _mlp(mlp: Mlp, side: int) -> Step:
    """Return what adds the MLP of tokens (B, H, W, C) to them."""
    norm = _of(mlp.norm, nn.LayerNorm)
    n_lines = _lines(side, side, _of(mlp.fc1, nn.Linear).out_features)
    widen, project = (_linear(_of(layer, nn.Linear), n_lines * side) for layer in (mlp.fc1, mlp.fc2))

    return partial(_add_in_strips, lambda tokens: project(widen(norm(tokens), "gelu")), n_lines)


def _add_in_strips(branch: Step, n_lines: int, tokens: Tensor) -> Tensor:
    """Return tokens (1, H, W, C) and what a branch makes of them, strip by strip."""
    found = torch.empty_like(tokens)
    for lines in _strips(tokens.shape[1], n_lines):
        torch.add(branch(tokens[:, lines]), tokens[:, lines], out=found[:, lines])
    return found


def _neck(neck: nn.Sequential, side: int) -> Step:
    first, first_norm, second, second_norm = neck
    weight = _of(first, nn.Conv2d).weight.flatten(1)
    project = _Product(weight, weight.new_zeros(len(weight)), side * side)
    mix = _Convolution(_of(second, nn.Conv2d), cast(Tensor, second.weight), None)
    return lambda tokens: _normed(mix(_normed(project(tokens), first_norm)), second_norm)


def _normed(tokens: Tensor, norm: nn.Module) -> Tensor:
    weight, bias = cast(Tensor, _of(norm, LayerNorm2d).weight), cast(Tensor, norm.bias)
    return F.layer_norm(tokens, tokens.shape[-1:], weight, bias, cast(float, norm.eps))
