"""Any tuner of the peft library that replaces layers: LoRA and its kin, AdaLoRA, LoHa, LoKr, IA3, VeRA and the rest.

Papers: Hu et al. 2021, LoRA (arXiv 2106.09685), and one a method; peft's documentation names them.
Authors' code: https://github.com/huggingface/peft, release 0.21.

Differs from the authors' code:
- Layers are chosen by part names of a SAM (``image_encoder.attention``), not by patterns over module names.
- The backbone keeps its type and interface; peft's wrapper stays beside it, for saving, switching and merging.
- AdaLoRA's allocator is stepped, and its orthogonality added to the loss, without any code of the user's.
- What the recipe trains beside the tuner keeps learning; peft freezes everything else.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from medsam_tune.backbone.attention import PER_TOKEN, works_per_token
from medsam_tune.backbone.base import Backbone
from medsam_tune.backbone.fit import misfits
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.tuners.base import InsertingTuner
from medsam_tune.tuners.parts import layer_names
from medsam_tune.tuners.peft_methods import KEY, check_config, check_layers, identity_note, method_name
from medsam_tune.tuners.peft_settings import read_config

ADAPTER = "default"
# What peft's RankAllocator smooths over the steps, by parameter name.
_IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class PeftTuner(InsertingTuner):
    """Put a tuner of the peft library on chosen parts of the backbone.

    Args:
        config: A configuration of peft, such as ``peft.LoraConfig`` with ``r`` and ``lora_alpha``. Which layers it means is
            said by ``parts``, so ``target_modules`` stays out.
        parts: Names such as ``image_encoder.attention.qkv`` or ``mask_decoder.attention``; see ``anatomy.PART_NAMES``.
        blocks: First and last encoder block, both included; every block by default. With late blocks only, the backward pass
            stops at the first of them.

    Attributes:
        layers: Dotted names of the layers that are wrapped; empty before ``attach``.

    Raises:
        RecipeError: If the method cannot work on a SAM; the message says why.

    Examples:
        >>> from medsam_tune.backbone import SamBackbone
        >>> backbone = SamBackbone("random_tiny")
        >>> PeftTuner(peft.LoraConfig(r=4), ["image_encoder.attention.qkv"], blocks=[1, 1]).attach(backbone)
        >>> [name for name, p in backbone.named_parameters() if p.requires_grad][0]
        'image_encoder.blocks.1.attn.qkv.lora_A.default.weight'
    """

    def __init__(
        self,
        config: PeftConfig,
        parts: Sequence[str] = ("image_encoder.attention.qkv",),
        *,
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if blocks is not None and len(blocks) != 2:
            raise RecipeError(f"model.tuner.blocks: expected [first, last], got {list(blocks)}.")
        check_config(config)
        self.config = copy.deepcopy(config)
        self.parts = tuple(parts)
        self.blocks = None if blocks is None else (blocks[0], blocks[1])
        self.identity_note = identity_note(config)
        self.declares_identity = not self.identity_note
        self.layers: tuple[str, ...] = ()
        self._peft: PeftModel | None = None
        self._loaded: dict[str, dict[str, Tensor]] = {}

    @property
    def peft_model(self) -> PeftModel:
        """Return peft's view of the backbone, with ``set_adapter``, ``disable_adapter``, ``merge_and_unload`` and so on.

        Raises:
            RuntimeError: Before ``attach``.
        """
        if self._peft is None:
            raise RuntimeError("the tuner is not attached; build a SamSegmenter with it, or call attach(backbone)")
        return self._peft

    def insert(self, backbone: Backbone) -> list[str]:
        """Wrap the chosen layers and return the parameters that peft lets learn.

        Raises:
            RecipeError: If a part is unknown, the method cannot be put on its layers, or peft refuses the settings.
        """
        self.layers = tuple(self.targets(backbone))
        self.config.target_modules = list(self.layers)
        self.config.base_model_name_or_path = f"{backbone.weights.name}@sha256:{backbone.weights.sha256}"
        learning = [p for p in backbone.parameters() if p.requires_grad]
        try:
            with _quiet():
                self._peft = PeftModel(backbone, self.config, ADAPTER)
        except RecipeError:
            raise
        except (ValueError, TypeError, NotImplementedError, RuntimeError, AssertionError, ImportError) as error:
            raise RecipeError(f"{KEY}: peft {peft.__version__} refuses {type(self.config).__name__} here: {error}") from error
        owned = [name for name, p in backbone.named_parameters() if p.requires_grad]
        for parameter in learning:
            parameter.requires_grad_(True)
        for module in backbone.modules():
            if isinstance(module, BaseTunerLayer):
                # Its dropout follows train mode although its base layer is frozen; read by backbone.freezing.
                module.trains_with_tuner = True
                # Every method of peft on a linear layer maps the last dimension; read by backbone.attention.
                setattr(module, PER_TOKEN, works_per_token(module.get_base_layer()))
        return owned

    def targets(self, backbone: Backbone) -> list[str]:
        """Return the dotted names of the layers that peft will wrap.

        Raises:
            RecipeError: If a part is unknown, or the method cannot be put on one of its layers.
        """
        kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
        if method_name(self.config) == "LN_TUNING":
            kinds = (nn.LayerNorm,)
        names = layer_names(backbone, self.parts, blocks=self.blocks, kinds=kinds)
        on_grids = backbone.anatomy().encoder.grid_layers
        check_layers(self.config, {name: backbone.get_submodule(name) for name in names}, on_grids=on_grids)
        return names

    def adapter_config(self) -> dict[str, object]:
        """Return peft's configuration as JSON values, the layers and the base weights' name and checksum among them."""
        config = copy.deepcopy(self.peft_model.peft_config[ADAPTER])
        config.inference_mode = True
        # peft shortens a long list to endings of names; the whole names say what is meant.
        config.target_modules = list(self.layers)
        if self._allocates:
            # Pruned ranks are stored as zeros, so the factors keep their full size and nothing depends on the pattern.
            config.rank_pattern = None
        values = {name: sorted(v) if isinstance(v, set) else v for name, v in config.to_dict().items()}
        stored: dict[str, object] = json.loads(json.dumps(values))
        return stored

    def adapter_state(self) -> dict[str, Tensor]:
        """Return the adapter's tensors under the names of peft's files; they share memory with the backbone's."""
        config = self.peft_model.peft_config[ADAPTER]
        pattern = config.rank_pattern if self._allocates else None
        if self._allocates:
            config.rank_pattern = None
        state: dict[str, Tensor] = get_peft_model_state_dict(self.peft_model, save_embedding_layers=False)
        if self._allocates:
            config.rank_pattern = pattern
        return state

    def load_adapter_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what ``adapter_state`` returned.

        Raises:
            CheckpointError: If names, shapes or types are not exactly those of this adapter, or values are not finite.
        """
        if faults := misfits(tensors, self.adapter_state()):
            raise CheckpointError(
                f"adapter: does not fit {type(self.config).__name__} on these parts: {faults}. "
                "Use the settings it was trained with."
            )
        set_peft_model_state_dict(self.peft_model, dict(tensors), ADAPTER)

    def add_adapter(self, name: str, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
        """Load another adapter of the same method beside the first, for inference.

        Args:
            name: peft's name for it.
            config: What ``adapter_config`` returned for it.
            tensors: What ``adapter_state`` returned for it.

        Raises:
            CheckpointError: If the tensors are not those of the configuration, or not finite.
            RecipeError: If the configuration is no plain data, or none of this method.
        """
        read = read_config(type(self.config), config)
        with torch.no_grad(), _quiet():
            self.peft_model.add_adapter(name, read)
            own = get_peft_model_state_dict(self.peft_model, adapter_name=name, save_embedding_layers=False)
            faults = misfits(tensors, own)
            if faults:
                self.peft_model.delete_adapter(name)
                raise CheckpointError(
                    f"adapter: tensors and adapter_config.json do not belong together: {faults}. Export the run again."
                )
            set_peft_model_state_dict(self.peft_model, dict(tensors), name)

    def use_adapter(self, name: str) -> None:
        """Make the adapter of this name, ``ADAPTER`` for the first, the active one, for inference."""
        self.peft_model.set_adapter(name, inference_mode=True)

    def merge(self) -> None:
        """Add the update to the backbone's own weights and remove peft's layers; the output stays the same.

        Raises:
            CheckpointError: If the method cannot be merged.
        """
        try:
            self.peft_model.merge_and_unload(safe_merge=True)
        except (NotImplementedError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"model.tuner: {type(self.config).__name__} cannot be merged into the base weights ({error}). "
                "Export the adapter instead."
            ) from error

    def auxiliary_loss(self) -> Tensor:
        """Return AdaLoRA's orthogonality: its weight times the mean of ||A A' - I|| and ||B' B - I||; 0 for other methods.

        Source: Zhang et al. 2023, AdaLoRA (arXiv 2303.10512), equation 4, with the Frobenius norm as in peft.
        """
        if not self._allocates:
            return super().auxiliary_loss()
        gaps = [
            torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype))
            for gram in _gram_matrices(self.peft_model)
        ]
        weight: float = self.config.orth_reg_weight
        return weight * torch.stack(gaps).mean()

    def after_step(self, step: int) -> None:
        """Let AdaLoRA move its budget of ranks after the optimizer's step number ``step``, counted from 0."""
        if not self._allocates:
            return
        model = self.peft_model.base_model
        places = {name: p.device for name, p in model.model.named_parameters()} if self._loaded else {}
        for name, importance in self._loaded.items():
            setattr(model.rankallocator, name, {key: value.to(places[key]) for key, value in importance.items()})
        self._loaded = {}
        model.update_and_allocate(step)

    def extra_state(self) -> dict[str, Any]:
        """Return AdaLoRA's smoothed importances and which ranks survive; nothing for other methods."""
        if not self._allocates:
            return {}
        model = self.peft_model.base_model
        importances = {name: dict(getattr(model.rankallocator, name)) for name in _IMPORTANCES} | self._loaded
        return {**importances, "rank_pattern": model.peft_config[ADAPTER].rank_pattern}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``extra_state`` returned."""
        if not self._allocates or not state:
            return
        self.peft_model.base_model.peft_config[ADAPTER].rank_pattern = state["rank_pattern"]
        # The parameters may still move to another device before the next step.
        self._loaded = {name: state[name] for name in _IMPORTANCES}

    @property
    def _allocates(self) -> bool:
        return method_name(self.config) == "ADALORA"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what peft says of every SAM and no user can change."""
    with warnings.catch_warnings():
        for message in (
            r"Unsupported layer type",  # LayerNorm in LN tuning; works
            r".*(fbd_cuda|CUDA extension|boft_n_butterfly_factor).*",  # BOFT falls back to PyTorch
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def _gram_matrices(model: nn.Module) -> Iterator[Tensor]:
    for name, p in model.named_parameters():
        if ".lora_A." in name:
            yield p @ p.T
        elif ".lora_B." in name:
            yield p.T @ p
