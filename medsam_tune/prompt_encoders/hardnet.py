"""HarDNet, the convolutional network that AutoSAM's prompt generator starts from.

Paper: Chao et al. 2019, HarDNet: A Low Memory Traffic Network, ICCV, arXiv 1909.00948.
Authors' repository: PingoLH/Pytorch-HarDNet @ de9662f (MIT).

Differs from the authors' code:
- No address is contacted: weights come from a file that the user names (``load_hardnet``).
- ``HarDNetFeatures`` ends after the last feature map that is asked for, so no parameter is left without a gradient.
- Feature maps are available without pretrained weights.
- Architectures are a table of numbers; the state-dict names are the released ones (``base.N...``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from medsam_tune.errors import RecipeError

HarDNetArch = Literal["39ds", "68ds", "68", "85"]


@dataclass(frozen=True)
class HarDNetSpec:
    """Hold the numbers of one HarDNet.

    Attributes:
        stem: Channels of the two first convolutions.
        growth: k of each block.
        layers: Layers of each block.
        widths: Channels of the 1x1 convolution after each block.
        downsample: Whether the stride doubles after each block.
        multiplier: m, by which a layer's width grows for each of its links but the first.
        depthwise: Whether layers are a 1x1 convolution followed by a depthwise 3x3 one.
        last_dropout: Dropout between the last block and its 1x1 convolution, or None where the network has none.
        head_dropout: Dropout before the classifier.
    """

    stem: tuple[int, int]
    growth: tuple[int, ...]
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    downsample: tuple[bool, ...]
    multiplier: float
    depthwise: bool
    last_dropout: float | None
    head_dropout: float


_SHAPE_68 = (
    (32, 64),
    (14, 16, 20, 40, 160),
    (8, 16, 16, 16, 4),
    (128, 256, 320, 640, 1024),
    (True, False, True, True, False),
)
HARDNETS: dict[str, HarDNetSpec] = {
    "39ds": HarDNetSpec(
        (24, 48), (16, 20, 64, 160), (4, 16, 8, 4), (96, 320, 640, 1024), (True, True, True, False), 1.6, True, None, 0.05
    ),
    "68ds": HarDNetSpec(*_SHAPE_68, 1.7, True, None, 0.05),
    "68": HarDNetSpec(*_SHAPE_68, 1.7, False, None, 0.1),
    "85": HarDNetSpec(
        (48, 96),
        (24, 24, 28, 36, 48, 256),
        (8, 16, 16, 16, 16, 4),
        (192, 256, 320, 480, 720, 1280),
        (True, False, True, False, True, False),
        1.7,
        False,
        0.1,
        0.2,
    ),
}


@dataclass(frozen=True)
class LayerPlan:
    """Hold where one layer of a harmonic block reads from and how wide it is; node 0 is the block's input."""

    links: tuple[int, ...]
    in_channels: int
    out_channels: int


def plan_block(in_channels: int, *, growth: int, multiplier: float, n_layers: int) -> tuple[LayerPlan, ...]:
    """Return the layers 1 to L of a harmonic block.

    Layer l reads the nodes l - 2^i for every 2^i that divides l, nearest first, and is growth * multiplier^n wide, rounded to
    an even number, where 2^n is the largest power of two that divides l.

    Examples:
        >>> plan_block(96, growth=24, multiplier=1.7, n_layers=4)[3]
        LayerPlan(links=(3, 2, 0), in_channels=160, out_channels=70)
    """
    channels, plans = [in_channels], []
    for layer in range(1, n_layers + 1):
        # i stops at 9 in the authors' code; blocks have 16 layers at most, so the stop never shows.
        links = tuple(layer - 2**i for i in range(10) if layer % 2**i == 0)
        width = float(growth)
        for _ in links[1:]:
            width *= multiplier
        channels.append(int(int(width + 1) / 2) * 2)
        plans.append(LayerPlan(links, sum(channels[node] for node in links), channels[layer]))
    return tuple(plans)


