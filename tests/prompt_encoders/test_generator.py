"""Generators that read the image: their input, their start, their refusals, and timm networks."""

import pytest
import timm
import torch
from torchvision.transforms.functional import normalize

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.prompt_encoders import HarDNetPromptGenerator, TimmPromptGenerator
from medsam_tune.prompt_encoders.generator import generator_images
from tests.factories import encode, generate, make_batch


def _attached(backbone, **settings):
    generator = HarDNetPromptGenerator("39ds", gen_size=32, width=8, **settings)
    generator.attach(backbone)
    return generator


def _prompt(generator, backbone, batch):
    return generate(generator, batch, encode(backbone, batch.images, batch.frames), backbone)


def test_input_is_normalised_once_with_imagenets_numbers_over_the_valid_area():
    batch = make_batch(sizes=((64, 64),))
    seen = generator_images(batch.images, batch.frames, 64)
    expected = normalize(batch.images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)


def test_input_padding_is_zero():
    batch = make_batch(sizes=((32, 64),))
    seen = generator_images(batch.images, batch.frames, 64)
    assert not seen[..., 32:, :].any()
    assert seen[..., :32, :].abs().min() > 0


def test_input_is_resized_corner_to_corner():
    batch = make_batch(sizes=((64, 64),))
    full, small = (generator_images(batch.images, batch.frames, size) for size in (64, 22))
    # 63 / 21 = 3: every sample falls on a pixel, so nothing is mixed.
    torch.testing.assert_close(small, full[..., ::3, ::3])


def test_prompt_has_one_dense_embedding_an_image_and_no_token(tiny_backbone):
    prompts = _prompt(_attached(tiny_backbone), tiny_backbone, make_batch())
    assert prompts.sparse_embeddings.shape == (2, 0, 32)
    assert prompts.dense_embeddings.shape == (2, 32, 4, 4)
    assert prompts.dense_embeddings.abs().max() <= 1


def test_neutral_start_is_sam_without_a_prompt(tiny_backbone):
    batch = make_batch()
    promptless = tiny_backbone.embed_prompts(2)
    neutral = _prompt(_attached(tiny_backbone, init="neutral"), tiny_backbone, batch)
    assert torch.equal(neutral.dense_embeddings, promptless.dense_embeddings)
    assert neutral.sparse_embeddings.shape == promptless.sparse_embeddings.shape


def test_dense_plus_no_mask_adds_the_no_mask_embedding(tiny_backbone):
    batch = make_batch()
    alone, added = _attached(tiny_backbone), _attached(tiny_backbone, prompt_mode="dense_plus_no_mask")
    added.load_state_dict(alone.state_dict())
    difference = [_prompt(g.eval(), tiny_backbone, batch).dense_embeddings for g in (added, alone)]
    torch.testing.assert_close(difference[0] - difference[1], tiny_backbone.no_mask_embedding().expand(2, 32, 4, 4))


def test_contradicting_start_and_mode_are_refused():
    with pytest.raises(RecipeError, match="Set prompt_mode: dense_plus_no_mask or init: paper"):
        HarDNetPromptGenerator("39ds", init="neutral", prompt_mode="dense")


def test_several_objects_an_image_are_refused(tiny_backbone):
    with pytest.raises(RecipeError, match=r"3 objects on 2 images\. Set data\.target: binary"):
        _prompt(_attached(tiny_backbone), tiny_backbone, make_batch(objects=(2, 1)))


def test_image_without_object_is_refused(tiny_backbone):
    with pytest.raises(RecipeError, match=r"1 objects on 2 images\. Set data\.target: binary"):
        _prompt(_attached(tiny_backbone), tiny_backbone, make_batch(objects=(0, 1)))


def test_generator_refuses_a_second_backbone(tiny_backbone):
    generator = _attached(tiny_backbone)
    with pytest.raises(RecipeError, match="attached to a backbone already"):
        generator.attach(SamBackbone("random_tiny"))


def test_tiny_input_is_refused():
    with pytest.raises(RecipeError, match="gen_size: expected at least 32 pixels, got 16"):
        HarDNetPromptGenerator("39ds", gen_size=16)


@pytest.mark.parametrize("use_stride32", [False, True])
def test_every_parameter_has_a_gradient(tiny_backbone, use_stride32):
    generator = _attached(tiny_backbone, norm="group", use_stride32=use_stride32)
    # 64 px, so that the map at stride 32 has more than one value for BatchNorm.
    generator.gen_size = 64
    _prompt(generator, tiny_backbone, make_batch()).dense_embeddings.square().sum().backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_hardnet_weights_come_from_a_file(tmp_path):
    from medsam_tune.prompt_encoders.hardnet import HarDNet

    network = HarDNet("39ds")
    torch.save(network.state_dict(), tmp_path / "39ds.pth")
    generator = HarDNetPromptGenerator("39ds", weights=str(tmp_path / "39ds.pth"))
    assert torch.equal(generator.features.base[10].conv.weight, network.base[10].conv.weight)


def test_timm_generator_trains_every_parameter(tiny_backbone):
    generator = TimmPromptGenerator("resnet10t", gen_size=32, width=8, norm="group")
    generator.attach(tiny_backbone)
    _prompt(generator, tiny_backbone, make_batch()).dense_embeddings.square().sum().backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None] == []


def test_timm_weights_come_from_a_file(tmp_path):
    network = timm.create_model("resnet10t").eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    features = TimmPromptGenerator("resnet10t", weights=str(tmp_path / "weights.pth")).features.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_intermediates(images, indices=[1, 2, 3], intermediates_only=True)
        for ours, theirs in zip(features(images), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_timm_weights_of_another_network_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="Give a file of timm's whole resnet10t, or name the network it holds"):
        TimmPromptGenerator("resnet10t", weights=str(tmp_path / "weights.pth"))


def test_unknown_timm_network_is_refused_with_close_names():
    with pytest.raises(RecipeError, match=r"no network 'resnet19'\. Close names: resnet18"):
        TimmPromptGenerator("resnet19")


def test_timm_network_without_the_strides_is_refused():
    with pytest.raises(RecipeError, match=r"has feature maps at strides \[16\], not at \[4, 8\]"):
        TimmPromptGenerator("vit_tiny_patch16_224")
