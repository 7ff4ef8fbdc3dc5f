"""Eight bits for the weights of exported graphs, and what that costs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUFFIX = ".int8"
# Matrix products alone: onnxruntime's integer convolutions are slower than its float ones on most CPUs.
_KINDS = ["MatMul", "Gemm"]


def write_int8(folder: Path) -> Mapping[str, Any]:
    """Write ``<graph>.int8.onnx`` beside each large graph: weights of matrix products in 8 bits, a scale a channel.

    The decoder stays in float32: it is small, and a click is answered by it.

    Args:
        folder: Holds the graphs.

    Returns:
        The sizes in MB, before and after, by name of the graph.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    sizes: dict[str, float] = {}
    for path in sorted(folder.glob("*.onnx")):
        if path.stem not in ("encoder", "model"):
            continue
        small = path.with_name(f"{path.stem}{SUFFIX}.onnx")
        logger, level = logging.getLogger(), logging.getLogger().level
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # It advises a preprocessing that the exporter has done already.
            logger.setLevel(logging.ERROR)
            try:
                quantize_dynamic(path, small, op_types_to_quantize=_KINDS, per_channel=True, weight_type=QuantType.QInt8)
            finally:
                logger.setLevel(level)
        sizes |= {f"{each.stem}_MB": round(each.stat().st_size / 1e6, 1) for each in (path, small)}
    return sizes
