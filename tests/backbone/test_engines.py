"""A frozen TinyViT through OpenVINO: the same embeddings, never where gradients or changed weights need PyTorch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from medsam_tune.backbone import SamBackbone, engines
from medsam_tune.backbone.engines import EncoderEngine
from medsam_tune.errors import RecipeError
from medsam_tune.precompute import EmbeddingPrecompute
from tests.backbones import make_tiny_vit, make_vit
from tests.factories import encode as encode_images
from tests.factories import make_batch

needs_openvino = pytest.mark.skipif(not engines.is_installed(), reason="openvino is not installed")


@pytest.fixture
def encoder():
    return make_tiny_vit().image_encoder.eval()


@pytest.fixture
def compiled(monkeypatch):
    """Pretend that OpenVINO is installed; what is compiled is the encoder with a factor, and each compilation is noted."""
    made = []

    def compile_(network, example):
        made.append(example.shape)
        twin = copy.deepcopy(network)
        return lambda pixels: twin(pixels) * factor[0]

    factor = [1.0]
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    monkeypatch.setattr(engines, "_compile", compile_)
    return made, factor


def encode(engine, encoder, n=1):
    with torch.no_grad():
        return engine.encode(encoder, torch.ones(n, 3, 64, 64))


@needs_openvino
def test_openvino_gives_the_embeddings_of_pytorch(encoder):
    engine = EncoderEngine("openvino", encoder)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(pixels)
        engine.encode(encoder, pixels)
        found = engine.encode(encoder, pixels)
    assert engine._compiled is not None
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert engine.identity().startswith("openvino 20")


def test_auto_waits_for_more_than_a_few_images(encoder, compiled):
    made, _ = compiled
    engine = EncoderEngine("auto", encoder)
    encode(engine, encoder, engines.PATIENCE)
    assert made == []
    encode(engine, encoder)
    encode(engine, encoder)
    assert len(made) == 1


def test_a_changed_weight_is_compiled_anew(encoder, compiled):
    made, _ = compiled
    engine = EncoderEngine("openvino", encoder)
    encode(engine, encoder)
    with torch.no_grad():
        encoder.neck[0].weight.mul_(2)
        encoder.neck[1].weight.mul_(3)
    assert torch.equal(encode(engine, encoder), encode(EncoderEngine("torch", encoder), encoder))
    assert len(made) == 2


def test_another_embedding_is_never_used(encoder, compiled):
    compiled[1][0] = 1.001
    with pytest.warns(UserWarning, match=r"gives other embeddings \(relative error 0.001"):
        assert torch.equal(encode(auto := EncoderEngine("auto", encoder), encoder, 17), encode(auto, encoder, 17))
    with pytest.raises(RecipeError, match=r"model.backbone.engine: openvino gives other embeddings.*Set it to torch"):
        encode(EncoderEngine("openvino", encoder), encoder)


def test_a_hook_in_the_encoder_is_called(encoder, compiled):
    engine, seen = EncoderEngine("openvino", encoder), []
    encode(engine, encoder)
    encoder.neck[0].register_forward_hook(lambda *_: seen.append("neck"))
    encode(engine, encoder)
    assert seen == ["neck"]


def test_an_encoder_that_learns_or_is_tuned_runs_in_pytorch(compiled):
    made, _ = compiled
    backbone = make_tiny_vit()
    backbone._engine = EncoderEngine("openvino", backbone.image_encoder)
    backbone.image_encoder.neck[0].weight.requires_grad_(True)
    batch = make_batch()
    assert encode_images(backbone, batch.images, batch.frames).requires_grad
    assert made == []


def test_a_copy_and_an_unpickled_engine_start_anew(encoder, compiled):
    made, _ = compiled
    engine = EncoderEngine("openvino", encoder)
    encode(engine, encoder)
    for again in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert again.choice == "openvino"
        assert again._compiled is None
        encode(again, encoder)
    assert len(made) == 3


def test_openvino_is_refused_where_it_cannot_be(monkeypatch):
    with pytest.raises(RecipeError, match=r"model.backbone.engine: openvino compiles TinyViT encoders.*ImageEncoderViT"):
        SamBackbone("random_tiny", engine="openvino")
    monkeypatch.setattr(engines, "is_installed", lambda: False)
    with pytest.raises(RecipeError, match=r"pip install 'medsam-tune\[cpu\]'"):
        EncoderEngine("openvino", make_tiny_vit().image_encoder)
    assert EncoderEngine("auto", make_tiny_vit().image_encoder).identity() is None
    assert EncoderEngine("auto", make_vit().image_encoder).identity() is None


def test_the_engine_is_part_of_the_key():
    rule = make_vit().input_rule
    made = {
        engine: EmbeddingPrecompute(
            weights_name="a", weights_sha256="b", rule=rule, load=lambda _: None, encode=lambda *_: None, engine=engine
        ).facts()["precision"]
        for engine in (None, "openvino 2026.4.1")
    }
    assert made == {None: "fp16", "openvino 2026.4.1": "fp16, openvino 2026.4.1"}
