"""Trained branches that join at the image embedding."""

from medsam_tune.side.base import SideNetwork
from medsam_tune.side.ladder import LadderNetwork

__all__ = ["LadderNetwork", "SideNetwork"]
