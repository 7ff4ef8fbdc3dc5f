"""Trained branches that join at the image embedding."""

from medsam_tune.side.base import SideNetwork

__all__ = ["SideNetwork"]
