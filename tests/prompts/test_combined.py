"""Several kinds of prompt for one object."""

import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.prompt_encoders import SamPromptEncoder
from medsam_tune.prompts import BoxPrompt, CombinedPrompt, MaskPrompt, PointPrompt
from tests.factories import make_batch


def test_box_point_and_mask_together_are_what_sam_makes_of_all_three(tiny_backbone):
    batch = make_batch(objects=(2, 1))
    box, point, mask = BoxPrompt(), PointPrompt(2, 1), MaskPrompt()
    queries = CombinedPrompt([box, point, mask]).draw(batch, mask_side=16)
    prompts = SamPromptEncoder()(queries, batch.encoder_input(), tiny_backbone.encode(batch.encoder_input()), tiny_backbone)
    points = point.draw(batch, mask_side=16)
    expected = tiny_backbone.embed_prompts(
        3,
        boxes=box.boxes(batch),
        points=(points.point_coords, points.point_labels),
        mask_inputs=mask.draw(batch, mask_side=16).mask_inputs,
    )
    # Three points and two corners; the padding point that SAM adds to points alone is gone.
    assert prompts.sparse_embeddings.shape[1] == 5
    assert torch.equal(prompts.sparse_embeddings, expected.sparse_embeddings)
    assert torch.equal(prompts.dense_embeddings, expected.dense_embeddings)


def test_no_sampler_or_two_of_a_kind_is_refused():
    with pytest.raises(RecipeError, match=r"Name at least one, or leave model\.prompts out"):
        CombinedPrompt([])
    with pytest.raises(RecipeError, match="expects samplers of different kinds"):
        CombinedPrompt([PointPrompt(), PointPrompt()]).draw(make_batch(), mask_side=16)


def test_combination_reads_the_truth_where_a_part_does():
    assert CombinedPrompt([BoxPrompt("whole_image"), PointPrompt()]).reads_truth()
    assert not CombinedPrompt([BoxPrompt("whole_image")]).reads_truth()
