"""An export with an adapter of peft: exact reloading, what stock peft makes of it, and what is refused."""

import json
import sys
import warnings

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import medsam_tune
from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import CheckpointError
from medsam_tune.export import load_adapter, load_export, save_export
from medsam_tune.export.build import build_segmenter
from medsam_tune.export.model_card import OWN_METHOD
from medsam_tune.files import sha256_of
from medsam_tune.losses import SoftmaxDiceLoss
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tuners.msa.bottleneck_peft import PEFT_TYPE
from tests.class_batches import make_class_batch
from tests.factories import make_batch

LORA = {
    "class_path": "medsam_tune.tuners.PeftTuner",
    # None, runtime_config and loftq_config are what the recipe's parser writes out.
    "init_args": {
        "config": {
            "class_path": "peft.LoraConfig",
            "init_args": {
                "r": 2,
                "lora_alpha": 8,
                "peft_type": None,
                "runtime_config": {"ephemeral_gpu_offload": False},
                "loftq_config": {"loftq_bits": 4, "loftq_iter": 1},
            },
        },
        "parts": ["image_encoder.attention.qkv"],
        "blocks": [1, 1],
    },
}
ADALORA = {
    "class_path": "medsam_tune.tuners.PeftTuner",
    "init_args": {
        "config": {"class_path": "peft.AdaLoraConfig", "init_args": {"init_r": 4, "target_r": 2, "total_step": 3, "tfinal": 1}}
    },
}
BOTTLENECK = {"class_path": "medsam_tune.tuners.BottleneckAdapter", "init_args": {"rank": 2, "decoder": "adapters"}}
SAMED = {"class_path": "medsam_tune.tuners.SamedTuner", "init_args": {"rank": 2}}


