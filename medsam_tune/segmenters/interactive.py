"""Interactive training: a prompt, then clicks on what is still wrong, all decoded from one encoder pass.

Papers: Kirillov et al. 2023, Segment Anything, arXiv 2304.02643, section A; Cheng et al. 2023, SAM-Med2D, arXiv 2308.16184.
Authors' code: SAM's training was never published; github.com/OpenGVLab/SAM-Med2D, ``train.py`` @ 6d2e484, ``utils.py`` @
73145db.

Differs from the authors' code:
- The losses of all rounds are summed for one backward pass and one step; SAM-Med2D takes nine steps of the optimizer on a
  batch, one a round, so its later rounds see a network that the earlier ones have changed.
- One mask a round; there the best of three by predicted IoU, chosen for each object.
- Each object draws its number of clicks and its rounds without clicks; there a batch shares one draw.
- The prompt encoder, if it learns, learns in every round; there in the first round only.
- By default the first prompt and all clicks so far stay, as in SAM. SAM-Med2D shows the last clicks alone (``keep: last``),
  feeds probabilities where SAM takes logits (``mask_feedback: probs``), and tunes the encoder in the first round only
  (``encoder_rounds: first``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.losses.base import MaskLoss
from medsam_tune.prompts.interactive import ClickRule, Clicks, corrective_clicks, rounds_without_clicks
from medsam_tune.segmenters.base import SamParts, Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import ImageEmbeddings, MaskPrediction, PromptEmbeddings, Queries, SegmentationBatch


class InteractiveSegmenter(SamSegmenter):
    """Train and score a promptable network over rounds of corrective clicks; otherwise an ordinary ``SamSegmenter``.

    Round 0 decodes the first prompt. Every further round clicks where the last mask differs from the ground truth and decodes
    the clicks together with that mask. In validation and test the clicks come from the ground truth as well: this simulates a
    user who knows the answer, an oracle, with one click a round. On new images the first prompt stands alone. Each round of a
    training step holds its own decoder graph in memory.

    Args:
        parts: As in ``SamSegmenter``; ``parts.prompts`` draws the first prompt, a box, a point, or ``OneOfPrompt``.
        rounds: Predictions a training step, the first prompt's among them.
        eval_rounds: The same in validation and test; 1 scores the first prompt alone.
        clicks: Clicks a training round; of several numbers each object draws one.
        rule: Where in the error a training click lies: ``any`` wrong pixel, a ``random`` one of the largest connected wrong
            region, or the ``centre`` of that region.
        eval_rule: The same in validation and test.
        mask_feedback: What of the last mask goes in as the mask prompt: ``logits``, ``probs``, or ``none``.
        keep: ``all``: the first prompt and all clicks so far stand beside the new ones; ``last``: the new clicks alone.
        mask_only_rounds: Training rounds that show the last mask without any click: the last round and others at random.
        encoder_rounds: Rounds that the image embedding learns from: ``all``, or the ``first`` alone.

    Raises:
        RecipeError: If the settings contradict each other, or as for ``SamSegmenter``.
    """

    def __init__(
        self,
        parts: SamParts,
        *,
        rounds: int = 4,
        eval_rounds: int = 4,
        clicks: Sequence[int] = (1,),
        rule: ClickRule = "random",
        eval_rule: ClickRule = "centre",
        mask_feedback: Literal["logits", "probs", "none"] = "logits",
        keep: Literal["all", "last"] = "all",
        mask_only_rounds: int = 0,
        encoder_rounds: Literal["all", "first"] = "all",
    ) -> None:
        _check_counts(rounds, eval_rounds, clicks)
        _check_mask_only(mask_only_rounds, rounds, mask_feedback)
        super().__init__(parts)
        self.rounds, self.eval_rounds, self.clicks = rounds, eval_rounds, tuple(clicks)
        self.rule: ClickRule = rule
        self.eval_rule: ClickRule = eval_rule
        self.mask_feedback: Literal["logits", "probs", "none"] = mask_feedback
        self.keep: Literal["all", "last"] = keep
        self.mask_only_rounds, self.encoder_rounds = mask_only_rounds, encoder_rounds

    def untuned(self) -> Segmenter | None:
        """Return the released network under the same first prompt and the same rounds of clicks."""
        return InteractiveSegmenter(
            SamParts(self.backbone.fresh(), self.prompts, objects_per_decode=self.objects_per_decode),
            eval_rounds=self.eval_rounds,
            eval_rule=self.eval_rule,
            mask_feedback=self.mask_feedback,
            keep=self.keep,
        )

    def forward(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return the last round's logits (N, 1, 4g, 4g) and predicted IoU (N, 1)."""
        return self.rounds_of(batch)[-1]

    def ask(self, batch: SegmentationBatch) -> Queries:
        """Return the queries; a mask that a user feeds back goes in as it did in training: logits, probabilities or nothing."""
        queries = super().ask(batch)
        given = batch.queries.mask_inputs
        return queries if given is None else replace(queries, mask_inputs=self._mask_inputs(given))

    def drawn(self, batch: SegmentationBatch) -> SegmentationBatch:
        """Return the batch with its first prompts; a mask is drawn later, or it would be taken for a user's."""
        drawn = super().drawn(batch)
        return drawn if drawn.queries.mask_inputs is None else batch

    def training_losses(self, batch: SegmentationBatch, loss: MaskLoss) -> dict[str, Tensor]:
        """Return each term of ``loss``, summed over the rounds."""
        totals: dict[str, Tensor] = {}
        for prediction in self.rounds_of(batch):
            for name, term in loss(prediction, batch).items():
                totals[name] = totals[name] + term if name in totals else term
        return totals

    def rounds_of(self, batch: SegmentationBatch) -> list[MaskPrediction]:
        """Return the predictions of all rounds, first prompt first: ``rounds`` in training, else ``eval_rounds``.

        Clicks are a function of seed, epoch, image, object and round, and of the masks before them. New images have no truth
        to draw clicks from: there the first prompt stands alone.
        """
        return self._played(batch)[0]

    def given(self, batch: SegmentationBatch) -> Queries:
        """Return the queries with the first prompt and the clicks of the last round, or with these clicks alone."""
        queries, (_, clicks) = self.ask(batch), self._played(batch)
        if not clicks.labels.shape[1]:
            return queries
        asked = queries.without_prompts() if self.keep == "last" else queries
        first = Clicks.none(batch.n_objects, clicks.coords.device)
        if asked.point_coords is not None and asked.point_labels is not None:
            first = Clicks(asked.point_coords, asked.point_labels.float())
        shown = first.joined(clicks)
        return replace(asked, point_coords=shown.coords, point_labels=shown.labels)

    def _played(self, batch: SegmentationBatch) -> tuple[list[MaskPrediction], Clicks]:
        """Return the predictions of all rounds, and the clicks that the last one was shown."""
        rounds = 1 if batch.truth is None else self.rounds if batch.training else self.eval_rounds
        embeddings = self.image_embeddings(batch)
        first = self.prompt_encoder(self.ask(batch), batch.encoder_input(), embeddings, self.backbone)
        predictions = [self._decode(embeddings, batch.image_index, first)]
        clicks = shown = Clicks.none(batch.n_objects, batch.images.device)
        if not batch.n_objects:
            return predictions * rounds, shown
        later = embeddings if self.encoder_rounds == "all" else embeddings.detach()
        silent = rounds_without_clicks(batch, rounds=rounds, count=self.mask_only_rounds if batch.training else 0)
        for number in range(1, rounds):
            # A click and the mask fed back are inputs, as if a user had given them: no gradient flows through them.
            low_res_masks = predictions[-1].low_res_masks[:, :1].detach().float()
            new = self._new_clicks(low_res_masks, batch, number)
            clicks = clicks.joined(new) if self.keep == "all" else new
            shown = clicks.withheld(silent[:, number])
            predictions.append(self._corrected(later, batch.image_index, first, shown, low_res_masks))
        return predictions, shown

    def _new_clicks(self, low_res_masks: Tensor, batch: SegmentationBatch, number: int) -> Clicks:
        counts, rule = (self.clicks, self.rule) if batch.training else ((1,), self.eval_rule)
        return corrective_clicks(low_res_masks, batch, click_round=number, counts=counts, rule=rule)

    def _corrected(
        self, embeddings: ImageEmbeddings, image_index: Tensor, first: PromptEmbeddings, clicks: Clicks, low_res_masks: Tensor
    ) -> MaskPrediction:
        """Decode one round; objects with the same number of clicks go through the decoder together."""
        groups, parts = [], []
        for rows, given in clicks.by_count():
            prompts = self._prompts_of_round(first.rows(rows), given, low_res_masks[rows])
            groups.append(rows)
            parts.append(self._decode(embeddings, image_index[rows], prompts))
        return _in_order(parts, torch.cat(groups))

    def _prompts_of_round(self, first: PromptEmbeddings, clicks: Clicks, low_res_masks: Tensor) -> PromptEmbeddings:
        count = clicks.labels.shape[1]
        prompts = self.backbone.embed_prompts(
            len(low_res_masks),
            points=(clicks.coords, clicks.labels) if count else None,
            mask_inputs=self._mask_inputs(low_res_masks),
        )
        dense = first.dense_embeddings if self.mask_feedback == "none" else prompts.dense_embeddings
        sparse = prompts.sparse_embeddings
        if count and self.keep == "all" and first.sparse_embeddings.shape[1]:
            # SAM pads points that stand alone; here they stand beside the first prompt, which has its padding if it has no box.
            sparse = torch.cat([first.sparse_embeddings, sparse[:, :-1]], dim=1)
        return PromptEmbeddings(sparse, dense)

    def _mask_inputs(self, low_res_masks: Tensor) -> Tensor | None:
        if self.mask_feedback == "none":
            return None
        return low_res_masks.sigmoid() if self.mask_feedback == "probs" else low_res_masks


