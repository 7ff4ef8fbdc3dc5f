"""No prompt."""

import torch

from medsam_tune.prompts import NoPrompt
from tests.factories import make_batch


def test_no_prompt_is_the_no_mask_embedding_without_a_token(tiny_backbone):
    prompts = NoPrompt()(make_batch(objects=(2, 1)), torch.zeros(2, 32, 4, 4), tiny_backbone)
    assert prompts.sparse_embeddings.shape == (3, 0, 32)
    assert torch.equal(prompts.dense_embeddings, tiny_backbone.no_mask_embedding().expand(3, 32, 4, 4))
