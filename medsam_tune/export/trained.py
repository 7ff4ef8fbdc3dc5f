"""What was trained, and what lies frozen beneath it: the first is stored, the second is named by a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone, WeightsIdentity
from medsam_tune.backbone.freezing import own_flags, what_learns
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter

if TYPE_CHECKING:
    from medsam_tune.tuners.peft_tuner import PeftTuner


def trained_names(segmenter: nn.Module) -> list[str]:
    """Return the state-dict names that were trained: parameters that learn, and the buffers of modules that learn.

    A buffer such as a BatchNorm's statistics belongs to a module with parameters of its own; one without any follows the
    nearest module around it that has some, as train mode does, and is stored where all of those learn.
    """
    learning = {name for name, p in segmenter.named_parameters(remove_duplicate=False) if p.requires_grad}
    learning |= set(_learning_buffers("", segmenter, what_learns(segmenter), around=False))
    return [name for name in segmenter.state_dict() if name in learning]


def frozen_identities(segmenter: nn.Module) -> dict[str, dict[str, str]]:
    """Return name and checksum of every frozen module outside the backbone, by its dotted name.

    A module says whose weights it holds by an attribute ``weights``, a ``WeightsIdentity``; of one that does not, the class is
    named and the values are summed up. A frozen parameter in a module that learns otherwise stands for itself.
    """
    return {name: asdict(identity) for name, identity in _frozen("", segmenter)}


def tuner_of(segmenter: Segmenter) -> PeftTuner | None:
    """Return the segmenter's tuner if it is one of the peft library, else None."""
    from medsam_tune.tuners.peft_tuner import PeftTuner

    tuner = segmenter.tuner if isinstance(segmenter, SamSegmenter) else None
    return tuner if isinstance(tuner, PeftTuner) else None


def beside_adapter(segmenter: Segmenter, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what was trained and lies in no file of peft: a decoder, a prompt generator.

    The adapter's tensors are recognised by their memory, because peft's files name them otherwise.
    """
    inside = {tensor.data_ptr() for tensor in adapter.values()}
    state = segmenter.state_dict()
    return {name: state[name] for name in trained_names(segmenter) if state[name].data_ptr() not in inside}


def _learning_buffers(
    prefix: str, module: nn.Module, learns: Mapping[nn.Module, bool | None], *, around: bool
) -> Iterator[str]:
    """Yield the names of buffers; ``around`` tells whether all parameters of the module around this one learn."""
    own, below = own_flags(module), learns[module]
    whole = around if below is None else below
    if any(own) if own else whole:
        yield from (prefix + name for name, _ in module.named_buffers(recurse=False))
    for name, child in module.named_children():
        yield from _learning_buffers(f"{prefix}{name}.", child, learns, around=whole)


def _frozen(prefix: str, module: nn.Module) -> Iterator[tuple[str, WeightsIdentity]]:
    if isinstance(module, Backbone):
        return
    holds_backbone = any(isinstance(child, Backbone) for child in module.modules())
    parameters = list(module.parameters())
    if parameters and not holds_backbone and not any(p.requires_grad for p in parameters):
        yield prefix.removesuffix("."), _identity_of(module)
        return
    for name, parameter in module.named_parameters(recurse=False):
        if not parameter.requires_grad:
            yield prefix + name, WeightsIdentity(name, _checksum({name: parameter}))
    yield from chain.from_iterable(_frozen(f"{prefix}{name}.", child) for name, child in module.named_children())


def _identity_of(module: nn.Module) -> WeightsIdentity:
    declared = getattr(module, "weights", None)
    if isinstance(declared, WeightsIdentity):
        return declared
    return WeightsIdentity(type(module).__name__, _checksum(module.state_dict()))


def _checksum(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {values.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