def _in_order(parts: Sequence[MaskPrediction], rows: Tensor) -> MaskPrediction:
    """Join predictions whose objects stood at ``rows`` (N,) of the batch."""
    if len(parts) == 1:
        return parts[0]
    order = rows.argsort()
    ious = [part.iou_predictions for part in parts if part.iou_predictions is not None]
    masks = torch.cat([part.low_res_masks for part in parts])[order]
    return MaskPrediction(masks, torch.cat(ious)[order] if ious else None)


def _check_counts(rounds: int, eval_rounds: int, clicks: Sequence[int]) -> None:
    key = "model.segmenter.init_args"
    if min(rounds, eval_rounds) < 1:
        raise RecipeError(
            f"{key}.rounds: expected 1 or more, got {rounds} and eval_rounds {eval_rounds}. The first prompt is one round."
        )
    if not clicks or min(clicks) < 1:
        raise RecipeError(
            f"{key}.clicks: expected numbers of 1 or more, got {list(clicks)}. Rounds without clicks: mask_only_rounds."
        )


def _check_mask_only(mask_only_rounds: int, rounds: int, mask_feedback: str) -> None:
    key = "model.segmenter.init_args.mask_only_rounds"
    if not 0 <= mask_only_rounds <= max(0, rounds - 2):
        raise RecipeError(
            f"{key}: expected 0 to {max(0, rounds - 2)} with rounds {rounds}, got {mask_only_rounds}. "
            "The first prompt and the first clicks always stand; set more rounds."
        )
    if mask_only_rounds and mask_feedback == "none":
        raise RecipeError(f"{key}: {mask_only_rounds} rounds would show nothing. Set mask_feedback: logits, or 0 here.")
