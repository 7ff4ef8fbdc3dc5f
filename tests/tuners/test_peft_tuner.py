"""peft's tuners on a tiny SAM: what moves, what is refused, and what stock peft makes of it."""

import warnings

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.export.trained import trained_names
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tuners.peft_settings import build_config
from medsam_tune.tuners.peft_tuner import PeftTuner
from tests.factories import make_batch

QKV = ("image_encoder.attention.qkv",)
DECODER = ("mask_decoder.attention",)

# Every method of peft that fits, with settings for 32 channels.
METHODS = {
    "lora": (peft.LoraConfig, {"r": 4}, QKV),
    "lora_everywhere": (
        peft.LoraConfig,
        {"r": 2},
        ("image_encoder.attention", "image_encoder.mlp", "image_encoder.neck", "image_encoder.patch_embed", *DECODER),
    ),
    "dora": (peft.LoraConfig, {"r": 4, "use_dora": True}, QKV),
    "rslora": (peft.LoraConfig, {"r": 4, "use_rslora": True}, QKV),
    "pissa": (peft.LoraConfig, {"r": 4, "init_lora_weights": "pissa"}, QKV),
    "olora": (peft.LoraConfig, {"r": 4, "init_lora_weights": "olora"}, QKV),
    "adalora": (peft.AdaLoraConfig, {"init_r": 4, "target_r": 2, "total_step": 10}, QKV),
    "loha": (peft.LoHaConfig, {"r": 4}, QKV),
    "lokr": (peft.LoKrConfig, {"r": 4}, QKV),
    "oft_decoder": (peft.OFTConfig, {"r": 0, "oft_block_size": 4}, DECODER),
    "boft": (peft.BOFTConfig, {"boft_block_size": 4}, QKV),
    "ia3": (peft.IA3Config, {"feedforward_modules": []}, QKV),
    "vera": (peft.VeraConfig, {"r": 8}, QKV),
    "vera_two_shapes": (peft.VeraConfig, {"r": 8}, QKV + DECODER),
    "fourierft": (peft.FourierFTConfig, {"n_frequency": 50, "init_weights": True}, QKV),
    "fourierft_random": (peft.FourierFTConfig, {"n_frequency": 50}, QKV),
    "hra": (peft.HRAConfig, {"r": 4}, QKV),
    "layer_norm": (peft.LNTuningConfig, {}, ("image_encoder.norm", "mask_decoder.norm")),
    "miss": (peft.MissConfig, {"r": 4}, QKV),
    "randlora": (peft.RandLoraConfig, {"r": 4}, QKV),
    "shira": (peft.ShiraConfig, {"r": 4}, QKV),
    "road": (peft.RoadConfig, {"group_size": 32}, QKV),
    "waveft": (peft.WaveFTConfig, {"n_frequency": 50}, QKV),
    "delora": (peft.DeloraConfig, {"r": 4}, QKV),
    "osf": (peft.OSFConfig, {}, QKV),
    "c3a": (peft.C3AConfig, {"block_size": 8, "init_weights": True}, QKV),
    "c3a_random": (peft.C3AConfig, {"block_size": 8}, QKV),
    "vblora": (peft.VBLoRAConfig, {"r": 4, "num_vectors": 16, "vector_length": 16}, QKV),
    "gralora_decoder": (peft.GraloraConfig, {"r": 4}, DECODER),
    "beft": (peft.BeftConfig, {}, QKV),
    "deft": (peft.DeftConfig, {}, QKV),
    "glora": (peft.GloraConfig, {}, QKV),
    "hira": (peft.HiraConfig, {"r": 4}, QKV),
    "lily": (peft.LilyConfig, {"r": 4}, QKV),
    "peanut": (peft.PeanutConfig, {"r": 4}, QKV),
    "psoft": (peft.PsoftConfig, {"r": 4}, QKV),
    "pvera": (peft.PveraConfig, {"r": 4}, QKV),
    "tinylora": (peft.TinyLoraConfig, {"r": 2}, QKV),
    "unilora": (peft.UniLoraConfig, {"r": 4}, QKV),
}


def make_tuner(name):
    config, settings, parts = METHODS[name]
    return PeftTuner(config(**settings), parts)


def make_segmenter(tuner, *, trainable=()):
    return SamSegmenter(SamParts(SamBackbone("random_tiny", trainable=trainable), tuner=tuner))


def logits(segmenter):
    segmenter.eval()
    with torch.no_grad():
        return segmenter(make_batch()).low_res_masks


