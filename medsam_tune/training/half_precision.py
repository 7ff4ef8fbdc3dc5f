"""Half precision only where the hardware computes in it: elsewhere it is emulated, and slower than float32."""

from __future__ import annotations

import platform

# The Ampere generation, compute capability 8.0, is the first of NVIDIA's with bf16 in hardware.
FIRST_WITH_BF16 = 8


def processor_has_bf16() -> bool:
    """Say whether this processor multiplies bf16; of others than x86 it is taken for granted."""
    import torch

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def half_precision_fault(precision: str, accelerator: str) -> str | None:
    """Say why this hardware should not train in this precision, and what to set instead; None where it may.

    On AMD's Zen 3 under bf16 autocast a linear layer took 5 times and a convolution 19 times as long as in float32.

    Args:
        precision: ``trainer.precision``.
        accelerator: ``trainer.accelerator``.
    """
    if precision not in ("bf16-mixed", "16-mixed", "bf16", "16"):
        return None
    import torch

    if accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        if precision.startswith("bf16") and properties.major < FIRST_WITH_BF16 and torch.version.hip is None:
            capability = f"{properties.major}.{properties.minor}"
            return (
                f"{precision}, but {properties.name} has no bf16 in hardware (compute capability {capability}; "
                f"{FIRST_WITH_BF16}.0 is the first). Set trainer.precision: 16-mixed"
            )
        return None
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if on_cpu and not processor_has_bf16():
        taken = "" if precision.startswith("bf16") else ", for which Lightning takes bf16-mixed on a CPU"
        return (
            f"{precision}{taken}, but this processor has no bf16 instructions (AVX512-BF16 or AMX), so that layers would take "
            "several times as long. Leave trainer.precision out"
        )
    return None
