"""Up-scaling of image tokens by matrix products against segment_anything's own modules, with gradients."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer

from medsam_tune.backbone import SamBackbone, token_upscaling
from medsam_tune.backbone.token_upscaling import is_stock_upscaling, mask_product
from medsam_tune.types import ImageEmbeddings


def _upscaling(width=32):
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=1, embedding_dim=width, num_heads=4, mlp_dim=16)
    return MaskDecoder(transformer_dim=width, transformer=transformer).output_upscaling.double()


def _leaves(n_masks):
    """Return image tokens of two objects on a grid of 3 rows and 5 columns, and filters, in float64."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 15, 32), (2, n_masks, 4))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("n_masks", [1, 4])
def test_masks_and_all_gradients_are_those_of_the_transposed_convolutions(n_masks, monkeypatch):
    upscaling, weights = _upscaling(), torch.randn(2, n_masks, 12, 20, dtype=torch.float64)

    def answers():
        tokens, filters = _leaves(n_masks)
        masks = mask_product(upscaling, tokens, (3, 5))(filters)
        learning = [tokens, filters, *upscaling.parameters()]
        return masks.detach(), torch.autograd.grad((masks * weights).sum(), learning)

    masks, gradients = answers()
    monkeypatch.setattr(token_upscaling, "is_stock_upscaling", lambda _: False)
    stock_masks, stock_gradients = answers()
    assert masks.shape == (2, n_masks, 12, 20)
    torch.testing.assert_close(masks, stock_masks, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(gradients, stock_gradients, rtol=1e-10, atol=1e-12)


def test_without_gradients_the_modules_are_called_to_the_bit():
    upscaling, (tokens, filters) = _upscaling(), _leaves(1)
    with torch.no_grad():
        masks = mask_product(upscaling, tokens, (3, 5))(filters)
        image = upscaling(tokens.transpose(1, 2).reshape(2, 32, 3, 5))
        assert torch.equal(masks, (filters @ image.flatten(2)).reshape(2, 1, 12, 20))


def test_what_is_inserted_or_listens_is_called():
    upscaling, calls = _upscaling(), []
    assert is_stock_upscaling(upscaling)
    handle = upscaling[0].register_forward_hook(lambda *_: calls.append(1))
    tokens, filters = _leaves(1)
    mask_product(upscaling, tokens, (3, 5))(filters)
    assert calls == [1]
    handle.remove()
    assert is_stock_upscaling(upscaling)
    upscaling[1] = torch.nn.Sequential(upscaling[1])
    assert not is_stock_upscaling(upscaling)


def test_a_step_of_a_backbone_takes_the_tokens_way(monkeypatch):
    backbone = SamBackbone("random_tiny", trainable=["mask_decoder"])
    seen, upscale = [], token_upscaling.upscale_tokens

    def counting(*given):
        seen.append(1)
        return upscale(*given)

    monkeypatch.setattr(token_upscaling, "upscale_tokens", counting)
    prompts = backbone.embed_prompts(1, boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    embeddings, index = ImageEmbeddings(torch.randn(1, 32, 4, 4)), torch.zeros(1, dtype=torch.int64)
    learned = backbone.decode(embeddings, index, prompts).low_res_masks
    assert seen == [1]
    with torch.no_grad():
        torch.testing.assert_close(backbone.decode(embeddings, index, prompts).low_res_masks, learned, rtol=1e-4, atol=1e-5)
    assert seen == [1]


def test_no_object_gives_no_mask_and_gradients_of_zero():
    upscaling = _upscaling()
    masks = mask_product(upscaling, torch.zeros(0, 15, 32, dtype=torch.float64), (3, 5))(torch.zeros(0, 1, 4).double())
    assert masks.shape == (0, 1, 12, 20)
    masks.sum().backward()
    assert all(not parameter.grad.any() for parameter in upscaling.parameters())
