"""What is added to the image before the network."""

from medsam_tune.fusion.base import InputFusion
from medsam_tune.fusion.samaug import AddRgb, Concat, StackGrey, priors_to_input, render_priors

__all__ = ["AddRgb", "Concat", "InputFusion", "StackGrey", "priors_to_input", "render_priors"]
