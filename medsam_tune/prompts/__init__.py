"""Where prompt embeddings come from."""

from medsam_tune.prompts.base import PromptSource
from medsam_tune.prompts.box import BoxPrompt
from medsam_tune.prompts.drawn import CombinedPrompt, DrawnPrompt, Prompts
from medsam_tune.prompts.embedding import EmbeddingPromptGenerator, FusedPromptGenerator
from medsam_tune.prompts.generator import (
    HarDNetPromptGenerator,
    ImagePromptGenerator,
    PromptGenerator,
    TimmPromptGenerator,
)
from medsam_tune.prompts.hardnet import HarDNet, HarDNetFeatures
from medsam_tune.prompts.interactive import OneOfPrompt
from medsam_tune.prompts.mask import MaskPrompt
from medsam_tune.prompts.none import NoPrompt
from medsam_tune.prompts.point import PointPrompt
from medsam_tune.prompts.sampling import BoxJitter

__all__ = [
    "BoxJitter",
    "BoxPrompt",
    "CombinedPrompt",
    "DrawnPrompt",
    "EmbeddingPromptGenerator",
    "FusedPromptGenerator",
    "HarDNet",
    "HarDNetFeatures",
    "HarDNetPromptGenerator",
    "ImagePromptGenerator",
    "MaskPrompt",
    "NoPrompt",
    "OneOfPrompt",
    "PointPrompt",
    "PromptGenerator",
    "PromptSource",
    "Prompts",
    "TimmPromptGenerator",
]
