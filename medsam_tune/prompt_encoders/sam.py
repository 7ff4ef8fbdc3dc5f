"""SAM's own prompt encoder, which every SAM brings with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.prompt_encoders.base import PromptEncoder
from medsam_tune.types import EncoderInput, ImageEmbeddings, PromptEmbeddings, PromptKind, Queries


class SamPromptEncoder(PromptEncoder):
    """Embed boxes, points and masks by the backbone's own prompt encoder; without a prompt there is SAM's no-mask embedding.

    It has no parameters of its own: what of the backbone's prompt encoder learns is said by ``model.backbone.trainable``.
    """

    def takes_prompts(self) -> bool:
        """Return True."""
        return True

    def check_queries(self, queries: Queries, backbone: Backbone) -> None:
        """Refuse different prompts that end in different numbers of tokens."""
        _check_tokens([_embed(queries, kinds, backbone) for kinds in queries.forms], queries.forms)

    def forward(
        self, queries: Queries, inputs: EncoderInput, embeddings: ImageEmbeddings, backbone: Backbone
    ) -> PromptEmbeddings:
        """Return sparse (N, T, C) and dense (N, C, g, g) embeddings.

        Raises:
            RecipeError: If objects with different prompts have different numbers of tokens.
        """
        if queries.form_index is None:
            return _embed(queries, queries.kinds(), backbone)
        # Every form is embedded for every object, so that plain ddp finds a gradient whatever was chosen.
        forms = [_embed(queries, kinds, backbone) for kinds in queries.forms]
        _check_tokens(forms, queries.forms)
        rows = torch.arange(queries.n_objects, device=queries.image_index.device)
        sparse = torch.stack([form.sparse_embeddings for form in forms])[queries.form_index, rows]
        dense = torch.stack([form.dense_embeddings for form in forms])[queries.form_index, rows]
        return PromptEmbeddings(sparse, dense)


def _embed(queries: Queries, kinds: Sequence[PromptKind], backbone: Backbone) -> PromptEmbeddings:
    coords, labels = queries.point_coords, queries.point_labels
    return backbone.embed_prompts(
        queries.n_objects,
        points=(coords, labels) if "points" in kinds and coords is not None and labels is not None else None,
        boxes=queries.boxes if "boxes" in kinds else None,
        mask_inputs=queries.mask_inputs if "mask_inputs" in kinds else None,
    )


def _check_tokens(forms: Sequence[PromptEmbeddings], kinds: Sequence[Sequence[PromptKind]]) -> None:
    tokens = [form.sparse_embeddings.shape[1] for form in forms]
    if len(set(tokens)) > 1:
        named = ", ".join(f"{' and '.join(kind)}: {count}" for kind, count in zip(kinds, tokens, strict=True))
        raise RecipeError(
            f"model.prompts.init_args.samplers: expected the same number of tokens, got {named}. "
            "A box goes with PointPrompt(positives: 1)."
        )
