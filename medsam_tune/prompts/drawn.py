"""Prompts that are drawn as points, boxes or masks and then embedded by SAM's own prompt encoder, alone or together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.prompts.base import PromptSource
from medsam_tune.types import PromptEmbeddings, SegmentationBatch

PromptKind = Literal["points", "boxes", "mask_inputs"]


@dataclass(frozen=True)
class Prompts:
    """Hold the prompts of N objects, as ``Backbone.embed_prompts`` takes them.

    Attributes:
        points: Coordinates (N, P, 2) in (x, y) pixels of the input frame and labels (N, P): 1 foreground, 0 background,
            -1 padding.
        boxes: (N, 4) XYXY pixels of the input frame.
        mask_inputs: (N, 1, 4g, 4g) logits.
    """

    points: tuple[Tensor, Tensor] | None = None
    boxes: Tensor | None = None
    mask_inputs: Tensor | None = None

    def joined(self, other: Prompts) -> Prompts:
        """Return these prompts with those that ``other`` has."""
        return replace(self, **{f.name: value for f in fields(other) if (value := getattr(other, f.name)) is not None})

    def embed(self, n_objects: int, backbone: Backbone) -> PromptEmbeddings:
        """Embed them for N objects."""
        return backbone.embed_prompts(n_objects, points=self.points, boxes=self.boxes, mask_inputs=self.mask_inputs)


class DrawnPrompt(PromptSource):
    """Draw one kind of prompt for each object.

    Attributes:
        prompt_kind: Which field of ``Prompts`` it fills.
    """

    prompt_kind: ClassVar[PromptKind]

    @abstractmethod
    def draw(self, batch: SegmentationBatch, *, mask_side: int) -> Prompts:
        """Return the prompts of the batch's N objects; ``mask_side`` is 4g, the side of a mask prompt."""

    def reads_ground_truth(self) -> bool:
        """Return True: the prompt is drawn from the true masks."""
        return True

    def forward(self, batch: SegmentationBatch, image_embeddings: Tensor, backbone: Backbone) -> PromptEmbeddings:
        """Return what SAM's prompt encoder makes of the drawn prompts: sparse (N, T, C) and dense (N, C, g, g)."""
        return self.draw(batch, mask_side=4 * backbone.embedding_size).embed(batch.n_objects, backbone)


class CombinedPrompt(PromptSource):
    """Give SAM several kinds of prompt for each object, such as a box and a point.

    Args:
        sources: At least one; each kind (points, box, mask) at most once.

    Raises:
        RecipeError: If there is none, or two give the same kind.
    """

    def __init__(self, sources: Sequence[DrawnPrompt]) -> None:
        super().__init__()
        kinds = [source.prompt_kind for source in sources]
        if not kinds or len(set(kinds)) < len(kinds):
            raise RecipeError(
                f"model.prompt_source.init_args.sources: expected one or more sources of different kinds, got {kinds}. "
                "Keep one source a kind; PointPrompt takes the number of points."
            )
        self.sources = nn.ModuleList(sources)

    def draw(self, batch: SegmentationBatch, *, mask_side: int) -> Prompts:
        """Return all prompts of the batch's N objects."""
        drawn = Prompts()
        for source in self.sources:
            drawn = drawn.joined(cast(DrawnPrompt, source).draw(batch, mask_side=mask_side))
        return drawn

    def reads_ground_truth(self) -> bool:
        """Return True if one of the sources does."""
        return any(cast(DrawnPrompt, source).reads_ground_truth() for source in self.sources)

    def forward(self, batch: SegmentationBatch, image_embeddings: Tensor, backbone: Backbone) -> PromptEmbeddings:
        """Return the embeddings of all prompts together: sparse (N, T, C) and dense (N, C, g, g)."""
        return self.draw(batch, mask_side=4 * backbone.embedding_size).embed(batch.n_objects, backbone)
