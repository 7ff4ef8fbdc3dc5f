"""Which tuners the conformance suite runs over: every concrete one in the package, found by looking."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import medsam_tune.tuners
from medsam_tune.tuners.base import NoTuner, Tuner
from medsam_tune.tuners.bias import BiasTuning
from medsam_tune.tuners.depthwise_adapter import DepthwiseAdapter
from medsam_tune.tuners.fact import FactorTuning
from medsam_tune.tuners.msa.bottleneck_adapter import BottleneckAdapter
from medsam_tune.tuners.msa.space_depth import SpaceDepthAdapter
from medsam_tune.tuners.norm import NormTuning
from medsam_tune.tuners.sam_adapter import SamAdapter
from medsam_tune.tuners.sam_med2d import SamMed2DAdapter
from medsam_tune.tuners.ssf import ScaleShiftTuning
from medsam_tune.tuners.volume_adapter import VolumeAdapter
from tests.conformance.discovery import concrete
from tests.conformance.peft_cases import PEFT_CASES

BETWEEN_LAYERS = {
    "AdaptFormer",
    "BottleneckAdapter",
    "ConvLoraTuner",
    "DepthwiseAdapter",
    "MaSamTuner",
    "SamAdapter",
    "SamMed2DAdapter",
    "SpaceDepthAdapter",
    "VolumeAdapter",
}


@dataclass(frozen=True)
class Case:
    """One tuner with settings.

    Attributes:
        make: Build a fresh tuner.
        families: Encoders it works on, out of ``tests.backbones.BACKBONES``.
        resting: A piece of the names of parameters that a single step may leave with a zero gradient, by design.
    """

    make: Callable[[], Tuner]
    families: tuple[str, ...] = ("vit", "tiny_vit")
    resting: str | None = None

    @property
    def merges(self) -> bool:
        """Whether the weights of the network can hold what was trained."""
        return type(self.make()).__name__ not in BETWEEN_LAYERS


# Settings beside the defaults; the class is discovered in any case.
SETTINGS: dict[str, Case] = {
    "BottleneckAdapter-repo": Case(
        lambda: BottleneckAdapter(init="repo", activation="gelu", decoder="none", train_mask_decoder=True)
    ),
    "BottleneckAdapter-two-mixings": Case(lambda: BottleneckAdapter(rank=8, hyper_layers=2, mlp_input="residual")),
    "BiasTuning-decoder": Case(lambda: BiasTuning(("image_encoder", "mask_decoder"))),
    "NormTuning-decoder": Case(lambda: NormTuning(("image_encoder", "mask_decoder"))),
    "FactorTuning-qkv": Case(lambda: FactorTuning(4, projections=("q", "k", "v"), dropout=0.0)),
    "ScaleShiftTuning-decoder": Case(lambda: ScaleShiftTuning(("mask_decoder.mlp", "mask_decoder.norm"))),
    # The tiny encoders have 8 channels; a quarter of them leaves two units that may be dead from the start.
    "SamMed2DAdapter": Case(lambda: SamMed2DAdapter(ratio=2.0)),
    "SamMed2DAdapter-repo": Case(lambda: SamMed2DAdapter(ratio=2.0, init="repo")),
    "SamAdapter-repo": Case(lambda: SamAdapter(init="repo"), ("vit",)),
    "VolumeAdapter-repo": Case(lambda: VolumeAdapter(8, init="repo")),
    "SpaceDepthAdapter-repo": Case(lambda: SpaceDepthAdapter(rank=8, init="repo", activation="gelu", decoder="none")),
    "DepthwiseAdapter": Case(lambda: DepthwiseAdapter(rank=16)),
    "DepthwiseAdapter-repo": Case(lambda: DepthwiseAdapter(rank=16, init="repo")),
    "BottleneckAdapter-decoder-alone": Case(lambda: BottleneckAdapter(placement=(), decoder="adapters")),
}
# Tuners that work on one encoder family only, and say so in a RecipeError on the other.
FAMILIES: dict[str, tuple[str, ...]] = {"SamAdapter": ("vit",)}
# One expert is chosen per image or window; the others wait for their turn.
RESTING = {"ConvLoraTuner": ".experts."}


def concrete_tuners() -> dict[str, type[Tuner]]:
    """Every concrete Tuner defined in a module of ``medsam_tune.tuners``, but NoTuner, by name."""
    return {name: tuner for name, tuner in concrete(medsam_tune.tuners, Tuner).items() if tuner is not NoTuner}


def has_defaults(tuner: type[Tuner]) -> bool:
    """Whether the tuner can be built without arguments."""
    return all(p.default is not p.empty for p in inspect.signature(tuner).parameters.values())


def all_cases() -> dict[str, Case]:
    """Every case by name: each discovered tuner with its defaults, and the settings above."""
    buildable = {name: tuner for name, tuner in concrete_tuners().items() if has_defaults(tuner)}
    defaults = {
        name: Case(tuner, FAMILIES.get(name, ("vit", "tiny_vit")), RESTING.get(name)) for name, tuner in buildable.items()
    }
    peft = {name: Case(make, families) for name, (make, families) in PEFT_CASES.items()}
    return {**defaults, **SETTINGS, **peft}


CASES = all_cases()
RUNS = [(name, family) for name, case in CASES.items() for family in case.families]
