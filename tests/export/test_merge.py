"""Merging: the same output under SAM's own names, and clear refusals."""

import copy

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import CheckpointError
from medsam_tune.export.build import build_segmenter
from medsam_tune.export.merge import check_stock, merged_state
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import SemanticSegmenter
from medsam_tune.tuners.samed import SamedTuner
from tests.export.test_adapter import ADALORA, LORA, SAMED, logits, model_config, trained


def lora_like(name, parts, **settings):
    config = {"class_path": f"peft.{name}", "init_args": settings}
    return {"class_path": "medsam_tune.tuners.PeftTuner", "init_args": {"config": config, "parts": parts}}


CONVOLUTIONS = lora_like("LoraConfig", ["image_encoder.neck", "image_encoder.mlp", "mask_decoder.attention"], r=2)


MERGEABLE = {"lora": LORA, "adalora": ADALORA, "samed": SAMED, "convolutions": CONVOLUTIONS, "decoder alone": None}


@pytest.mark.parametrize("tuner", MERGEABLE.values(), ids=MERGEABLE)
def test_merged_weights_in_an_untouched_network_give_the_trained_output(tuner):
    segmenter = trained(model_config(tuner, trainable=["mask_decoder"]))
    expected = logits(segmenter)
    stock = SamBackbone("random_tiny", seed=5)
    stock.load_state_dict(merged_state(segmenter), strict=True)
    torch.testing.assert_close(logits(SamSegmenter(SamParts(stock))), expected, atol=1e-5, rtol=0)


def test_true_shapes_name_their_registry_key():
    with torch.device("meta"):
        for name in ("vit_b", "vit_l", "vit_h", "mobile_sam", "lite_medsam"):
            assert check_stock(SamSegmenter(SamParts(SamBackbone(f"random_{name}"), tuner=SamedTuner()))) == name


def test_other_encoder_side_and_token_count_are_refused():
    with torch.device("meta"):
        with pytest.raises(CheckpointError, match=r"stock tools build vit_b, .*, lite_medsam, this encoder is tiny"):
            check_stock(SamSegmenter(SamParts(SamBackbone("random_tiny"))))
        with pytest.raises(CheckpointError, match=r"for a side of 1024 px, this network has 512.*Train at 1024"):
            check_stock(SamSegmenter(SamParts(SamBackbone("random_vit_b", side=512))))
        backbone = SamBackbone("random_vit_b")
        backbone.mask_decoder.mask_tokens = torch.nn.Embedding(9, 256)
        with pytest.raises(CheckpointError, match=r"build 4 mask tokens, this decoder has 9"):
            check_stock(SamSegmenter(SamParts(backbone)))


def test_one_mask_a_class_is_refused_by_its_meaning():
    with torch.device("meta"):
        with pytest.raises(CheckpointError, match=r"mask 0 of this decoder is the background and the other 2 are classes"):
            check_stock(SemanticSegmenter(SamParts(SamBackbone("random_vit_b")), ["anterior", "posterior"]))
        with pytest.raises(CheckpointError, match=r"mask 0 of this decoder is the background.*other 3 are classes"):
            check_stock(SemanticSegmenter(SamParts(SamBackbone("random_vit_b")), ["a", "b", "c"]))


def test_tuner_that_is_no_weight_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"LilyConfig cannot be merged .* Export the adapter instead"):
        merged_state(build_segmenter(model_config(lora_like("LilyConfig", ["image_encoder.attention.qkv"], r=2))))
    adapter = {"class_path": "medsam_tune.tuners.BottleneckAdapter"}
    with pytest.raises(
        CheckpointError, match=r"BottleneckConfig cannot be merged .* no weight of SAM can hold it\). Export the adapter"
    ):
        merged_state(build_segmenter(model_config(adapter)))


def test_trained_prompt_generator_is_refused():
    config = copy.deepcopy(model_config(None))
    config["prompt_encoder"] = {"class_path": "medsam_tune.prompt_encoders.EmbeddingPromptGenerator", "init_args": {"width": 8}}
    with pytest.raises(CheckpointError, match="no place for EmbeddingPromptGenerator"):
        merged_state(build_segmenter(config))
