from dataclasses import replace

import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.geometry import Frame, InputRule, Resampling
from medsam_tune.precompute import EmbeddingPrecompute

FRAME = Frame(original_size=(40, 64), input_size=(10, 16))
RULE = InputRule(side=16)


def precompute(sha256="a" * 64, rule=RULE):
    return EmbeddingPrecompute(weights_name="x", weights_sha256=sha256, rule=rule, load=None, encode=None)


def embedding_key(pixels, frame):
    return precompute().key((pixels, frame))


def image(seed=0):
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 255


def test_equal_pixels_have_one_key_whatever_their_memory_layout_and_original_size():
    strided = image().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert embedding_key(strided, FRAME) == embedding_key(image(), FRAME)
    assert embedding_key(image(), replace(FRAME, original_size=(80, 128))) == embedding_key(image(), FRAME)


def test_one_changed_pixel_or_valid_area_changes_the_key():
    changed = image()
    changed[2, 15, 15] += 1e-3
    keys = {
        embedding_key(image(), FRAME),
        embedding_key(changed, FRAME),
        embedding_key(image(), replace(FRAME, input_size=(16, 10))),
        embedding_key(image().reshape(3, 8, 32), FRAME),
    }
    assert len(keys) == 4


def test_key_of_a_known_image_is_the_same_in_every_process_and_release():
    # Computed once with hashlib alone: blake2b of "(3, 2, 2) (2, 2)" and of twelve float32 zeros.
    key = embedding_key(torch.zeros(3, 2, 2), Frame((2, 2), (2, 2)))
    assert key == f"{precompute().identity()}-11282cf14a9b69bcd8f7b83caf53577e"


@pytest.mark.parametrize(
    "changed",
    [
        {"side": 32},
        {"resize": "square"},
        {"shrink": Resampling("area")},
        {"enlarge": Resampling("bicubic")},
        {"shrink": Resampling(eight_bit=True)},
        {"min_max": True},
        {"scale": 1 / 255},
        {"mean": (0.0, 0.0, 0.0)},
        {"std": (1.0, 1.0, 1.0)},
    ],
)
def test_every_part_of_the_input_rule_changes_the_identity(changed):
    assert precompute(rule=replace(RULE, **changed)).identity() != precompute().identity()


def test_other_weights_have_another_identity():
    assert precompute("b" * 64).identity() != precompute().identity()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_value_that_fp16_cannot_hold_is_refused(value):
    with pytest.raises(DataError, match=r"^data\.cache_embeddings: .*Set data\.cache_embeddings: false"):
        precompute().pack(torch.full((4, 3, 3), value))


def test_embedding_comes_back_rounded_to_fp16():
    embedding = torch.randn(4, 3, 3)
    assert torch.equal(precompute().unpack(precompute().pack(embedding)), embedding.half().float())
