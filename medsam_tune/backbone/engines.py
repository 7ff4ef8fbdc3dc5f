"""What runs a frozen encoder on a CPU: PyTorch, or OpenVINO where it is installed, which compiles the network once.

What it saves is in benchmarks/RESULTS.md, row P14. Only TinyViT is compiled; SAM's ViT has its own fast attention.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from itertools import chain
from typing import Literal, cast

import torch
from torch import Tensor, nn

from medsam_tune.backbone.tiny_vit import TinyViT
from medsam_tune.errors import RecipeError

Engine = Literal["auto", "torch", "openvino"]
KEY = "model.backbone.engine"

# Compiling takes as long as PyTorch needs for a dozen images.
PATIENCE = 16
LARGEST_ERROR = 1e-4


def is_installed() -> bool:
    """Say whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


class EncoderEngine:
    """Run an encoder without gradients, by OpenVINO where that was chosen and can be.

    The first image that it encodes is encoded by PyTorch too, and the two are compared. A copy of this starts anew, as does an
    encoder whose weights or modules have changed.

    Args:
        choice: ``auto`` compiles a TinyViT after ``PATIENCE`` images on a CPU, where OpenVINO is installed; ``openvino`` at the
            first image; ``torch`` never.
        encoder: The network that is meant.

    Raises:
        RecipeError: If ``openvino`` is chosen and not installed, or not for this network.
    """

    def __init__(self, choice: Engine, encoder: nn.Module) -> None:
        if choice == "openvino" and not isinstance(encoder, TinyViT):
            raise RecipeError(
                f"{KEY}: openvino compiles TinyViT encoders (lite_medsam, mobile_sam), this one is "
                f"{type(encoder).__name__}. Set it to auto."
            )
        if choice == "openvino" and not is_installed():
            raise RecipeError(f"{KEY}: openvino is not installed. Type: pip install 'medsam-tune[cpu]', or set it to auto.")
        self.choice = choice
        self._applies = choice != "torch" and isinstance(encoder, TinyViT) and is_installed()
        self._seen = 0
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._state: object = None

    def __deepcopy__(self, memo: dict[int, object]) -> EncoderEngine:
        return self._anew()

    def __reduce__(self) -> tuple[Callable[..., EncoderEngine], tuple[Engine, bool]]:
        return _restored, (self.choice, self._applies)

    def identity(self) -> str | None:
        """Return name and version of what encodes images on a CPU, for the key of a cache; None for PyTorch."""
        return f"openvino {importlib.metadata.version('openvino')}" if self._applies else None

    def encode(self, encoder: nn.Module, pixels: Tensor) -> Tensor:
        """Return the embeddings (B, C, g, g) of normalised images (B, 3, S, S); nothing keeps a graph.

        Raises:
            RecipeError: If OpenVINO was chosen and its embedding is another one, or it cannot compile the network.
        """
        if not self._may_run(encoder, pixels):
            return cast(Tensor, encoder(pixels))
        self._seen += len(pixels)
        state = _state_of(encoder)
        if self._compiled is not None and state == self._state:
            return self._compiled(pixels)
        if self.choice == "auto" and self._seen <= PATIENCE:
            return cast(Tensor, encoder(pixels))
        return self._first(encoder, pixels, state)

    def _first(self, encoder: nn.Module, pixels: Tensor, state: object) -> Tensor:
        """Compile, and compare with PyTorch."""
        expected = cast(Tensor, encoder(pixels))
        try:
            compiled = _compile(encoder, pixels[:1])
            error = float((compiled(pixels) - expected).norm() / expected.norm())
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as failure:
            self._give_up(f"could not compile the encoder: {str(failure).strip().partition(chr(10))[0]}")
            return expected
        if error > LARGEST_ERROR:
            self._give_up(f"gives other embeddings (relative error {error:.1g}, at most {LARGEST_ERROR:g})")
            return expected
        self._compiled, self._state = compiled, state
        return expected

    def _give_up(self, why: str) -> None:
        if self.choice == "openvino":
            raise RecipeError(f"{KEY}: openvino {why}. Set it to torch.")
        warnings.warn(f"{KEY}: OpenVINO {why}; PyTorch goes on. Set it to torch to keep it from trying.", stacklevel=2)
        self._applies = False

    def _may_run(self, encoder: nn.Module, pixels: Tensor) -> bool:
        plain = pixels.device.type == "cpu" and pixels.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return self._applies and plain and not encoder.training and isinstance(encoder, TinyViT) and not _is_watched(encoder)

    def _anew(self) -> EncoderEngine:
        return _restored(self.choice, self._applies)


def _restored(choice: Engine, applies: bool) -> EncoderEngine:
    engine = EncoderEngine("torch", nn.Identity())
    engine.choice, engine._applies = choice, applies
    return engine


def _state_of(encoder: nn.Module) -> object:
    """Return what changes when a weight is written to, or a module put in another's place."""
    tensors = chain(encoder.parameters(), encoder.buffers())
    return tuple((t.data_ptr(), t._version) for t in tensors), tuple(id(module) for module in encoder.modules())


def _is_watched(encoder: nn.Module) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())


def _compile(encoder: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the encoder as OpenVINO runs it, image by image."""
    import openvino

    # OpenVINO folds norms into convolutions itself, and runs its own pattern faster; a hook keeps ours from folding first.
    plain = copy.deepcopy(encoder)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_: None)
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns of Python numbers, which are constants for one input size.
        warnings.simplefilter("ignore")
        model = openvino.convert_model(plain, example_input=example, input=[tuple(example.shape)])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(model, "CPU", settings)

    def run(pixels: Tensor) -> Tensor:
        return torch.cat([torch.from_numpy(compiled(image[None].numpy())[0].copy()) for image in pixels])

    return run
