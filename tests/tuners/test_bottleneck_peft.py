"""Bottleneck adapters under peft's own functions: made, saved, loaded, added, switched, disabled, deleted, unloaded."""

import json

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from medsam_tune.prompts.box import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tuners.msa.bottleneck_peft import PEFT_TYPE, BottleneckConfig, BottleneckLayer
from tests.backbones import BACKBONES, make_vit
from tests.factories import make_batch


def logits(backbone):
    with torch.no_grad():
        return SamSegmenter(SamParts(backbone, BoxPrompt())).eval()(make_batch()).low_res_masks


def randomise(model, name, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".{name}." in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.fixture(params=BACKBONES)
def make_backbone(request):
    return BACKBONES[request.param]


def test_an_untrained_adapter_of_get_peft_model_changes_nothing_and_alone_learns(make_backbone):
    backbone = make_backbone()
    before = logits(backbone)
    model = get_peft_model(backbone, BottleneckConfig(rank=3))
    torch.testing.assert_close(logits(backbone), before, rtol=0, atol=1e-5)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if ".bottleneck_adapters.default." in name}
    assert learning


def test_a_saved_folder_comes_back_with_equal_output(make_backbone, tmp_path):
    backbone = make_backbone()
    model = get_peft_model(backbone, BottleneckConfig(rank=3, decoder="hyper"))
    randomise(model, "default", 1)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == PEFT_TYPE
    assert isinstance(PeftConfig.from_pretrained(tmp_path), BottleneckConfig)
    fresh = make_backbone()
    untouched = logits(fresh)
    PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(logits(fresh), logits(backbone), rtol=0, atol=1e-6)
    assert (logits(fresh) - untouched).abs().max() > 1e-3


def test_adapters_of_different_width_and_place_switch_exactly(make_backbone, tmp_path):
    backbone = make_backbone()
    model = get_peft_model(backbone, BottleneckConfig(rank=3), adapter_name="liver")
    randomise(model, "liver", 1)
    liver = logits(backbone)
    model.add_adapter("lung", BottleneckConfig(rank=5, placement=("mlp",), decoder="adapters"))
    torch.testing.assert_close(logits(backbone), liver, rtol=0, atol=0)
    model.set_adapter("lung")
    randomise(model, "lung", 2)
    lung = logits(backbone)
    assert (lung - liver).abs().max() > 1e-3
    for name, expected in (("liver", liver), ("lung", lung), ("liver", liver)):
        model.set_adapter(name)
        torch.testing.assert_close(logits(backbone), expected, rtol=0, atol=0)
        learning = [key for key, p in model.named_parameters() if p.requires_grad]
        assert learning
        assert all(f".{name}." in key for key in learning)


def test_a_second_adapter_loads_beside_the_first(tmp_path):
    source = make_vit()
    model = get_peft_model(source, BottleneckConfig(rank=4, blocks=[1, 1]))
    randomise(model, "default", 3)
    model.save_pretrained(tmp_path)
    target = make_vit()
    both = get_peft_model(target, BottleneckConfig(rank=2, blocks=[0, 0], decoder="none"))
    both.load_adapter(tmp_path, "loaded")
    both.set_adapter("loaded")
    torch.testing.assert_close(logits(target), logits(source), rtol=0, atol=1e-6)


def test_disabled_deleted_and_unloaded_adapters_leave_the_stock_network(make_backbone):
    backbone = make_backbone()
    stock, keys = logits(backbone), list(backbone.state_dict())
    model = get_peft_model(backbone, BottleneckConfig(rank=3))
    randomise(model, "default", 1)
    tuned = logits(backbone)
    with model.disable_adapter():
        torch.testing.assert_close(logits(backbone), stock, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(backbone), tuned, rtol=0, atol=0)
    model.add_adapter("second", BottleneckConfig(rank=2))
    model.set_adapter("second")
    model.delete_adapter("default")
    assert not [name for name in model.state_dict() if ".default." in name]
    torch.testing.assert_close(logits(backbone), stock, rtol=0, atol=1e-6)
    model.unload()
    assert list(backbone.state_dict()) == keys
    assert not any(isinstance(module, BottleneckLayer) for module in backbone.modules())
    torch.testing.assert_close(logits(backbone), stock, rtol=0, atol=1e-6)


def test_merging_is_refused_with_the_reason():
    model = get_peft_model(make_vit(), BottleneckConfig(rank=2))
    with pytest.raises(NotImplementedError, match="no weight of SAM can hold it"):
        model.merge_and_unload()


def test_two_active_adapters_are_refused():
    backbone = make_vit()
    model = get_peft_model(backbone, BottleneckConfig(rank=2), adapter_name="liver")
    model.add_adapter("lung", BottleneckConfig(rank=2))
    model.base_model.set_adapter(["liver", "lung"])
    with pytest.raises(ValueError, match="one is active at a time; got liver, lung"):
        logits(backbone)


def test_the_stored_tensors_are_the_adapters_alone():
    model = get_peft_model(make_vit(), BottleneckConfig(rank=2, decoder="none", placement=("attention",)))
    stored = get_peft_model_state_dict(model)
    assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_it_fits_the_network_of_segment_anything_itself(tmp_path):
    from segment_anything.modeling import Sam

    ours = make_vit()
    model = get_peft_model(ours, BottleneckConfig(rank=3))
    randomise(model, "default", 1)
    model.save_pretrained(tmp_path)
    fresh = make_vit()
    sam = Sam(fresh.image_encoder, fresh.prompt_encoder, fresh.mask_decoder)
    PeftModel.from_pretrained(sam, tmp_path)
    fresh.image_encoder, fresh.mask_decoder = sam.image_encoder, sam.mask_decoder
    torch.testing.assert_close(logits(fresh), logits(ours), rtol=0, atol=1e-6)
