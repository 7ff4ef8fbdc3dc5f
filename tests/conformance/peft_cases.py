"""The tuners of the peft library that the conformance suite runs over: name to (maker, encoder families).

One of each way to change a layer; ``tests/tuners/test_peft_tuner.py`` goes through all of peft's methods on one encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peft

from medsam_tune.tuners.base import Tuner
from medsam_tune.tuners.peft_tuner import PeftTuner

_QKV = ("image_encoder.attention.qkv",)
_DECODER = ("mask_decoder.attention",)
_CONFIGS = {
    "LoRA": (peft.LoraConfig(r=4), _QKV),
    "LoRA-with-decoder": (peft.LoraConfig(r=2, lora_dropout=0.1), ("image_encoder.attention", "image_encoder.mlp", *_DECODER)),
    "DoRA": (peft.LoraConfig(r=4, use_dora=True), _QKV),
    "AdaLoRA": (peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10), _QKV),
    "LoHa": (peft.LoHaConfig(r=4), _QKV),
    "IA3": (peft.IA3Config(feedforward_modules=[]), _QKV),
    "VeRA": (peft.VeraConfig(r=8), _QKV),
    "BOFT": (peft.BOFTConfig(boft_block_size=4), _QKV),
    "FourierFT-random": (peft.FourierFTConfig(n_frequency=50), _QKV),
    "LayerNorm": (peft.LNTuningConfig(), ("image_encoder.norm", "mask_decoder.norm")),
}

PEFT_CASES: dict[str, tuple[Callable[[], Tuner], tuple[str, ...]]] = {
    f"peft-{name}": (partial(PeftTuner, config, parts), ("vit", "tiny_vit")) for name, (config, parts) in _CONFIGS.items()
}
