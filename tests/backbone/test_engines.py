"""A frozen TinyViT through oneDNN or OpenVINO: the same embeddings, never where gradients or changed weights need PyTorch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from medsam_tune.backbone import SamBackbone, engines
from medsam_tune.backbone.engines import EncoderEngine
from medsam_tune.backbone.packed_tiny_vit import has_onednn, pack_tiny_vit
from medsam_tune.backbone.tiny_vit import TinyViT
from medsam_tune.errors import RecipeError
from medsam_tune.precompute import EmbeddingPrecompute
from medsam_tune.tuners import AdaptFormer, DecoderTuning
from tests.backbones import make_tiny_vit, make_vit
from tests.factories import encode as encode_images
from tests.factories import make_batch

needs_openvino = pytest.mark.skipif(not engines.is_installed(), reason="openvino is not installed")
needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this build of PyTorch has no oneDNN")


@pytest.fixture
def encoder():
    return make_tiny_vit().image_encoder.eval()


@pytest.fixture
def packed(monkeypatch):
    """Pretend that oneDNN is at hand; what it runs is the encoder with a factor, and each packing is noted."""
    made = []

    def pack(network, pixels):
        made.append(pixels.shape)
        twin = copy.deepcopy(network)
        return lambda pixels: twin(pixels) * factor[0], pixels[:1]

    factor = [1.0]
    monkeypatch.setattr(engines, "has_onednn", lambda: True)
    monkeypatch.setattr(engines, "_pack", pack)
    return made, factor


def encode(engine, encoder, n=1, side=64):
    with torch.no_grad():
        return engine.encode(encoder, torch.ones(n, 3, side, side))


def with_moved_norms(encoder):
    """Fill every weight and statistic at random, so that no fold is the identity."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in encoder.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(
                0.5 if name.endswith("running_var") else -0.5, 1.5 if name.endswith("running_var") else 0.5, generator=generator
            )
    return encoder


@needs_onednn
@pytest.mark.parametrize("stem_stride", [1, 4])
def test_onednn_gives_the_embeddings_of_the_modules(stem_stride):
    encoder = with_moved_norms(
        TinyViT(64, stem_stride, embed_dims=(8, 8, 16, 16), depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), windows=(2, 2, 3, 2))
    ).eval()
    for side in (32, 48):
        pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            expected, run = encoder(pixels), pack_tiny_vit(encoder, 32)
            found = run(pixels)
        assert found.shape == expected.shape
        assert found.is_contiguous()
        assert (found - expected).norm() / expected.norm() < 1e-5
        # An embedding does not depend on which images go with it.
        assert torch.equal(found[1:2], run(pixels[1:2]))


@needs_onednn
def test_onednn_is_what_auto_takes_from_the_first_image_on():
    backbone = make_tiny_vit()
    engine = EncoderEngine("auto", backbone.image_encoder)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = engine.encode(backbone.image_encoder, pixels)
        assert torch.equal(found, pack_tiny_vit(backbone.image_encoder, 64)(pixels))
    assert engine.identity() == "onednn"


@needs_onednn
@pytest.mark.parametrize(
    ("name", "stranger"),
    [
        ("layers.0.blocks.0", nn.Identity()),
        ("layers.1.blocks.0.attn", nn.Identity()),
        ("layers.1.blocks.0.mlp.fc1", nn.Sequential(nn.Linear(8, 32))),
        ("layers.0.blocks.1.conv2.bn", nn.Identity()),
        ("layers.0.downsample.conv1", nn.Identity()),
        ("patch_embed.seq.1", nn.ReLU()),
    ],
)
def test_an_encoder_with_a_module_of_another_class_is_never_packed(encoder, name, stranger):
    home, _, child = name.rpartition(".")
    setattr(encoder.get_submodule(home), child, stranger)
    with pytest.raises(TypeError, match=f"{type(stranger).__name__} stands where .* was expected"):
        pack_tiny_vit(encoder, 64)


@needs_openvino
def test_openvino_gives_the_embeddings_of_pytorch(encoder):
    engine = EncoderEngine("openvino", encoder)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(pixels)
        found = engine.encode(encoder, pixels)
    assert not torch.equal(found, expected)
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert engine.identity().startswith("openvino 20")


