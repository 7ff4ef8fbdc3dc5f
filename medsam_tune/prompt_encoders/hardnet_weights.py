"""Read HarDNet weight files under the names of the authors' files and under those of pytorchcv.

Both hold the same networks, only the names differ: once mapped, random weights of pytorchcv 0.0.74 give the logits of our
network to 6e-8, for all four architectures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from medsam_tune.errors import CheckpointError
from medsam_tune.prompt_encoders.hardnet import HARDNETS, HarDNet, HarDNetFeatures, HarDNetSpec, hardnet_spec

_COUNTER = ".num_batches_tracked"


def load_hardnet(features: HarDNetFeatures, path: str | Path) -> None:
    """Load the released weights of a whole HarDNet into its truncated form.

    Args:
        features: Filled in place; its architecture must be the file's.
        path: A file of PingoLH/Pytorch-HarDNet or of pytorchcv.

    Raises:
        CheckpointError: If the file cannot be read or holds another network.
    """
    weights = read_hardnet(path, features.arch)
    wanted = features.state_dict()
    features.load_state_dict({name: weights.get(name, value) for name, value in wanted.items()})


def read_hardnet(path: str | Path, arch: str) -> dict[str, Tensor]:
    """Read a weight file and return it under the authors' names.

    Raises:
        CheckpointError: If the file cannot be read or is not exactly the network ``arch``.
    """
    from medsam_tune.backbone.weights import load_state_dict_file

    stored = load_state_dict_file(Path(path))
    if any(name.startswith("features.init_block.") for name in stored):
        stored = from_pytorchcv(stored, arch)
    difference = _difference(stored, arch)
    if difference is None:
        return stored
    other = next((name for name in HARDNETS if _difference(stored, name) is None), None)
    if other is not None:
        raise CheckpointError(f"{path}: holds HarDNet {other}, the recipe asks for {arch}. Set arch: '{other}'.")
    raise CheckpointError(
        f"{path}: expected the weights of HarDNet {arch} under the names of PingoLH/Pytorch-HarDNet (base.0.conv.weight ...) "
        f"or of pytorchcv, got {difference}. Check that the file is a state dict of the whole network, classifier included."
    )


def from_pytorchcv(stored: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """Rename pytorchcv's keys to the authors'; keys that this map does not know stay as they are."""
    known = dict(_pytorchcv_names(hardnet_spec(arch)))
    renamed = {}
    for name, value in stored.items():
        module, _, tensor = name.rpartition(".")
        renamed[f"{known.get(module, module)}.{tensor}"] = value
    return renamed


def _difference(stored: Mapping[str, Tensor], arch: str) -> str | None:
    with torch.device("meta"):
        network = HarDNet(arch).state_dict()
    # Files written before torch 0.4.1 have no batch counter.
    expected = {name: tuple(value.shape) for name, value in network.items() if not name.endswith(_COUNTER)}
    found = {name: tuple(value.shape) for name, value in stored.items() if not name.endswith(_COUNTER)}
    if expected == found:
        return None
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    reshaped = sorted(name for name in set(expected) & set(found) if expected[name] != found[name])
    listed = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return ", ".join(f"{len(names)} {kind} (first: {names[0]})" for kind, names in listed if names)


def _pytorchcv_names(spec: HarDNetSpec) -> Iterator[tuple[str, str]]:
    """Yield (pytorchcv module, authors' module) for every module that holds tensors."""
    yield from _pair("features.init_block.conv1", "base.0")
    yield from _pair("features.init_block.conv2", "base.1")
    yield from _pair("features.init_block.downsample", "base.2", depthwise=True)
    stage, unit, index = 1, 1, 3
    for position, n_layers in enumerate(spec.layers):
        theirs = f"features.stage{stage}.unit{unit}"
        for layer in range(n_layers):
            yield from _pair_layer(f"{theirs}.blocks.block{layer + 1}", f"base.{index}.layers.{layer}", spec.depthwise)
        index += 2 if spec.last_dropout is not None and position == len(spec.layers) - 1 else 1
        yield from _pair(f"{theirs}.conv", f"base.{index}")
        index, unit = index + 1, unit + 1
        if spec.downsample[position]:
            yield from _pair(f"{theirs}.downsample", f"base.{index}", depthwise=True)
            index, stage, unit = index + 1, stage + 1, 1
    yield "output.fc", f"base.{index}.3"


def _pair_layer(theirs: str, ours: str, depthwise: bool) -> Iterator[tuple[str, str]]:
    if not depthwise:
        yield from _pair(theirs, ours)
        return
    yield from _pair(f"{theirs}.pw_conv", f"{ours}.layer1")
    yield from _pair(f"{theirs}.dw_conv", f"{ours}.layer2", depthwise=True)


def _pair(theirs: str, ours: str, *, depthwise: bool = False) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.conv", f"{ours}.{'dwconv' if depthwise else 'conv'}"
    yield f"{theirs}.bn", f"{ours}.norm"
