"""The bottleneck adapter and its two places: behind a layer with a skip, and beside an MLP, scaled.

Paper: Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP (serial); He et al. 2022, Towards a Unified View of
Parameter-Efficient Transfer Learning (parallel, scaled).
"""

from __future__ import annotations

from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.errors import RecipeError

Activation = Literal["relu", "gelu"]
Init = Literal["identity", "repo"]


class Bottleneck(nn.Module):
    """Project C channels down to ``width``, apply an activation, project back up; where it is added is the subclass's.

    Args:
        channels: C.
        width: Channels in between.
        activation: ``relu`` or ``gelu``.
        init: ``identity`` sets the up-projection to zero, so the output is 0 before training; ``repo`` leaves PyTorch's own.
    """

    def __init__(self, channels: int, width: int, *, activation: Activation = "relu", init: Init = "identity") -> None:
        super().__init__()
        self.down_proj = nn.Linear(channels, width)
        self.up_proj = nn.Linear(width, channels)
        self.activation = activation
        if init == "identity":
            nn.init.zeros_(self.up_proj.weight)
            nn.init.zeros_(self.up_proj.bias)

    def down(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., width), after the activation."""
        hidden = self.down_proj(x)
        return F.relu(hidden) if self.activation == "relu" else F.gelu(hidden)

    def update(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape, without a skip."""
        return cast(Tensor, self.up_proj(self.down(x)))


class SerialAdapter(Bottleneck):
    """Add a bottleneck to its own input: x + Up(act(Down(x)))."""

    def forward(self, x: Tensor, prompt_tokens: Tensor | None = None) -> Tensor:
        """Map (..., C) to the same shape; prompt tokens are not used."""
        return x + self.update(x)


class ParallelAdapter(Bottleneck):
    """Add a scaled bottleneck beside an MLP: scale * Up(act(Down(x))).

    Args:
        channels: C.
        width: Channels in between.
        scale: Factor of the output.
        read: ``normed`` reads what the MLP reads, ``residual`` the stream before its norm.
        activation: ``relu`` or ``gelu``.
        init: See ``Bottleneck``.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        scale: float = 0.5,
        read: Literal["normed", "residual"] = "normed",
        activation: Activation = "relu",
        init: Init = "identity",
    ) -> None:
        super().__init__(channels, width, activation=activation, init=init)
        self.scale = scale
        self.read = read

    def forward(self, residual: Tensor, normed: Tensor) -> Tensor:
        """Return what is added to the MLP's output, of the same shape (..., C)."""
        return self.scale * self.update(normed if self.read == "normed" else residual)


def check_bottleneck(*, ratio: float, rank: int | None) -> None:
    """Check the settings of a bottleneck's width.

    Raises:
        RecipeError: If ``rank`` is less than 1, or the ratio is not positive and no rank replaces it.
    """
    if rank is not None and rank < 1:
        raise RecipeError(f"model.tuner.rank: {rank} is no width of a bottleneck. Set at least 1, or null to use ratio.")
    if rank is None and ratio <= 0:
        raise RecipeError(f"model.tuner.ratio: {ratio} is no share of the channels. Set more than 0, such as 0.25, or rank.")


def bottleneck_width(channels: int, *, ratio: float, rank: int | None) -> int:
    """Return the width of a bottleneck for C channels: ``rank`` if given, else ``ratio`` of C rounded down.

    Raises:
        RecipeError: If the settings are none, or the ratio leaves less than one channel.

    Examples:
        >>> bottleneck_width(768, ratio=0.25, rank=None), bottleneck_width(768, ratio=0.25, rank=8)
        (192, 8)
    """
    check_bottleneck(ratio=ratio, rank=rank)
    width = int(channels * ratio) if rank is None else rank
    if width < 1:
        raise RecipeError(f"model.tuner.ratio: {ratio} of {channels} channels is less than one. Set a larger ratio, or rank.")
    return width