def model_config(tuner=LORA, *, trainable=(), seed=0):
    backbone = {"weights": "random_tiny", "trainable": list(trainable), "seed": seed}
    return {
        "backbone": {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": backbone},
        "tuner": tuner,
    }


def trained(config, steps=3):
    segmenter = build_segmenter(config).train()
    optimizer = torch.optim.SGD([p for p in segmenter.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        segmenter(make_batch()).low_res_masks.square().mean().backward()
        optimizer.step()
        segmenter.after_step(step)
    return segmenter.eval()


def export(folder, config):
    segmenter = trained(config)
    metrics = {"dice": {"mean": 0.5, "ci95": [0.4, 0.6]}, "n_cases": 7}
    save_export(folder, segmenter=segmenter, model_config=config, metrics=metrics, data_description={"root": "sample"})
    return segmenter


def logits(segmenter):
    with torch.no_grad():
        return segmenter.eval()(make_batch()).low_res_masks


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
    export(tmp_path / "adapter", model_config())
    return tmp_path / "adapter"


@pytest.mark.parametrize("tuner", [LORA, ADALORA, SAMED, BOTTLENECK], ids=["lora", "adalora", "samed", "bottleneck"])
def test_loaded_predictor_gives_the_logits_of_the_trained_network(tmp_path, tuner):
    config = model_config(tuner, trainable=["mask_decoder"])
    segmenter = export(tmp_path / "adapter", config)
    loaded = medsam_tune.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(loaded.segmenter), logits(segmenter))
    assert not torch.allclose(logits(build_segmenter(config)), logits(segmenter))
    assert loaded.segment(np.zeros((9, 7), np.uint8)).shape == (9, 7)


def test_adapter_file_holds_the_adapter_and_extra_file_the_rest(tmp_path):
    segmenter = export(tmp_path / "adapter", model_config(trainable=["mask_decoder.mask_tokens"]))
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    layer = "base_model.model.image_encoder.blocks.1.attn.qkv"
    assert {name: tuple(t.shape) for name, t in adapter.items()} == {
        f"{layer}.lora_A.weight": (2, 32),
        f"{layer}.lora_B.weight": (96, 2),
    }
    extra = load_file(tmp_path / "adapter" / "trained.safetensors")
    assert list(extra) == ["backbone.mask_decoder.mask_tokens.weight"]
    assert torch.equal(extra["backbone.mask_decoder.mask_tokens.weight"], segmenter.backbone.mask_decoder.mask_tokens.weight)


def test_folder_without_anything_else_trained_has_no_extra_file_and_stock_peft_reads_it(folder):
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "export.json",
    }
    stock = SamBackbone("random_tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.PeftModel.from_pretrained(stock, folder)
    expected = logits(load_adapter(folder).segmenter)
    torch.testing.assert_close(logits(SamSegmenter(SamParts(stock))), expected, atol=1e-6, rtol=0)


def test_base_weights_stand_in_config_and_card(folder):
    weights = SamBackbone("random_tiny").weights
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"random_tiny@sha256:{weights.sha256}"
    assert config["target_modules"] == ["image_encoder.blocks.1.attn.qkv"]
    card = (folder / "README.md").read_text()
    assert weights.sha256 in card
    assert "0.5000 (95 % interval 0.4000 to 0.6000) over 7 cases" in card


def test_other_base_weights_are_refused_unless_forced(folder):
    edit(folder / "export.json", model=model_config(seed=1))
    with pytest.raises(CheckpointError, match=r"trained on base weights random_tiny \(sha256 .* pass force=True"):
        load_adapter(folder)
    assert load_adapter(folder, force=True).segmenter.backbone.weights == SamBackbone("random_tiny", seed=1).weights


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("adapter_model.safetensors", lambda data: data[:-8], "corrupt or another one; copy it again"),
        ("adapter_model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "corrupt or another one; copy it again"),
        ("adapter_config.json", lambda data: data[:20], "is no JSON"),
        ("adapter_config.json", lambda data: b"[]", "expected an object, got list"),
    ],
)
def test_damaged_file_is_refused(folder, file, damage, message):
    path = folder / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("adapter_model.safetensors", r"although export\.json names it"),
        ("adapter_config.json", r"no such file\. Copy the whole export folder"),
        ("export.json", r"peft alone loads it: PeftModel\.from_pretrained"),
    ],
)
def test_missing_file_is_named(folder, file, message):
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=message):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_version": "0.99", "rank_dropout_schedule": "x"}, r"written by peft 0\.99, .*rank_dropout_schedule unknown"),
        ({"r": 4}, r"r is 4, expected 2\)\. Install the version"),
        ({"peft_type": "LOHA"}, "peft_type is LOHA, expected LORA"),
    ],
)
def test_configuration_of_another_version_is_refused(folder, changes, message):
    edit(folder / "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(folder)


def test_tensors_of_another_shape_are_refused(folder):
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor[:1].clone() for name, tensor in load_file(path).items()}, path)
    edit(folder / "export.json", files={path.name: sha256_of(path)})
    with pytest.raises(CheckpointError, match=r"2 of another shape \(base_model"):
        load_adapter(folder)


def test_values_that_are_not_finite_are_refused(folder):
    path = folder / "adapter_model.safetensors"
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(path).items()}, path)
    edit(folder / "export.json", files={path.name: sha256_of(path)})
    with pytest.raises(CheckpointError, match=r"2 with NaN or infinity \(base_model"):
        load_adapter(folder)


def test_export_without_an_adapter_is_refused_as_one(tmp_path):
    config = model_config(None, trainable=["mask_decoder"])
    save_export(tmp_path / "a", segmenter=build_segmenter(config), model_config=config, metrics={}, data_description={})
    with pytest.raises(CheckpointError, match=r"holds no adapter of the peft library\. Use load_export"):
        load_adapter(tmp_path / "a")


def test_adapter_and_description_must_agree(folder):
    edit(folder / "export.json", model=model_config(None))
    with pytest.raises(CheckpointError, match=r"lists an adapter but its model has no tuner of the peft library"):
        load_export(folder)


