"""What runs a frozen encoder on a CPU: PyTorch's modules, oneDNN's packed products, or OpenVINO, which compiles the network.

What they save is in benchmarks/RESULTS.md, rows P14 and P14V. Only TinyViT has more than its modules; SAM's ViT has its own
attention.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from itertools import chain
from typing import Final, Literal, cast

import torch
from torch import Tensor, nn

from medsam_tune.backbone.packed_tiny_vit import has_onednn, pack_tiny_vit
from medsam_tune.backbone.tiny_vit import TinyViT
from medsam_tune.errors import RecipeError

Engine = Literal["auto", "torch", "onednn", "openvino"]
KEY: Final = "model.backbone.engine"
LARGEST_ERROR: Final = 1e-4
_MISSING: Final = {
    "onednn": "this build of PyTorch has no oneDNN. Set it to auto.",
    "openvino": "openvino is not installed. Type: pip install 'medsam-tune[cpu]', or set it to auto.",
}

_Run = Callable[[Tensor], Tensor]


def is_installed() -> bool:
    """Say whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


class EncoderEngine:
    """Run an encoder without gradients, by the engine that was chosen where it can.

    Before the first image it is compared with PyTorch's modules; then all images get their embeddings from it. A copy of this
    starts anew, as does an encoder whose weights or modules have changed.

    Args:
        choice: ``auto`` takes oneDNN for a TinyViT, where PyTorch was built with it, and the modules elsewhere; ``torch`` runs
            the modules, ``onednn`` and ``openvino`` are wanted by name.
        encoder: The network that is meant.

    Raises:
        RecipeError: If an engine that is wanted by name is not at hand, or not for this network.
    """

    def __init__(self, choice: Engine, encoder: nn.Module) -> None:
        self.choice = choice
        self._engine = _engine_for(choice, encoder)
        self._run: _Run | None = None
        self._state: object = None

    def __deepcopy__(self, memo: dict[int, object]) -> EncoderEngine:
        return _restored(self.choice, self._engine)

    def __reduce__(self) -> tuple[Callable[..., EncoderEngine], tuple[Engine, Engine]]:
        return _restored, (self.choice, self._engine)

    def identity(self) -> str | None:
        """Return what encodes on a CPU, for the key of a cache: ``onednn``, OpenVINO with its version, None for modules."""
        if self._engine == "openvino":
            return f"openvino {importlib.metadata.version('openvino')}"
        return None if self._engine == "torch" else self._engine

    def encode(self, encoder: nn.Module, pixels: Tensor) -> Tensor:
        """Return the embeddings (B, C, g, g) of normalised images (B, 3, S, S); nothing keeps a graph.

        Raises:
            RecipeError: If an engine that is wanted by name gives another embedding, or cannot run the network.
        """
        run = self._ready(encoder, pixels) if self._may_run(encoder, pixels) else None
        return cast(Tensor, encoder(pixels)) if run is None else run(pixels)

    def _ready(self, encoder: nn.Module, pixels: Tensor) -> _Run | None:
        """Return what runs the encoder as it is now, None where the modules have to."""
        state = (pixels.shape[1:], _state_of(encoder))
        if self._run is None or state != self._state:
            self._run, self._state = self._build(cast(TinyViT, encoder), pixels), state
        return self._run

    def _build(self, encoder: TinyViT, pixels: Tensor) -> _Run | None:
        try:
            run, probe = _pack(encoder, pixels) if self._engine == "onednn" else _compile(encoder, pixels)
            expected = encoder(probe)
            error = float((run(probe) - expected).norm() / expected.norm())
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as failure:
            self._give_up(f"cannot run the encoder: {str(failure).strip().partition(chr(10))[0]}")
            return None
        if error > LARGEST_ERROR:
            self._give_up(f"gives other embeddings (relative error {error:.1g}, at most {LARGEST_ERROR:g})")
            return None
        return run

    def _give_up(self, why: str) -> None:
        if self.choice != "auto":
            raise RecipeError(f"{KEY}: {self._engine} {why}. Set it to torch.")
        warnings.warn(
            f"{KEY}: {self._engine} {why}; the modules of PyTorch go on. Set it to torch to keep it so.", stacklevel=2
        )
        self._engine = "torch"

    def _may_run(self, encoder: nn.Module, pixels: Tensor) -> bool:
        if self._engine == "torch" or encoder.training or not isinstance(encoder, TinyViT) or _is_watched(encoder):
            return False
        return pixels.device.type == "cpu" and pixels.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _engine_for(choice: Engine, encoder: nn.Module) -> Engine:
    """Return what runs the encoder: one of the names but ``auto``."""
    at_hand = {"onednn": has_onednn(), "openvino": is_installed()}
    if choice == "auto":
        return "onednn" if isinstance(encoder, TinyViT) and at_hand["onednn"] else "torch"
    if choice != "torch" and not isinstance(encoder, TinyViT):
        kinds = f"runs TinyViT encoders (lite_medsam, mobile_sam), this one is {type(encoder).__name__}"
        raise RecipeError(f"{KEY}: {choice} {kinds}. Set it to auto.")
    if not at_hand.get(choice, True):
        raise RecipeError(f"{KEY}: {_MISSING[choice]}")
    return choice


def _restored(choice: Engine, engine: Engine) -> EncoderEngine:
    restored = EncoderEngine("torch", nn.Identity())
    restored.choice, restored._engine = choice, engine
    return restored


def _state_of(encoder: nn.Module) -> object:
    """Return what changes when a weight is written to, or a module put in another's place."""
    tensors = chain(encoder.parameters(), encoder.buffers())
    return tuple((t.data_ptr(), t._version) for t in tensors), tuple(id(module) for module in encoder.modules())


def _is_watched(encoder: nn.Module) -> bool:
    """Say whether somebody hooked into a module, or put a function in its method's place."""
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in encoder.modules())


def _pack(encoder: TinyViT, pixels: Tensor) -> tuple[_Run, Tensor]:
    """Return the encoder as oneDNN runs it, and what to compare it on: every fourth pixel, a sixteenth of the work."""
    return pack_tiny_vit(encoder, pixels.shape[-1]), pixels[:1, :, ::4, ::4]


def _compile(encoder: nn.Module, pixels: Tensor) -> tuple[_Run, Tensor]:
    """Return the encoder as OpenVINO runs it, image by image, and what to compare it on: it takes one size only."""
    import openvino

    # OpenVINO folds norms into convolutions itself, and runs its own pattern faster; a hook keeps ours from folding first.
    plain = copy.deepcopy(encoder)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_: None)
    example = pixels[:1]
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns of Python numbers, which are constants for one input size.
        warnings.simplefilter("ignore")
        model = openvino.convert_model(plain, example_input=example, input=[tuple(example.shape)])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(model, "CPU", settings)

    def run(pixels: Tensor) -> Tensor:
        return torch.cat([torch.from_numpy(compiled(image[None].numpy())[0].copy()) for image in pixels])

    return run, example