def _conv(in_channels: int, out_channels: int, *, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    parts = OrderedDict[str, nn.Module](conv=conv, norm=nn.BatchNorm2d(out_channels), relu=nn.ReLU6(inplace=True))
    return nn.Sequential(parts)


def _depthwise(channels: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(OrderedDict[str, nn.Module](dwconv=conv, norm=nn.BatchNorm2d(channels)))


def _pointwise_depthwise(in_channels: int, out_channels: int) -> nn.Sequential:
    layer1 = _conv(in_channels, out_channels, kernel=1)
    return nn.Sequential(OrderedDict[str, nn.Module](layer1=layer1, layer2=_depthwise(out_channels)))


class HarDBlock(nn.Module):
    """Connect layers by powers of two; the output holds the odd layers and the last one, in order.

    Args:
        plan: What ``plan_block`` returns.
        depthwise: Whether a layer is a 1x1 convolution followed by a depthwise 3x3 one.
    """

    def __init__(self, plan: Sequence[LayerPlan], *, depthwise: bool) -> None:
        super().__init__()
        self.links = [layer.links for layer in plan]
        self.kept = [node for node in range(1, len(plan) + 1) if node % 2 == 1 or node == len(plan)]
        self.out_channels = sum(plan[node - 1].out_channels for node in self.kept)
        self.layers = nn.ModuleList(
            _pointwise_depthwise(layer.in_channels, layer.out_channels)
            if depthwise
            else _conv(layer.in_channels, layer.out_channels, kernel=3)
            for layer in plan
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H, W)."""
        nodes = [x]
        for links, layer in zip(self.links, self.layers, strict=True):
            joined = nodes[links[0]] if len(links) == 1 else torch.cat([nodes[node] for node in links], dim=1)
            nodes.append(layer(joined))
        return torch.cat([nodes[node] for node in self.kept], dim=1)


@dataclass(frozen=True)
class Tap:
    """Name the last layer at one stride: its index in ``base`` and its channels."""

    index: int
    channels: int


def _pool(channels: int, *, kernel: int, depthwise: bool) -> nn.Module:
    if depthwise:
        return _depthwise(channels, stride=2)
    return nn.MaxPool2d(kernel, stride=2, padding=kernel // 2 if kernel == 3 else 0)


def _build_base(spec: HarDNetSpec) -> tuple[list[nn.Module], dict[int, Tap]]:
    """Build every layer before the classifier, and the taps by stride."""
    channels, stride = spec.stem[1], 4
    second = _conv(spec.stem[0], channels, kernel=1 if spec.depthwise else 3)
    base = [_conv(3, spec.stem[0], kernel=3, stride=2), second, _pool(channels, kernel=3, depthwise=spec.depthwise)]
    taps = {2: Tap(1, channels)}
    for position, (growth, n_layers, width) in enumerate(zip(spec.growth, spec.layers, spec.widths, strict=True)):
        plan = plan_block(channels, growth=growth, multiplier=spec.multiplier, n_layers=n_layers)
        block = HarDBlock(plan, depthwise=spec.depthwise)
        base.append(block)
        if spec.last_dropout is not None and position == len(spec.growth) - 1:
            base.append(nn.Dropout(spec.last_dropout))
        base.append(_conv(block.out_channels, width, kernel=1))
        channels, taps[stride] = width, Tap(len(base) - 1, width)
        if spec.downsample[position]:
            base.append(_pool(channels, kernel=2, depthwise=spec.depthwise))
            stride *= 2
    return base, taps


def hardnet_spec(arch: str) -> HarDNetSpec:
    """Return the numbers of ``arch``.

    Raises:
        RecipeError: If there is no such HarDNet.
    """
    if arch not in HARDNETS:
        raise RecipeError(f"arch: expected one of {', '.join(HARDNETS)}, got {arch!r}. (39 without ds was never released.)")
    return HARDNETS[arch]


class HarDNet(nn.Module):
    """Classify an image: the released network, whole.

    Args:
        arch: ``39ds``, ``68ds``, ``68`` or ``85``.
        n_classes: 1000 in the released files.
    """

    def __init__(self, arch: str, *, n_classes: int = 1000) -> None:
        super().__init__()
        spec = hardnet_spec(arch)
        base, _ = _build_base(spec)
        classifier = nn.Linear(spec.widths[-1], n_classes)
        base.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(spec.head_dropout), classifier))
        self.base = nn.ModuleList(base)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, n_classes)."""
        for layer in self.base:
            images = layer(images)
        return images


class HarDNetFeatures(nn.Module):
    """Return the feature maps of a HarDNet at the given strides; layers after the last one are not built.

    Args:
        arch: ``39ds``, ``68ds``, ``68`` or ``85``.
        strides: Which maps, ascending, out of 2, 4, 8, 16 and 32.

    Attributes:
        channels: Channels of each map.

    Raises:
        RecipeError: If a stride does not exist.
    """

    def __init__(self, arch: str, *, strides: Sequence[int] = (4, 8, 16)) -> None:
        super().__init__()
        base, taps = _build_base(hardnet_spec(arch))
        if unknown := sorted(set(strides) - set(taps)):
            raise RecipeError(f"strides: HarDNet {arch} has feature maps at strides {sorted(taps)}, got {unknown}.")
        self.arch = arch
        self._taps = [taps[stride].index for stride in strides]
        self.channels = tuple(taps[stride].channels for stride in strides)
        self.base = nn.ModuleList(base[: max(self._taps) + 1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to one map (B, channels, H / stride, W / stride) per stride."""
        maps = []
        for index, layer in enumerate(self.base):
            images = layer(images)
            if index in self._taps:
                maps.append(images)
        return maps
