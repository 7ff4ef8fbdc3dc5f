"""What turns queries into prompt embeddings: SAM's own prompt encoder, or a generator that overloads it."""

from medsam_tune.prompt_encoders.base import PromptEncoder
from medsam_tune.prompt_encoders.embedding import EmbeddingPromptGenerator, FusedPromptGenerator
from medsam_tune.prompt_encoders.generator import (
    HarDNetPromptGenerator,
    ImagePromptGenerator,
    PromptGenerator,
    TimmPromptGenerator,
)
from medsam_tune.prompt_encoders.hardnet import HarDNet, HarDNetFeatures
from medsam_tune.prompt_encoders.sam import SamPromptEncoder

__all__ = [
    "EmbeddingPromptGenerator",
    "FusedPromptGenerator",
    "HarDNet",
    "HarDNetFeatures",
    "HarDNetPromptGenerator",
    "ImagePromptGenerator",
    "PromptEncoder",
    "PromptGenerator",
    "SamPromptEncoder",
    "TimmPromptGenerator",
]
