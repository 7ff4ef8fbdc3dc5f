"""Generators that read the image embedding: where they start, what they see, what learns."""

import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.prompt_encoders import EmbeddingPromptGenerator, FusedPromptGenerator
from tests.factories import encode, generate, make_batch


def _generators():
    return [EmbeddingPromptGenerator(16), FusedPromptGenerator(gen_size=32, width=16)]


@pytest.mark.parametrize("generator", _generators(), ids=["embedding", "fused"])
def test_start_is_sam_without_a_prompt(generator, tiny_backbone):
    batch = make_batch()
    embeddings = encode(tiny_backbone, batch.images, batch.frames)
    generator.attach(tiny_backbone)
    prompts = generate(generator, batch, embeddings, tiny_backbone)
    promptless = tiny_backbone.embed_prompts(2)
    assert torch.equal(prompts.dense_embeddings, promptless.dense_embeddings)
    assert prompts.sparse_embeddings.shape == promptless.sparse_embeddings.shape


@pytest.mark.parametrize("generator", _generators(), ids=["embedding", "fused"])
def test_every_parameter_learns_after_the_first_step(generator, tiny_backbone):
    batch = make_batch()
    embeddings = encode(tiny_backbone, batch.images, batch.frames)
    generator.attach(tiny_backbone)
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    target = torch.randn(2, 32, 4, 4)
    for _ in range(2):
        optimizer.zero_grad()
        (generate(generator, batch, embeddings, tiny_backbone).dense_embeddings - target).square().sum().backward()
        assert [name for name, p in generator.named_parameters() if p.grad is None] == []
        optimizer.step()
    assert [name for name, p in generator.named_parameters() if not p.grad.any()] == []


def test_first_step_moves_the_last_layer_only(tiny_backbone):
    batch, generator = make_batch(), EmbeddingPromptGenerator(16)
    generator.attach(tiny_backbone)
    generate(generator, batch, torch.randn(2, 32, 4, 4), tiny_backbone).dense_embeddings.square().sum().backward()
    assert {name for name, p in generator.named_parameters() if p.grad.any()} == {"trunk.head.weight", "trunk.head.bias"}


def test_embedding_generator_reads_the_embedding_only(tiny_backbone):
    batch, generator = make_batch(), EmbeddingPromptGenerator(16)
    generator.attach(tiny_backbone)
    torch.nn.init.normal_(generator.trunk.head.weight)
    black = torch.zeros_like(batch.images)
    embeddings = torch.randn(2, 32, 4, 4)
    with torch.no_grad():
        seen = [generator.generate(images, batch.frames, embeddings) for images in (batch.images, black)]
        other = generator.generate(batch.images, batch.frames, embeddings.flip(0))
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], other)


def test_fused_generator_reads_image_and_embedding(tiny_backbone):
    batch, generator = make_batch(), FusedPromptGenerator(gen_size=32, width=16)
    generator.attach(tiny_backbone)
    torch.nn.init.normal_(generator.trunk.head.weight)
    images, embeddings = batch.images.requires_grad_(), torch.randn(2, 32, 4, 4, requires_grad=True)
    generator.generate(images, batch.frames, embeddings).square().sum().backward()
    assert images.grad.any()
    assert embeddings.grad.any()


def test_dilations_one_and_two_see_three_cells_to_each_side(tiny_backbone):
    # Batch statistics in eval mode are fixed; group statistics would carry every cell everywhere.
    generator = EmbeddingPromptGenerator(8, dilations=(1, 2), norm="batch").eval()
    generator.attach(tiny_backbone)
    generator.eval()
    torch.nn.init.normal_(generator.trunk.head.weight)
    embeddings = torch.randn(1, 32, 15, 15, requires_grad=True)
    generator.trunk(embeddings)[0, :, 7, 7].sum().backward()
    seen = embeddings.grad[0].abs().sum(0) > 0
    expected = torch.zeros(15, 15, dtype=torch.bool)
    expected[4:11, 4:11] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("dilations", [(), (1, 0)])
def test_impossible_dilations_are_refused(dilations):
    with pytest.raises(RecipeError, match="expected one or more numbers from 1 up"):
        EmbeddingPromptGenerator(dilations=dilations)
