"""Image features at a few strides for the prompt generators: a HarDNet or any timm network."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.prompt_encoders.hardnet import HarDNetFeatures
from medsam_tune.prompt_encoders.hardnet_weights import load_hardnet

_HARDNET = "hardnet"


def build_features(encoder: str, *, strides: Sequence[int], weights: str | None = None) -> HarDNetFeatures | TimmFeatures:
    """Build the feature network that ``encoder`` names.

    Args:
        encoder: ``hardnet39ds``, ``hardnet68ds``, ``hardnet68``, ``hardnet85``, or a timm name such as ``resnet18``.
        strides: Which feature maps, ascending.
        weights: A weight file of that network; None starts from random weights.

    Raises:
        RecipeError: If there is no such network, or it has no feature map at one of the strides.
        CheckpointError: If the file does not fit.
    """
    if not encoder.startswith(_HARDNET):
        return TimmFeatures(encoder, strides=strides, weights=weights)
    features = HarDNetFeatures(encoder.removeprefix(_HARDNET), strides=strides)
    if weights is not None:
        load_hardnet(features, weights)
    return features


class TimmFeatures(nn.Module):
    """Return feature maps of a timm network, without the layers after the last one.

    Args:
        encoder: A timm name whose ``features_only`` form has maps in (B, C, H, W) order at the strides.
        strides: Which maps, ascending.
        weights: A timm weight file of the whole network; nothing is ever downloaded.

    Attributes:
        channels: Channels of each map.

    Raises:
        RecipeError: If timm has no such network, a stride is missing, or parameters would be left without a gradient.
        CheckpointError: If the file does not fit.
    """

    def __init__(self, encoder: str, *, strides: Sequence[int] = (4, 8, 16), weights: str | None = None) -> None:
        super().__init__()
        import timm

        check_timm_name(encoder)
        wrapper = _wrapper(encoder)
        indices = _indices_at(encoder, strides, wrapper)
        with torch.device("meta"):
            trial = timm.create_model(encoder, features_only=True, out_indices=indices, **wrapper)
        self.channels = tuple(int(channels) for channels in trial.feature_info.channels())
        _check_gradients(trial, self.channels, encoder)
        stored = None if weights is None else _read_timm(encoder, weights)
        # With a state dict in the overlay, timm's ``pretrained`` loads that and asks no hub.
        self.network = timm.create_model(
            encoder,
            features_only=True,
            out_indices=indices,
            pretrained=stored is not None,
            pretrained_cfg_overlay=None if stored is None else {"state_dict": stored},
            **wrapper,
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to one map (B, channels, H / stride, W / stride) per stride."""
        return list(self.network(images))


def check_timm_name(encoder: str) -> None:
    """Raise unless timm builds a network of this name without asking a hub.

    Raises:
        RecipeError: If it does not; the message has the closest names.
    """
    import timm

    if not timm.is_model(encoder):
        close = difflib.get_close_matches(encoder, timm.list_models(), n=3)
        raise RecipeError(f"encoder: timm has no network {encoder!r}. Close names: {', '.join(close) or 'none'}.")


def _wrapper(encoder: str) -> dict[str, str]:
    """Choose timm's wrapper: the one that drops unused layers where the network supports it, else the network's default."""
    import timm

    with torch.device("meta"):
        network = timm.create_model(encoder)
    return {"feature_cls": "getter"} if hasattr(network, "forward_intermediates") else {}


def _indices_at(encoder: str, strides: Sequence[int], wrapper: Mapping[str, str]) -> tuple[int, ...]:
    import timm

    with torch.device("meta"):
        info = timm.create_model(encoder, features_only=True, **wrapper).feature_info
    found = dict(zip(info.reduction(), info.out_indices, strict=True))
    if missing := [stride for stride in strides if stride not in found]:
        raise RecipeError(
            f"encoder: {encoder} has feature maps at strides {sorted(found)}, not at {missing}. "
            "Use a convolutional network such as resnet18."
        )
    return tuple(found[stride] for stride in strides)


def _check_gradients(network: nn.Module, channels: Sequence[int], encoder: str) -> None:
    """Refuse a network with parameters that its maps do not depend on: plain DDP would wait for them for ever."""
    # 64 px keep every map of stride 16 large enough for BatchNorm; no arithmetic happens on the meta device.
    try:
        maps = network(torch.zeros(2, 3, 64, 64, device="meta"))
    except AssertionError as error:
        raise RecipeError(f"encoder: {encoder} takes one input size only ({error}). Use a convolutional network.") from error
    wrong = [tuple(m.shape) for m, c in zip(maps, channels, strict=True) if m.shape[1] != c]
    if wrong:
        raise RecipeError(f"encoder: {encoder} returns maps {wrong} that are not (B, C, H, W). Use a convolutional network.")
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad([m.sum() for m in maps], parameters, allow_unused=True)
    unused = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
    if unused:
        raise RecipeError(
            f"encoder: {encoder} has {len(unused)} parameters that its feature maps do not use (first: {unused[0]}). "
            "Use a network that timm truncates, such as resnet18."
        )


def _read_timm(encoder: str, weights: str) -> Mapping[str, Tensor]:
    from pathlib import Path

    import timm

    from medsam_tune.backbone.weights import load_state_dict_file

    stored = load_state_dict_file(Path(weights))
    with torch.device("meta"):
        network = timm.create_model(encoder)
    heads = network.default_cfg["classifier"]
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items() if not name.startswith(heads)}
    wrong = sorted(name for name, shape in expected.items() if name not in stored or tuple(stored[name].shape) != shape)
    if wrong:
        raise CheckpointError(
            f"{weights}: expected the weights of timm's {encoder}, but {len(wrong)} of {len(expected)} tensors are missing or "
            f"of another shape (first: {wrong[0]}). Give a file of timm's whole {encoder}, or name the network it holds."
        )
    return stored
