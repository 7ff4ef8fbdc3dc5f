"""The mask decoder's up-scaling and mask product on image tokens as they leave the transformer, with gradients.

Both transposed convolutions have kernel and stride 2, so each token makes its own 4 x 4 pixels: two matrix products a token.
Image tokens need no turning into an image, the norm is a plain layer norm, and only the masks are put in pixel order.

Source: segment-anything @ dca509f, ``output_upscaling`` in modeling/mask_decoder.py, ``LayerNorm2d`` in modeling/common.py.

Differs from the authors' code:
- Only in the order of sums: outputs and gradients are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from medsam_tune.backbone.shared_layer import is_hooked

MaskProduct = Callable[[Tensor], Tensor]
"""Maps filters (N, M, C / 8), one a mask, to logits (N, M, 4g, 4g)."""

_STOCK = (nn.ConvTranspose2d, LayerNorm2d, nn.GELU, nn.ConvTranspose2d, nn.GELU)


def mask_product(upscaling: nn.Module, source_tokens: Tensor, grid: tuple[int, int]) -> MaskProduct:
    """Return what makes masks of filters, with the image up-scaled once.

    A step on a CPU takes the tokens' way; without gradients, elsewhere, or where something was inserted, the modules are called
    as SAM does, to the bit.

    Args:
        upscaling: The decoder's ``output_upscaling``.
        source_tokens: Image tokens (N, h * w, C) after the transformer.
        grid: h and w.
    """
    if torch.is_grad_enabled() and source_tokens.device.type == "cpu" and is_stock_upscaling(upscaling):
        pixels = upscale_tokens(upscaling, source_tokens)
        return lambda filters: masks_of_pixels(filters, pixels, grid)
    upscaled: Tensor = upscaling(source_tokens.transpose(1, 2).reshape(len(source_tokens), source_tokens.shape[2], *grid))
    return lambda filters: (filters @ upscaled.flatten(2)).reshape(*filters.shape[:2], *upscaled.shape[-2:])


def is_stock_upscaling(upscaling: nn.Module) -> bool:
    """Tell whether the five modules are SAM's, and nobody hooked in."""
    modules = list(upscaling.children())
    return (
        not torch.compiler.is_compiling()
        and tuple(map(type, modules)) == _STOCK
        and not any(is_hooked(module) for module in (upscaling, *modules))
        and all(_doubles(module) for module in modules[::3])
    )


def upscale_tokens(upscaling: nn.Module, tokens: Tensor) -> Tensor:
    """Map tokens (N, T, C) to 16 pixels each, (N, T * 16, C / 8): row and column of the first doubling, of the second."""
    first, norm, activation, second, last_activation = cast(Any, upscaling)
    doubled = _double(first, tokens)
    normed = functional.layer_norm(doubled, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    return cast(Tensor, last_activation(_double(second, activation(normed))))


def masks_of_pixels(filters: Tensor, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Multiply filters (N, M, c) with ``upscale_tokens``' pixels (N, h * w * 16, c); return masks (N, M, 4h, 4w)."""
    masks = (pixels @ filters.transpose(1, 2)).reshape(len(pixels), *grid, 2, 2, 2, 2, filters.shape[1])
    # h, w, then row and column of each doubling; a pixel's row is made of h and both rows.
    return masks.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(*filters.shape[:2], 4 * grid[0], 4 * grid[1])


def _double(layer: nn.ConvTranspose2d, tokens: Tensor) -> Tensor:
    """Apply a transposed convolution of kernel and stride 2 to (N, T, C); return (N, T * 4, c), row by row of each token."""
    # The weight is (C, c, 2, 2).
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    bias = None if layer.bias is None else layer.bias.repeat(4)
    return functional.linear(tokens, weight, bias).reshape(len(tokens), 4 * tokens.shape[1], layer.out_channels)


def _doubles(layer: nn.Module) -> bool:
    convolution = cast(nn.ConvTranspose2d, layer)
    plain = convolution.padding == (0, 0) and convolution.output_padding == (0, 0) and convolution.groups == 1
    return plain and convolution.kernel_size == convolution.stride == (2, 2) and convolution.dilation == (1, 1)
