"""What is added to the image before the network."""

from medsam_tune.fusion.base import InputFusion

__all__ = ["InputFusion"]
