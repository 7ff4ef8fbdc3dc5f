"""What learns, and in which mode it runs."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.freezing import (
    check_trainable,
    freeze,
    set_train_modes,
    set_trainable,
    trainable_report,
)
from medsam_tune.errors import RecipeError
from medsam_tune.types import ImageEmbeddings
from tests.factories import encode, make_batch

MEDSAM_SCOPE = ["image_encoder", "mask_decoder"]


def _step(backbone, **decode):
    """One backward pass from box prompts to a loss on the masks."""
    batch = make_batch()
    boxes = torch.tensor([[4.0, 4.0, 30.0, 30.0], [8.0, 8.0, 40.0, 60.0]])
    image_embeddings = encode(backbone, batch.images, batch.frames)
    prompts = backbone.embed_prompts(2, boxes=boxes)
    prediction = backbone.decode(ImageEmbeddings(image_embeddings), batch.image_index, prompts, **decode)
    prediction.low_res_masks.square().mean().backward()


def _learning(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


def test_medsam_scope_names_93729252_parameters_of_which_93177216_learn():
    with torch.device("meta"):
        backbone = SamBackbone("random_vit_b", trainable=MEDSAM_SCOPE)
    named = sum(p.numel() for part in MEDSAM_SCOPE for p in backbone.parts()[part].parameters())
    assert named == 93_729_252
    assert trainable_report(backbone).trained == 93_177_216


def test_every_parameter_of_medsam_scope_gets_a_gradient(tiny_backbone):
    set_trainable(tiny_backbone, MEDSAM_SCOPE)
    _step(tiny_backbone)
    # Softmax ignores what is added to all keys alike, so the bias of a key projection has a gradient of exactly zero in theory.
    still = [
        name
        for name, p in tiny_backbone.named_parameters()
        if p.requires_grad and not name.endswith("k_proj.bias") and (p.grad is None or not p.grad.any())
    ]
    assert still == []
    assert all(p.grad is not None for p in tiny_backbone.parameters() if p.requires_grad)


@pytest.mark.parametrize("output", ["single_mask", "multimask"])
def test_what_the_anatomy_calls_idle_is_what_gets_no_gradient_from_that_output(tiny_backbone, output):
    idle = tiny_backbone.anatomy().decoder.idle[output]
    tiny_backbone.mask_decoder.requires_grad_(True)
    _step(tiny_backbone, multimask_output=output == "multimask")
    without = {name for name, p in tiny_backbone.named_parameters() if p.requires_grad and p.grad is None}
    assert without == {name for name in _learning(tiny_backbone) if name.startswith(idle)}
    assert without


def test_all_mask_tokens_and_the_iou_token_learn_from_the_single_mask(tiny_backbone):
    set_trainable(tiny_backbone, ["mask_decoder"])
    _step(tiny_backbone)
    assert (tiny_backbone.mask_decoder.mask_tokens.weight.grad.abs().sum(dim=1) > 0).all()
    assert tiny_backbone.mask_decoder.iou_token.weight.grad.abs().sum() > 0


def test_naming_a_path_below_a_part_trains_exactly_it(tiny_backbone):
    set_trainable(
        tiny_backbone, ["image_encoder.neck.2", "image_encoder.pos_embed", "mask_decoder.iou_prediction_head.layers.0"]
    )
    assert _learning(tiny_backbone) == {
        "image_encoder.neck.2.weight",
        "image_encoder.pos_embed",
        "mask_decoder.iou_prediction_head.layers.0.weight",
        "mask_decoder.iou_prediction_head.layers.0.bias",
    }


def test_an_unknown_part_is_refused_with_the_parts_that_exist(tiny_backbone):
    with pytest.raises(
        RecipeError, match=r"'decoder' names no parameter. The parts: image_encoder, prompt_encoder, mask_decoder\."
    ):
        set_trainable(tiny_backbone, ["decoder"])


def test_an_unknown_path_is_refused_with_what_lies_beside_it(tiny_backbone):
    with pytest.raises(RecipeError, match=r"'image_encoder.blocks.7'.*Below image_encoder.blocks: 0, 1\."):
        set_trainable(tiny_backbone, ["image_encoder.blocks.7"])


def test_half_a_name_is_not_a_name(tiny_backbone):
    with pytest.raises(RecipeError, match=r"'image_encoder\.nec' names no parameter"):
        set_trainable(tiny_backbone, ["image_encoder.nec"])


def test_frozen_batch_norm_and_drop_path_stay_in_eval_and_trained_ones_do_not():
    def block():
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), DropPath(0.5), nn.Dropout(0.5))

    network = nn.ModuleDict({"frozen": block(), "trained": block()})
    freeze(network["frozen"])
    set_train_modes(network, training=True)
    assert [m.training for m in network["frozen"].modules()] == [False] * 5
    assert [m.training for m in network["trained"].modules()] == [True] * 5
    assert not network.training


def test_a_module_without_parameters_in_a_partly_frozen_parent_stays_in_eval():
    block = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2))
    freeze(block[0])
    set_train_modes(block, training=True)
    assert [m.training for m in (block, *block)] == [False, False, False, True]


def test_eval_mode_reaches_everything():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    set_train_modes(network, training=False)
    assert not any(m.training for m in network.modules())


def test_a_backbone_set_to_train_keeps_what_is_frozen_in_eval(tiny_backbone):
    set_trainable(tiny_backbone, ["image_encoder.neck"])
    nn.Sequential(tiny_backbone).train()
    modes = {name: m.training for name, m in tiny_backbone.named_modules()}
    assert modes["image_encoder.neck"]
    assert not modes["image_encoder"]
    assert not modes["mask_decoder"]


def test_report_splits_a_group_that_learns_in_part_and_sums_to_the_whole(tiny_backbone):
    set_trainable(tiny_backbone, ["mask_decoder"])
    report = trainable_report(nn.ModuleDict({"backbone": tiny_backbone, "prompt_encoder": nn.Linear(3, 2)}))
    rows = {name: (trained, total) for name, trained, total in report.rows}
    encoder = sum(p.numel() for p in tiny_backbone.image_encoder.parameters())
    head = sum(p.numel() for p in tiny_backbone.mask_decoder.iou_prediction_head.parameters())
    assert rows["backbone.image_encoder"] == (0, encoder)
    assert rows["backbone.mask_decoder.iou_prediction_head"] == (0, head)
    assert rows["prompt_encoder.weight"] == (6, 6)
    assert sum(total for _, total in rows.values()) == report.total
    assert sum(trained for trained, _ in rows.values()) == report.trained


def test_report_prints_counts_and_share():
    network = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(1, 1)})
    freeze(network["a"])
    lines = trainable_report(network).table().splitlines()
    assert lines[2].split() == ["a.weight", "0", "3", "0.00%"]
    assert lines[-1].split() == ["total", "2", "6", "33.33%"]


def test_exact_check_names_what_learns_too_much_and_too_little():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    check_trainable(network, {"weight"})
    with pytest.raises(RecipeError, match=r"learn but should not: weight; that should learn but are frozen or absent: bias\."):
        check_trainable(network, {"bias"})