def train(segmenter, steps=2, lr=1e-2):
    learning = {name: p for name, p in segmenter.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(learning.values(), lr=lr, weight_decay=0.1)
    segmenter.train()
    for step in range(steps):
        loss = segmenter(make_batch()).low_res_masks.square().mean() + sum(segmenter.auxiliary_losses().values())
        optimizer.zero_grad()
        loss.backward()
        segmenter.after_backward(step)
        optimizer.step()
        segmenter.after_step(step)
    return learning


@pytest.fixture(scope="module")
def untouched():
    return logits(make_segmenter(None))


# SHiRA's sparse update; torch says so of every sparse tensor.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.parametrize("name", METHODS)
def test_method_starts_as_it_declares_learns_and_reloads_exactly(name, untouched):
    segmenter = make_segmenter(make_tuner(name))
    moved = (logits(segmenter) - untouched).abs().max().item()
    assert (moved < 1e-5) == segmenter.tuner.declares_identity, moved
    learning = train(segmenter)
    assert learning.keys() == {f"backbone.{n}" for n, _ in segmenter.backbone.named_parameters() if segmenter.tuner.is_tuned(n)}
    assert all(p.grad is not None and p.grad.any() for p in learning.values())
    trained = logits(segmenter)
    assert (trained - untouched).abs().max() > 1e-4

    torch.manual_seed(1)
    fresh = make_segmenter(make_tuner(name))
    state = segmenter.state_dict()
    fresh.load_state_dict({key: state[key] for key in trained_names(segmenter)}, strict=False)
    assert torch.equal(logits(fresh), trained)


@pytest.mark.parametrize("name", ["lora", "lora_everywhere", "dora", "adalora", "pissa", "layer_norm", "vera_two_shapes"])
def test_stock_peft_loads_and_merges_what_was_trained(name, tmp_path):
    segmenter = make_segmenter(make_tuner(name))
    train(segmenter)
    trained = logits(segmenter)
    segmenter.tuner.peft_model.save_pretrained(tmp_path, save_embedding_layers=False)

    stock = SamBackbone("random_tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(stock, tmp_path)
    torch.testing.assert_close(logits(SamSegmenter(SamParts(stock))), trained, atol=1e-6, rtol=0)
    merged = loaded.merge_and_unload()
    assert merged.state_dict().keys() == SamBackbone("random_tiny").state_dict().keys()
    torch.testing.assert_close(logits(SamSegmenter(SamParts(merged))), trained, atol=1e-5, rtol=0)


def test_stored_tensors_are_those_of_peft():
    segmenter = make_segmenter(make_tuner("lora"))
    stored = get_peft_model_state_dict(segmenter.tuner.peft_model, save_embedding_layers=False)
    assert sum(t.numel() for t in stored.values()) == 2 * (4 * 32 + 96 * 4)
    assert len(trained_names(segmenter)) == len(stored) == 4


def test_backbone_keeps_its_type_and_interface():
    segmenter = make_segmenter(make_tuner("lora"))
    assert type(segmenter.backbone) is SamBackbone
    assert segmenter.backbone.mask_decoder.num_mask_tokens == 4
    assert segmenter.tuner.changes_encoder()
    assert not make_segmenter(make_tuner("oft_decoder")).tuner.changes_encoder()


def test_what_the_recipe_trains_beside_the_tuner_keeps_learning():
    segmenter = make_segmenter(make_tuner("lora"), trainable=["image_encoder.neck.1"])
    learning = {n for n, p in segmenter.backbone.named_parameters() if p.requires_grad}
    beside = {n for n in learning if not segmenter.tuner.is_tuned(n)}
    assert beside == {"image_encoder.neck.1.weight", "image_encoder.neck.1.bias"}


def test_late_blocks_alone_get_gradients_and_early_ones_keep_no_graph():
    tuner = PeftTuner(peft.LoraConfig(r=2), QKV, blocks=[1, 1])
    segmenter = make_segmenter(tuner)
    seen = []
    blocks = segmenter.backbone.image_encoder.blocks
    for block in blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    segmenter(make_batch())
    assert seen == [False, True]
    assert all(".blocks.1." in n for n, p in segmenter.named_parameters() if p.requires_grad)


def test_dropout_acts_in_training_although_its_block_is_frozen():
    segmenter = make_segmenter(PeftTuner(peft.LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False), QKV))
    dropouts = [m for m in segmenter.backbone.modules() if isinstance(m, nn.Dropout)]
    segmenter.train()
    assert len(dropouts) == 2
    assert all(m.training for m in dropouts)
    assert not segmenter.backbone.image_encoder.blocks[0].norm1.training
    batch = make_batch()
    assert not torch.equal(segmenter(batch).low_res_masks, segmenter(batch).low_res_masks)
    segmenter.eval()
    assert torch.equal(segmenter(batch).low_res_masks, segmenter(batch).low_res_masks)


def test_adalora_ends_with_the_target_rank_and_its_orthogonality_is_the_mean_of_the_gram_gaps():
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=6, tinit=1, tfinal=2, orth_reg_weight=0.5)
    segmenter = make_segmenter(PeftTuner(config, QKV))
    gaps = []
    for name, p in segmenter.backbone.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            gaps.append((gram - torch.eye(4)).square().sum().sqrt())
    assert len(gaps) == 4
    torch.testing.assert_close(segmenter.auxiliary_losses()["tuner"], 0.5 * sum(gaps) / 4)

    train(segmenter, steps=6)
    ranks = [int((p != 0).sum()) for n, p in segmenter.named_parameters() if "lora_E" in n]
    assert sum(ranks) == 2 * 2


