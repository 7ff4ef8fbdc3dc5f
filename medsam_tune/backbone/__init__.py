"""The SAM that is tuned: encode an image, embed prompts, decode masks; its weights and what of it learns.

Names are imported on first use, so that ``medsam_tune.backbone.weights`` can be listed without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsam_tune.backbone.base import Backbone, WeightsIdentity
    from medsam_tune.backbone.sam import SamBackbone

__all__ = ["Backbone", "SamBackbone", "WeightsIdentity"]

_HOMES = {"Backbone": "base", "SamBackbone": "sam", "WeightsIdentity": "base"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
