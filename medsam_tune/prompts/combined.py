"""Several prompts at once for each object, and one of several at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.prompts.base import PromptSampler
from medsam_tune.prompts.sampling import object_generators
from medsam_tune.types import PromptKind, Queries, SegmentationBatch

_FIELDS = ("boxes", "point_coords", "point_labels", "mask_inputs")


class CombinedPrompt(PromptSampler):
    """Give each object several kinds of prompt together, such as a box and a point.

    Args:
        samplers: At least one; each kind (points, boxes, mask) at most once.

    Raises:
        RecipeError: If there is none, or, when drawing (a network draws once when it is built), if two give the same kind.
    """

    def __init__(self, samplers: Sequence[PromptSampler]) -> None:
        if not samplers:
            raise RecipeError("model.prompts.init_args.samplers: is empty. Name at least one, or leave model.prompts out.")
        self.samplers = tuple(samplers)

    def reads_truth(self) -> bool:
        """Return True if one of the samplers does."""
        return any(sampler.reads_truth() for sampler in self.samplers)

    def draw(self, batch: SegmentationBatch, *, mask_side: int) -> Queries:
        """Return the queries with the prompts of all samplers."""
        return _joined([sampler.draw(batch, mask_side=mask_side) for sampler in self.samplers])


class OneOfPrompt(PromptSampler):
    """Give each object one of several prompts, chosen at random in training; the first of them in validation and test.

    Args:
        samplers: Two or more that end in the same number of tokens, such as a box and one point: SAM gives both two.

    Raises:
        RecipeError: If there are fewer than two, or, when drawing (a network draws once when it is built), if two give
            different numbers of points.
    """

    def __init__(self, samplers: Sequence[PromptSampler]) -> None:
        if len(samplers) < 2:
            raise RecipeError(
                f"model.prompts.init_args.samplers: expected two or more, got {len(samplers)}. "
                "Name the only one as model.prompts itself."
            )
        self.samplers = tuple(samplers)

    def reads_truth(self) -> bool:
        """Return True if one of the samplers does."""
        return any(sampler.reads_truth() for sampler in self.samplers)

    def draw(self, batch: SegmentationBatch, *, mask_side: int) -> Queries:
        """Return the queries with the prompt that was chosen for each object; ``form_index`` says which."""
        if not batch.training:
            return self.samplers[0].draw(batch, mask_side=mask_side)
        drawn = [sampler.draw(batch, mask_side=mask_side) for sampler in self.samplers]
        choice = [int(rng.integers(len(drawn))) for rng in object_generators(batch, purpose="choice")]
        chosen = torch.tensor(choice, dtype=torch.int64, device=batch.image_index.device)
        fields: dict[str, Any] = {name: _chosen([getattr(queries, name) for queries in drawn], chosen) for name in _FIELDS}
        return replace(batch.queries, **fields, forms=tuple(queries.kinds() for queries in drawn), form_index=chosen)


def _chosen(values: Sequence[Tensor | None], chosen: Tensor) -> Tensor | None:
    """Return for each row the value that its choice gives it; zeros where that gives none, which nobody reads."""
    given = [value for value in values if value is not None]
    if not given:
        return None
    if len({value.shape for value in given}) > 1:
        raise RecipeError(
            f"model.prompts.init_args.samplers: expected the same number of points, got {[value.shape[1] for value in given]}. "
            "Objects that differ in their number of points cannot be asked together; use one PointPrompt."
        )
    stacked = torch.stack([torch.zeros_like(given[0]) if value is None else value for value in values])
    return stacked[chosen, torch.arange(len(chosen), device=chosen.device)]


def _joined(drawn: Sequence[Queries]) -> Queries:
    kinds: list[PromptKind] = [kind for queries in drawn for kind in queries.kinds()]
    if len(set(kinds)) < len(kinds) or any(queries.forms for queries in drawn):
        raise RecipeError(
            f"model.prompts: CombinedPrompt expects samplers of different kinds, got {kinds}. "
            "Keep one a kind; PointPrompt takes the number of points."
        )
    joined = drawn[0]
    for queries in drawn[1:]:
        joined = replace(joined, **{name: value for name in _FIELDS if (value := getattr(queries, name)) is not None})
    return joined