def test_continued_adalora_keeps_pruned_ranks_pruned():
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=6, tinit=1, tfinal=2)
    segmenter = make_segmenter(PeftTuner(config, QKV))
    train(segmenter, steps=6)
    continued = make_segmenter(PeftTuner(config, QKV))
    continued.load_state_dict(segmenter.state_dict())
    continued.load_extra_state(segmenter.extra_state())
    pruned = {n: p == 0 for n, p in continued.named_parameters() if "lora_E" in n}
    with torch.no_grad():
        for n, p in continued.named_parameters():
            if n in pruned:
                p.grad = torch.ones_like(p)
    continued.after_step(5)
    parameters = dict(continued.named_parameters())
    assert all((parameters[n][zero] == 0).all() for n, zero in pruned.items())
    assert sum(int(zero.sum()) for zero in pruned.values()) == 4


@pytest.mark.parametrize(
    ("config", "parts", "message"),
    [
        (peft.OFTConfig(r=0, oft_block_size=4), QKV, r"OFTConfig cannot be put on .*reads \(B, H, W, C\)\. Choose parts"),
        (peft.GraloraConfig(r=4), QKV, "GraloraConfig cannot be put on"),
        (peft.OFTConfig(r=0, oft_block_size=4), ["image_encoder.neck"], r"neck\.2: peft cuts patches of \(3, 3\) pixels"),
        (peft.LoraConfig(r=4), ["mask_decoder.upscaling"], "is a ConvTranspose2d, which no tuner of peft supports"),
        (peft.LoraConfig(r=0), QKV, "`r` should be a positive integer"),
        (peft.IA3Config(), QKV, "Please specify `feedforward_modules`"),
        (peft.LoraConfig(r=4), ["image_encoder.atention"], "'image_encoder.atention' is unknown. Known parts: image_encoder"),
        (peft.LoraConfig(r=4), [], "is empty. Name at least one"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(config, parts, message):
    with pytest.raises(RecipeError, match=message):
        make_segmenter(PeftTuner(config, parts))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["qkv"]}, r"target_modules: leave it out; model.tuner.parts"),
        ({"modules_to_save": ["neck"]}, "modules_to_save: leave it out; model.backbone.trainable"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 is not supported: its random decomposition"),
        ({"init_lora_weights": "mica"}, "defined up to a sign"),
        ({"inference_mode": True}, "inference_mode: true freezes"),
    ],
)
def test_setting_that_cannot_work_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        PeftTuner(peft.LoraConfig(**settings), QKV)


def test_method_for_language_models_is_refused():
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(RecipeError, match="PromptTuningConfig does not fit a SAM: it tunes the prompt of a language model"):
        PeftTuner(config, QKV)


def test_second_tuner_is_refused():
    backbone = SamBackbone("random_tiny")
    make_tuner("lora").attach(backbone)
    with pytest.raises(RecipeError, match=r"PeftTuner is attached already. Build a fresh backbone"):
        make_tuner("lora").attach(backbone)


def test_stored_settings_build_the_same_configuration():
    config = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True)
    settings = config.to_dict()
    built = build_config("LoraConfig", settings)
    assert built.to_dict() == settings
    with pytest.raises(RecipeError, match="has no configuration 'PeftModel'"):
        build_config("PeftModel", {})
    with pytest.raises(RecipeError, match=r"LoraConfig of peft .* does not take these settings .*'rnak'"):
        build_config("LoraConfig", {"rnak": 3})
