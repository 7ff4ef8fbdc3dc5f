"""True shapes by their published sizes, and position tables at other sides."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.architectures import ARCHITECTURES, build_parts, resize_position_tables
from medsam_tune.backbone.weights import WEIGHTS
from medsam_tune.errors import RecipeError


def _counts(name):
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        parts = build_parts(architecture, architecture.side)
    return {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}


def test_vit_b_has_the_parameters_of_the_release():
    counts = _counts("vit_b")
    assert counts == {"image_encoder": 89_670_912, "prompt_encoder": 6_220, "mask_decoder": 4_058_340}
    assert sum(counts.values()) == 93_735_472


def test_lite_medsam_has_the_parameters_of_the_release():
    counts = _counts("lite_medsam")
    assert sum(counts.values()) == 9_791_300
    assert counts["prompt_encoder"] == 6_220
    assert counts["mask_decoder"] == 4_058_340


@pytest.mark.parametrize("name", ["sam_vit_b", "sam_vit_h", "lite_medsam"])
def test_parameters_fill_the_released_file_at_four_bytes_each(name):
    entry = WEIGHTS[name]
    n_bytes = 4 * sum(_counts(entry.architecture).values())
    # The rest is the file's table of contents and, for TinyViT, the statistics of BatchNorm.
    assert 0.99 * entry.n_bytes < n_bytes < entry.n_bytes


def test_mobile_sam_differs_from_lite_medsam_by_the_stem_alone():
    counts = {name: sum(_counts(name).values()) for name in ("mobile_sam", "lite_medsam")}
    # Two 3x3 convolutions (3 to 32 to 64 channels) in place of two 1x1.
    assert counts["mobile_sam"] - counts["lite_medsam"] == 8 * (3 * 32 + 32 * 64)


def test_another_side_gives_what_sam_gives_when_it_interpolates_by_itself(tmp_path):
    torch.save(SamBackbone("random_tiny", seed=3).state_dict(), tmp_path / "weights.pt")
    wide = SamBackbone("random_tiny", checkpoint=str(tmp_path / "weights.pt"), side=128)
    # SAM's attention resizes relative tables in every forward pass; only the absolute table has to be given to it.
    native = SamBackbone("random_tiny", seed=3).image_encoder
    native.pos_embed = wide.image_encoder.pos_embed
    images = torch.rand(1, 3, 128, 128)
    assert wide.image_encoder.blocks[1].attn.rel_pos_h.shape[0] == 15
    torch.testing.assert_close(wide.image_encoder(images), native(images), rtol=1e-5, atol=1e-5)


def test_a_constant_position_table_stays_constant_at_another_side():
    state_dict = {"image_encoder.pos_embed": torch.full((1, 4, 4, 8), 0.7)}
    encoder = ImageEncoderViT(img_size=48, embed_dim=8, depth=1, num_heads=1, out_chans=4)
    resized = resize_position_tables(state_dict, encoder)["image_encoder.pos_embed"]
    torch.testing.assert_close(resized, torch.full((1, 3, 3, 8), 0.7))


def test_a_side_between_two_cells_is_refused_with_the_nearest_that_fits():
    with pytest.raises(RecipeError, match=r"model.backbone.side: 70 is not a positive multiple of 16.*Set side: 64"):
        SamBackbone("random_tiny", side=70)
