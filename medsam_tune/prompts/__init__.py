"""How queries are drawn from the truth: boxes, points, masks, several together, one of several, clicks."""

from medsam_tune.prompts.base import PromptSampler
from medsam_tune.prompts.box import BoxPrompt
from medsam_tune.prompts.combined import CombinedPrompt, OneOfPrompt
from medsam_tune.prompts.mask import MaskPrompt
from medsam_tune.prompts.point import PointPrompt
from medsam_tune.prompts.sampling import BoxJitter

__all__ = ["BoxJitter", "BoxPrompt", "CombinedPrompt", "MaskPrompt", "OneOfPrompt", "PointPrompt", "PromptSampler"]
