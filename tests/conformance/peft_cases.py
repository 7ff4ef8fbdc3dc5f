"""The tuners of the peft library that the conformance suite runs over: name to (maker, encoder families).

``tests/tuners/test_peft_tuner.py`` runs over every method of peft on the ViT; here stands one of each kind.
"""

from __future__ import annotations

from collections.abc import Callable

import peft

from medsam_tune.tuners.base import Tuner
from medsam_tune.tuners.peft_tuner import PeftTuner

BOTH = ("vit", "tiny_vit")

PEFT_CASES: dict[str, tuple[Callable[[], Tuner], tuple[str, ...]]] = {
    "PeftTuner-lora": (
        lambda: PeftTuner(peft.LoraConfig(r=2), ["image_encoder.attention", "image_encoder.mlp", "mask_decoder.attention"]),
        BOTH,
    ),
    "PeftTuner-dora": (lambda: PeftTuner(peft.LoraConfig(r=2, use_dora=True)), BOTH),
    "PeftTuner-adalora": (lambda: PeftTuner(peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10)), BOTH),
    "PeftTuner-layer-norm": (lambda: PeftTuner(peft.LNTuningConfig(), ["image_encoder.norm", "mask_decoder.norm"]), BOTH),
    "PeftTuner-fourierft": (lambda: PeftTuner(peft.FourierFTConfig(n_frequency=20)), BOTH),
    "PeftTuner-oft-decoder": (lambda: PeftTuner(peft.OFTConfig(r=0, oft_block_size=4), ["mask_decoder.attention"]), BOTH),
}
