"""What is inserted into the backbone. Names are imported on first use: a tuner that is not asked for loads nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsam_tune.tuners.adaptformer import AdaptFormer
    from medsam_tune.tuners.base import NoTuner, Tuner
    from medsam_tune.tuners.bias import BiasTuning
    from medsam_tune.tuners.conv_lora import ConvLoraTuner
    from medsam_tune.tuners.depthwise_adapter import DepthwiseAdapter
    from medsam_tune.tuners.fact import FactorTuning
    from medsam_tune.tuners.full import DecoderTuning, FullTuning, PartTuning
    from medsam_tune.tuners.msa.bottleneck_adapter import BottleneckAdapter
    from medsam_tune.tuners.msa.space_depth import SpaceDepthAdapter
    from medsam_tune.tuners.norm import NormTuning
    from medsam_tune.tuners.peft_tuner import PeftTuner
    from medsam_tune.tuners.sam_adapter import SamAdapter
    from medsam_tune.tuners.sam_med2d import SamMed2DAdapter
    from medsam_tune.tuners.samed import SamedTuner
    from medsam_tune.tuners.ssf import ScaleShiftTuning
    from medsam_tune.tuners.volume_adapter import MaSamTuner, VolumeAdapter

__all__ = [
    "AdaptFormer",
    "BiasTuning",
    "BottleneckAdapter",
    "ConvLoraTuner",
    "DecoderTuning",
    "DepthwiseAdapter",
    "FactorTuning",
    "FullTuning",
    "MaSamTuner",
    "NoTuner",
    "NormTuning",
    "PartTuning",
    "PeftTuner",
    "SamAdapter",
    "SamMed2DAdapter",
    "SamedTuner",
    "ScaleShiftTuning",
    "SpaceDepthAdapter",
    "Tuner",
    "VolumeAdapter",
]

_HOMES = {
    "AdaptFormer": "adaptformer",
    "BiasTuning": "bias",
    "BottleneckAdapter": "msa.bottleneck_adapter",
    "ConvLoraTuner": "conv_lora",
    "DecoderTuning": "full",
    "DepthwiseAdapter": "depthwise_adapter",
    "FactorTuning": "fact",
    "FullTuning": "full",
    "MaSamTuner": "volume_adapter",
    "NoTuner": "base",
    "NormTuning": "norm",
    "PartTuning": "full",
    "PeftTuner": "peft_tuner",
    "SamAdapter": "sam_adapter",
    "SamMed2DAdapter": "sam_med2d",
    "SamedTuner": "samed",
    "ScaleShiftTuning": "ssf",
    "SpaceDepthAdapter": "msa.space_depth",
    "Tuner": "base",
    "VolumeAdapter": "volume_adapter",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
