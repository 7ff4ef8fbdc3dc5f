"""Where prompt embeddings come from."""

from medsam_tune.prompts.base import PromptSource
from medsam_tune.prompts.box import BoxPrompt
from medsam_tune.prompts.embedding import EmbeddingPromptGenerator, FusedPromptGenerator
from medsam_tune.prompts.generator import (
    HarDNetPromptGenerator,
    ImagePromptGenerator,
    PromptGenerator,
    TimmPromptGenerator,
)
from medsam_tune.prompts.hardnet import HarDNet, HarDNetFeatures
from medsam_tune.prompts.none import NoPrompt

__all__ = [
    "BoxPrompt",
    "EmbeddingPromptGenerator",
    "FusedPromptGenerator",
    "HarDNet",
    "HarDNetFeatures",
    "HarDNetPromptGenerator",
    "ImagePromptGenerator",
    "NoPrompt",
    "PromptGenerator",
    "PromptSource",
    "TimmPromptGenerator",
]
