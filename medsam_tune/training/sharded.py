"""Fully sharded training (FSDP): each process holds its share of the image encoder, its gradients and AdamW's moments.

Zhao et al. 2023, arXiv 2304.11277 (PyTorch FSDP); PyTorch's ``fully_shard``. A block is whole only while it computes.
What a run writes is not sharded: checkpoints and exports are those of one network, so that a run may resume under ``ddp``, or
on one GPU, and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from medsam_tune.errors import RecipeError
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.training.module import TuningModule, tuned
from medsam_tune.training.trainer_keys import FSDP, as_list


class ShardedStrategy(DDPStrategy):
    """Shard the image encoder block by block over all processes; what else learns is whole in each, and its gradients averaged.

    Everything but the training itself (caches, test, prediction, export) is as under ``ddp``.
    """

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's own arguments
        super().__init__(**kwargs)
        self._before: list[_Before] = []

    def configure_ddp(self) -> None:
        """Cut the encoder into shards instead of wrapping the module."""
        module = self._network()
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.detach(), 0)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        shards = units(module)
        self._before = [_Before.of(part) for part in shards[-1].modules()]
        for unit in shards:
            fully_shard(unit, mesh=mesh)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Build the optimizers; whole and sharded parameters are stepped one by one, since no kernel takes both together."""
        super().setup_optimizers(trainer)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if group.get("fused"):
                raise RecipeError(
                    f"model.optimizer.fused: steps whole tensors, trainer.strategy: {FSDP} has shards. Leave it out."
                )
            group.update({"foreach": False} if "foreach" in group else {})

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients of what is not sharded."""
        learning = [p.grad for p in self._network().parameters() if not isinstance(p, DTensor) and p.grad is not None]
        if learning:
            flat = torch.cat([gradient.flatten() for gradient in learning])
            dist.all_reduce(flat)
            flat /= self.world_size
            for gradient, mean in zip(learning, torch.split(flat, [g.numel() for g in learning]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole network's tensors, in every process."""
        return {name: whole(tensor) for name, tensor in self._network().state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of the whole network's optimizer, in every process."""
        content: dict[str, Any] = dict(super().optimizer_state(optimizer))
        return {**content, "state": {key: _mapped(state, whole) for key, state in content["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each process its shard of the moments in a checkpoint."""
        for optimizer, content in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {key: _mapped(one, _like(parameters[key])) for key, one in content["state"].items()}
            optimizer.load_state_dict({**content, "state": state})

    def on_train_end(self) -> None:
        """Make the network whole again in every process, for test and export."""
        for before in self._before:
            before.restore()
        self._before = []

    def _network(self) -> TuningModule:
        if self.lightning_module is None:
            raise RuntimeError("ShardedStrategy: has no network yet. Lightning's trainer gives it one before it sets up.")
        return tuned(self.lightning_module)


def units(module: TuningModule) -> list[nn.Module]:
    """Return what is sharded: every block of the image encoder, then the encoder itself with what remains.

    Raises:
        RecipeError: If the network has no such encoder, not all of its blocks learn, or batch norms learn in it.
    """
    backbone = module.segmenter.backbone if isinstance(module.segmenter, SamSegmenter) else None
    if backbone is None:
        raise RecipeError(f"trainer.strategy: {FSDP} shards SAM's image encoder, and this network has none. Use ddp.")
    blocks = [backbone.get_submodule(block.name) for block in backbone.anatomy().encoder.blocks]
    encoder = backbone.get_submodule("image_encoder")
    if not all(p.requires_grad for block in blocks for p in block.parameters()):
        raise RecipeError(
            f"trainer.strategy: {FSDP} saves memory where the whole image encoder learns (FullTuning); here little of it does, "
            "and gradients and moments are small. Use ddp, with model.backbone.checkpointing: true where memory is short."
        )
    if any(isinstance(part, _BatchNorm) for part in encoder.modules()):
        raise RecipeError(f"trainer.strategy: {FSDP} is for SAM's ViT; TinyViT's batch norms would differ. Use ddp.")
    return [*blocks, encoder]


def whole(tensor: Any) -> Any:  # noqa: ANN401 - states hold numbers beside tensors
    """Return a shard's whole tensor on the CPU, and anything else as it is; all processes have to call it together."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def check_sharded(trainer: Mapping[str, Any], module: TuningModule) -> None:
    """Refuse what shards cannot do.

    Args:
        trainer: The recipe's section with its classes built.
        module: The network.

    Raises:
        RecipeError: Naming the key.
    """
    units(module)
    if trainer.get("gradient_clip_val"):
        raise RecipeError(
            f"trainer.gradient_clip_val: needs the norm of whole gradients, trainer.strategy: {FSDP} has shards. Leave it out."
        )
    if str(trainer.get("precision")).startswith("16"):
        raise RecipeError("trainer.precision: 16-mixed scales by what one process sees of the gradients. Use bf16-mixed.")
    if any(isinstance(callback, WeightAveraging) for callback in as_list(trainer.get("callbacks")) or []):
        raise RecipeError(
            f"trainer.callbacks: an average of weights is kept whole, trainer.strategy: {FSDP} has shards. Leave it out."
        )


@dataclass(frozen=True)
class _Before:
    """Remember what ``fully_shard`` changes in a module beside its parameters.

    Attributes:
        module: The module.
        kind: Its class.
        hooks: Its hooks, by the attribute that holds them.
    """

    module: nn.Module
    kind: type[nn.Module]
    hooks: Mapping[str, Mapping[int, Callable[..., Any]]]

    @classmethod
    def of(cls, module: nn.Module) -> _Before:
        """Look at a module that is whole."""
        names = [name for name in vars(module) if "_hooks" in name]
        return cls(module, type(module), {name: dict(getattr(module, name)) for name in names})

    def restore(self) -> None:
        """Make the module's parameters whole and the module what it was; all processes have to call it together."""
        for name, parameter in list(self.module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                full = parameter.full_tensor().detach()
                self.module.register_parameter(name, nn.Parameter(full, requires_grad=parameter.requires_grad))
        self.module.__class__ = self.kind
        for name, hooks in self.hooks.items():
            held = getattr(self.module, name)
            held.clear()
            held.update(hooks)


def _mapped(state: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: change(value) for name, value in state.items()}


def _like(parameter: nn.Parameter) -> Callable[[Any], Any]:
    """Return what cuts a tensor of a parameter's shape as the parameter is cut."""

    def cut(value: Any) -> Any:  # noqa: ANN401 - states hold numbers beside tensors
        if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
            return value
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    return cut
