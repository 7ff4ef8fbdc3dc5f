"""Merging: the same output under SAM's own names, a file that segment_anything loads, and clear refusals."""

import copy

import pytest
import torch
from segment_anything import sam_model_registry

from medsam_tune.backbone import SamBackbone
from medsam_tune.cli import main
from medsam_tune.errors import CheckpointError
from medsam_tune.export.build import build_segmenter
from medsam_tune.export.folder import save_export
from medsam_tune.export.merge import check_stock, merge_export, merged_state
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import SemanticSegmenter
from medsam_tune.tuners.samed import SamedTuner
from tests.export.test_adapter import ADALORA, LORA, SAMED, export, logits, model_config, trained


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


@pytest.mark.slow
def test_vit_b_file_loads_in_segment_anything_with_the_merged_layers(tmp_path):
    config = model_config(SAMED)
    config["backbone"]["init_args"] = {"weights": "random_vit_b"}
    segmenter = build_segmenter(config)
    layer = segmenter.backbone.get_submodule("image_encoder.blocks.11.attn.qkv")
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=0.1)
    tokens = torch.randn(2, 768)
    expected = layer(tokens)
    save_export(tmp_path / "run" / "export", segmenter=segmenter, model_config=config, metrics={}, data_description={})
    assert merge_export(tmp_path / "run", tmp_path / "merged.pth") == "vit_b"

    sam = sam_model_registry["vit_b"](checkpoint=tmp_path / "merged.pth")
    torch.testing.assert_close(sam.image_encoder.blocks[11].attn.qkv(tokens), expected, atol=1e-5, rtol=1e-5)
    untouched = segmenter.backbone.state_dict()
    assert all(torch.equal(t, untouched[n]) for n, t in sam.state_dict().items() if n in untouched)
    assert sum(n in untouched for n in sam.state_dict()) == len(sam.state_dict()) - 2 * 12


def test_true_shapes_name_their_registry_key():
    with torch.device("meta"):
        for name in ("vit_b", "vit_l", "vit_h"):
            assert check_stock(SamSegmenter(SamParts(SamBackbone(f"random_{name}"), tuner=SamedTuner()))) == name


def test_other_encoder_side_and_token_count_are_refused():
    with torch.device("meta"):
        with pytest.raises(CheckpointError, match=r"builds vit_b, vit_l, vit_h, this encoder is lite_medsam"):
            check_stock(SamSegmenter(SamParts(SamBackbone("random_lite_medsam"))))
        with pytest.raises(CheckpointError, match=r"side of 1024 px, this network has 512"):
            check_stock(SamSegmenter(SamParts(SamBackbone("random_vit_b", side=512))))
        backbone = SamBackbone("random_vit_b")
        backbone.mask_decoder.mask_tokens = torch.nn.Embedding(9, 256)
        with pytest.raises(CheckpointError, match=r"builds 4 mask tokens, this decoder has 9"):
            check_stock(SamSegmenter(SamParts(backbone)))


def test_one_mask_a_class_is_refused_by_its_meaning():
    with torch.device("meta"):
        with pytest.raises(CheckpointError, match=r"mask 0 of this decoder is the background and the other 2 are classes"):
            check_stock(SemanticSegmenter(SamParts(SamBackbone("random_vit_b")), ["anterior", "posterior"]))
        with pytest.raises(CheckpointError, match=r"mask 0 of this decoder is the background.*Use the run's export"):
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


def test_command_takes_an_adapter_folder_and_reports_in_one_line_why_it_cannot_merge(tmp_path, capsys):
    export(tmp_path / "adapter", model_config())
    assert main(["export", "merge", str(tmp_path / "adapter"), str(tmp_path / "sam.pth")]) == 2
    assert "this encoder is tiny" in capsys.readouterr().err
    assert main(["export", "merge", str(tmp_path), str(tmp_path / "sam.pth")]) == 2
    assert "Give the folder that holds it, such as runs/NAME/TIME/export" in capsys.readouterr().err
    assert not (tmp_path / "sam.pth").exists()