def test_one_folder_is_read_alike_by_both_loaders(folder):
    assert torch.equal(logits(load_export(folder).segmenter), logits(load_adapter(folder).segmenter))


def test_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds files that are no export"):
        export(tmp_path, model_config())
    assert (tmp_path / "notes.txt").read_text() == "mine"


def classes_config():
    parts = model_config(SAMED, trainable=["mask_decoder", "prompt_encoder.no_mask_embed"])
    segmenter = {"class_path": "medsam_tune.segmenters.SemanticSegmenter", "init_args": {"classes": ["anterior", "posterior"]}}
    return parts | {"segmenter": segmenter}


def trained_on_classes(config):
    segmenter = build_segmenter(config).train()
    optimizer = torch.optim.SGD([p for p in segmenter.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(SoftmaxDiceLoss()(segmenter(make_class_batch()), make_class_batch()).values()).backward()
        optimizer.step()
    return segmenter.eval()


def test_decoder_of_classes_lies_beside_the_lora_and_both_come_back(tmp_path):
    config = classes_config()
    segmenter = trained_on_classes(config)
    save_export(tmp_path / "a", segmenter=segmenter, model_config=config, metrics={}, data_description={})
    extra = load_file(tmp_path / "a" / "trained.safetensors")
    assert extra["backbone.mask_decoder.mask_tokens.weight"].shape == (3, 32)
    assert not any("iou_prediction_head" in name or "lora" in name for name in extra)
    assert all("lora" in name for name in load_file(tmp_path / "a" / "adapter_model.safetensors"))
    loaded = medsam_tune.load_adapter(tmp_path / "a")
    with torch.no_grad():
        scores = [one(make_class_batch()).class_logits for one in (segmenter, loaded.segmenter, build_segmenter(config).eval())]
    assert torch.equal(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])
    assert list(loaded.segment_classes(np.zeros((9, 7), np.uint8))) == ["anterior", "posterior"]
    assert "segment_classes(image)  # by class: anterior, posterior" in (tmp_path / "a" / "README.md").read_text()


def test_another_number_of_classes_is_refused(tmp_path):
    config = classes_config()
    segmenter = build_segmenter(config)
    save_export(tmp_path / "a", segmenter=segmenter, model_config=config, metrics={}, data_description={})
    config["segmenter"]["init_args"]["classes"].append("third")
    edit(tmp_path / "a" / "export.json", model=config)
    with pytest.raises(CheckpointError, match=r"trained\.safetensors: does not fit .* of another shape"):
        load_adapter(tmp_path / "a")


def test_the_model_cards_lines_load_an_adapter_of_our_own_kind_into_stock_peft(tmp_path, monkeypatch):
    segmenter = export(tmp_path / "adapter", model_config(BOTTLENECK))
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert OWN_METHOD == PEFT_TYPE == json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"]
    lines = card.split("```python")[2].split("```")[0].replace("FOLDER", str(tmp_path / "adapter"))
    # As in a fresh process: peft does not know the method until the card's first line has run.
    for table in (peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING):
        monkeypatch.delitem(table, PEFT_TYPE)
    monkeypatch.delitem(peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE)
    monkeypatch.delitem(sys.modules, "medsam_tune.tuners.msa.bottleneck_peft")
    monkeypatch.setattr(medsam_tune.tuners.msa, "bottleneck_peft", None, raising=False)
    stock = SamBackbone("random_tiny")
    monkeypatch.setattr("segment_anything.sam_model_registry", {"vit_b": lambda checkpoint: stock})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KeyError, match="BOTTLENECK_ADAPTER"):
            exec(lines.replace("import medsam_tune.tuners.msa.bottleneck_peft", ""), {})
        exec(lines, {})
    torch.testing.assert_close(logits(SamSegmenter(SamParts(stock))), logits(segmenter), atol=1e-6, rtol=0)
