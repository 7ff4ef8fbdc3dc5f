"""Bottleneck adapters as a method of the peft library, so that its own functions save, load, add, switch and remove them.

peft's table of methods is open at run time but its list of names is a closed enum; the name is therefore a plain string.
Whoever reads such a folder with peft alone imports ``medsam_tune.tuners.msa.bottleneck_peft`` first, which registers the
method.

A block gets places for adapters (``backbone.anatomy.open_block``); each place is what peft calls a target module, and peft
replaces it by a layer that holds any number of adapters by name. Without an active adapter a place does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from medsam_tune.backbone.anatomy import AdapterPlace, Block, open_block
from medsam_tune.backbone.sam_anatomy import anatomy_of
from medsam_tune.tuners.msa.bottleneck import Activation, Init, ParallelAdapter, SerialAdapter, bottleneck_width
from medsam_tune.tuners.msa.hyper_prompt import HyperPromptAdapter
from medsam_tune.tuners.parts import encoder_blocks

PREFIX = "bottleneck_"
_PARALLEL = "mlp_adapter"
_STEERED = "token_adapter"


class PeftTypeName(str):
    """Name a method that is not in peft's enum, with the enum's ``value``."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """Return the name."""
        return str(self)


PEFT_TYPE = PeftTypeName("BOTTLENECK_ADAPTER")
"""``peft_type`` in adapter_config.json."""


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]
    """Configure bottleneck adapters for peft.

    Attributes:
        ratio: Width of the bottleneck as a share of the channels.
        rank: Width in channels; wins over ``ratio``.
        activation: ``relu`` or ``gelu``.
        mlp_scale: Factor of the adapters beside the MLPs.
        mlp_input: ``normed`` or ``residual``; see ``BottleneckAdapter``.
        init: ``identity`` or ``repo``; see ``BottleneckAdapter``.
        placement: Places in an encoder block: ``attention``, ``mlp`` or both; empty leaves the encoder alone.
        blocks: First and last encoder block, both included; null is all.
        decoder: ``none``, ``adapters`` or ``hyper``.
        hyper_layers: How many prompt-written matrices follow each other.
        target_modules: Dotted names of the places; filled in when the adapters are put into a network.
    """

    ratio: float = 0.25
    rank: int | None = None
    activation: Activation = "relu"
    mlp_scale: float = 0.5
    mlp_input: Literal["normed", "residual"] = "normed"
    init: Init = "identity"
    placement: Sequence[str] = ("attention", "mlp")
    blocks: Sequence[int] | None = None
    decoder: Literal["none", "adapters", "hyper"] = "hyper"
    hyper_layers: int = 1
    target_modules: Any = None
    exclude_modules: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = cast(Any, PEFT_TYPE)
        self.placement = list(self.placement)
        self.blocks = None if self.blocks is None else list(self.blocks)


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """Hold the adapters of one place by name and apply the active one.

    Args:
        base_layer: The empty place.
    """

    adapter_layer_names = ("bottleneck_adapters",)

    def __init__(self, base_layer: AdapterPlace) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_adapters = nn.ModuleDict()
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []

    def add(self, name: str, config: BottleneckConfig) -> None:
        """Add an adapter by the settings of ``config`` and make it the active one."""
        self.bottleneck_adapters[name] = build_adapter(self.base_layer.kind, self.base_layer.channels, config)
        cast(Any, self).set_adapter(name, inference_mode=config.inference_mode)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Apply the active adapter to what the place is given; without one return what the empty place returns.

        Raises:
            ValueError: If two adapters are active at once.
        """
        active = [name for name in cast(Any, self).active_adapters if name in self.bottleneck_adapters]
        if self.disable_adapters or not active:
            return cast(Tensor, self.base_layer(*inputs))
        if len(active) > 1:
            raise ValueError(f"bottleneck adapters cannot be summed, so one is active at a time; got {', '.join(active)}.")
        return cast(Tensor, self.bottleneck_adapters[active[0]](*inputs))


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """Put bottleneck adapters into a SAM: the tuner that peft's functions look up for ``BottleneckConfig``."""

    prefix = PREFIX
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft's own class attribute

    def _prepare_model(self, peft_config: BottleneckConfig, model: nn.Module) -> None:
        peft_config.target_modules = open_places(model, peft_config)

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        return peft_config

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if not isinstance(target, BottleneckLayer):
            target = BottleneckLayer(cast(AdapterPlace, target))
            self._replace_module(parent, target_name, target, None)
        target.add(adapter_name, peft_config)
        target.to(next(parent.parameters()).device)
        if adapter_name not in self.active_adapters:
            target.bottleneck_adapters[adapter_name].requires_grad_(False)
            cast(Any, target).set_adapter(self.active_adapters)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".{PREFIX}adapters.{adapter_name}.", f".{PREFIX}adapters.")

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module | None) -> None:
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            raise NotImplementedError("its activation lies between two layers, so no weight of SAM can hold it")
        unloaded: nn.Module = super()._unload_and_optionally_merge(False, progressbar, safe_merge, adapter_names)
        return unloaded


def place_names(model: nn.Module, config: BottleneckConfig) -> list[str]:
    """Return the dotted names of the places that ``config`` means in ``model``, encoder first.

    Raises:
        RecipeError: If the block range does not fit the encoder.
    """
    return [f"{block.name}.{place}" for block, places in _places(model, config) for place in places]


def open_places(model: nn.Module, config: BottleneckConfig) -> list[str]:
    """Open the blocks that ``config`` means, put an empty place wherever an adapter will go, and return the places' names.

    Raises:
        RecipeError: If the block range does not fit, or the network's blocks have no such places.
    """
    names = []
    for block, places in _places(model, config):
        opened = open_block(model, block)
        for place in places:
            if getattr(opened, place) is None:
                setattr(opened, place, AdapterPlace(place, block.width))
            names.append(f"{block.name}.{place}")
    return names


def _places(model: nn.Module, config: BottleneckConfig) -> list[tuple[Block, list[str]]]:
    """Return the blocks that get adapters, each with its places, encoder first."""
    found: list[tuple[Block, list[str]]] = []
    if config.placement:
        blocks = encoder_blocks(model, None if config.blocks is None else (config.blocks[0], config.blocks[1]))
        found += [(block, [f"{place}_adapter" for place in config.placement]) for block in blocks.values()]
    if config.decoder != "none":
        found += [(block, [_STEERED, _PARALLEL, "image_adapter"]) for block in anatomy_of(model).decoder.blocks]
    return found


def build_adapter(place: str, channels: int, config: BottleneckConfig) -> nn.Module:
    """Return the adapter of a place, given by its name in the block, for tokens of C channels.

    Raises:
        RecipeError: If the width is less than one channel.
    """
    width = bottleneck_width(channels, ratio=config.ratio, rank=config.rank)
    if place == _PARALLEL:
        return ParallelAdapter(
            channels, width, scale=config.mlp_scale, read=config.mlp_input, activation=config.activation, init=config.init
        )
    if place == _STEERED and config.decoder == "hyper":
        return HyperPromptAdapter(channels, width, layers=config.hyper_layers, activation=config.activation, init=config.init)
    return SerialAdapter(channels, width, activation=config.activation, init=config.init)


def _register() -> None:
    """Tell peft of the method; doing it twice changes nothing."""
    key = cast(Any, PEFT_TYPE)
    PEFT_TYPE_TO_CONFIG_MAPPING[key] = BottleneckConfig
    PEFT_TYPE_TO_TUNER_MAPPING[key] = BottleneckModel
    PEFT_TYPE_TO_PREFIX_MAPPING[key] = PREFIX


_register()