def test_a_changed_weight_is_packed_anew(encoder, packed):
    made, _ = packed
    engine = EncoderEngine("onednn", encoder)
    encode(engine, encoder)
    encode(engine, encoder)
    assert len(made) == 1
    with torch.no_grad():
        encoder.neck[0].weight.mul_(2)
        encoder.neck[1].weight.mul_(3)
    assert torch.equal(encode(engine, encoder), encode(EncoderEngine("torch", encoder), encoder))
    assert len(made) == 2


def test_another_embedding_is_never_used(encoder, packed):
    packed[1][0] = 1.001
    expected = encode(EncoderEngine("torch", encoder), encoder)
    with pytest.warns(UserWarning, match=r"onednn gives other embeddings \(relative error 0.001"):
        assert torch.equal(encode(auto := EncoderEngine("auto", encoder), encoder), expected)
    assert auto.identity() is None
    with pytest.raises(RecipeError, match=r"model.backbone.engine: onednn gives other embeddings.*Set it to torch"):
        encode(EncoderEngine("onednn", encoder), encoder)


@needs_onednn
def test_an_encoder_that_cannot_be_packed_runs_as_modules(encoder):
    encoder.layers[0].blocks[0] = nn.Identity()
    with pytest.warns(UserWarning, match="onednn cannot run the encoder: Identity stands where AttentionBlock"):
        found = encode(EncoderEngine("auto", encoder), encoder)
    assert torch.equal(found, encode(EncoderEngine("torch", encoder), encoder))


def test_a_hook_in_the_encoder_is_called(encoder, packed):
    engine, seen = EncoderEngine("onednn", encoder), []
    encode(engine, encoder)
    handle = encoder.neck[0].register_forward_hook(lambda *_: seen.append("neck"))
    encode(engine, encoder)
    assert seen == ["neck"]
    handle.remove()
    encoder.layers[0].forward = lambda x: seen.append("stage") or type(encoder.layers[0]).forward(encoder.layers[0], x)
    encode(engine, encoder)
    assert seen == ["neck", "stage"]


def test_an_encoder_that_learns_or_is_tuned_runs_in_pytorch(packed):
    made, _ = packed
    backbone = make_tiny_vit()
    backbone._engine = EncoderEngine("onednn", backbone.image_encoder)
    backbone.image_encoder.neck[0].weight.requires_grad_(True)
    batch = make_batch()
    assert encode_images(backbone, batch.images, batch.frames).requires_grad
    assert made == []


def test_a_tuner_of_the_decoder_leaves_the_encoder_to_the_engine(packed):
    made, _ = packed
    batch = make_batch()
    for tuner in (DecoderTuning(), AdaptFormer(2)):
        backbone = make_tiny_vit()
        backbone._engine = EncoderEngine("onednn", backbone.image_encoder)
        tuner.attach(backbone)
        backbone.requires_grad_(False).eval()
        encode_images(backbone, batch.images, batch.frames)
    assert len(made) == 1


def test_a_copy_and_an_unpickled_engine_start_anew(encoder, packed):
    made, _ = packed
    engine = EncoderEngine("onednn", encoder)
    encode(engine, encoder)
    for again in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert (again.choice, again.identity()) == ("onednn", "onednn")
        assert again._run is None
        encode(again, encoder)
    assert len(made) == 3


@pytest.mark.parametrize("engine", ["onednn", "openvino"])
def test_an_engine_is_refused_where_it_cannot_be(engine, monkeypatch):
    monkeypatch.setattr(engines, "has_onednn", lambda: True)
    with pytest.raises(RecipeError, match=rf"model.backbone.engine: {engine} runs TinyViT encoders.*ImageEncoderViT"):
        SamBackbone("random_tiny", engine=engine)
    monkeypatch.setattr(engines, "has_onednn", lambda: False)
    monkeypatch.setattr(engines, "is_installed", lambda: False)
    with pytest.raises(
        RecipeError, match=r"pip install 'medsam-tune\[cpu\]'|this build of PyTorch has no oneDNN. Set it to auto"
    ):
        EncoderEngine(engine, make_tiny_vit().image_encoder)
    assert EncoderEngine("auto", make_tiny_vit().image_encoder).identity() is None
    assert EncoderEngine("auto", make_vit().image_encoder).identity() is None


def test_the_engine_is_part_of_the_key():
    rule = make_vit().input_rule
    made = {
        engine: EmbeddingPrecompute(
            weights_name="a", weights_sha256="b", rule=rule, load=lambda _: None, encode=lambda *_: None, engine=engine
        ).facts()["precision"]
        for engine in (None, "onednn")
    }
    assert made == {None: "fp16", "onednn": "fp16, onednn"}
