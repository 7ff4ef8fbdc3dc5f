import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.base import WeightsIdentity
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.export import load_export, save_export, trained_names
from medsam_tune.export.build import build_segmenter
from medsam_tune.export.trained import frozen_identities
from medsam_tune.inference.predictor import Predictor
from medsam_tune.prompt_encoders.base import PromptEncoder
from tests.factories import make_batch

DECODER = {
    "backbone": {
        "class_path": "medsam_tune.backbone.SamBackbone",
        "init_args": {"weights": "random_tiny", "trainable": ["mask_decoder"]},
    },
    "prompts": {"class_path": "medsam_tune.prompts.BoxPrompt", "init_args": {"kind": "whole_image"}},
    "tuner": {"class_path": "medsam_tune.tuners.NoTuner"},
    "side": None,
    "objects_per_decode": 0,
    "loss": {"class_path": "medsam_tune.losses.BceDiceLoss"},
}
GENERATOR = {
    "backbone": {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": {"weights": "random_tiny"}},
    "prompt_encoder": {
        "class_path": "medsam_tune.prompt_encoders.HarDNetPromptGenerator",
        "init_args": {"arch": "39ds", "gen_size": 64, "width": 8, "weights": None},
    },
}


def trained(config):
    """Build the network and train it one step, so that weights and BatchNorm statistics differ from a fresh one."""
    segmenter = build_segmenter(config).train()
    optimizer = torch.optim.SGD([p for p in segmenter.parameters() if p.requires_grad], lr=0.1)
    segmenter(make_batch()).low_res_masks.square().mean().backward()
    optimizer.step()
    return segmenter.eval()


def export(folder, config=DECODER):
    segmenter = trained(config)
    save_export(folder, segmenter=segmenter, model_config=config, metrics={"dice": 0.5}, data_description={"root": "sample"})
    return segmenter


def edit(folder, **changes):
    path = folder / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("config", [DECODER, GENERATOR], ids=["decoder", "generator"])
def test_loaded_model_gives_the_logits_of_the_saved_one(tmp_path, config):
    segmenter = export(tmp_path / "export", config)
    fresh = build_segmenter(config).eval()
    batch = make_batch()
    with torch.no_grad():
        loaded = load_export(tmp_path / "export").segmenter
        expected = segmenter(batch).low_res_masks
        assert torch.equal(loaded(batch).low_res_masks, expected)
    assert not torch.allclose(fresh(batch).low_res_masks, expected)


def test_values_of_any_type_go_through_the_rule_of_the_training(tmp_path):
    rule = {"rule": "window", "percentiles": [0.5, 99.5], "window": [-160, 240]}
    save_export(
        tmp_path / "export",
        segmenter=trained(DECODER),
        model_config=DECODER,
        metrics={},
        data_description={"intensity": rule, "format": "NiftiFormat"},
    )
    predictor = load_export(tmp_path / "export")
    slice_hu = np.random.default_rng(0).integers(-1000, 1000, (40, 64)).astype(np.int16)
    box = (5, 5, 40, 30)
    np.testing.assert_array_equal(
        predictor.segment(slice_hu, box=box), predictor.segment(slice_hu, box=box, intensity=(-160, 240))
    )
    grey = slice_hu.astype(np.uint8)
    np.testing.assert_array_equal(predictor.segment(grey, box=box), Predictor(predictor.segmenter).segment(grey, box=box))


def test_file_holds_exactly_what_was_trained_with_batch_norm_statistics(tmp_path):
    segmenter = export(tmp_path / "export", GENERATOR)
    stored = load_file(tmp_path / "export" / "trained.safetensors")
    assert set(stored) == {f"prompt_encoder.{name}" for name in segmenter.prompt_encoder.state_dict()}
    assert any(name.endswith("running_var") for name in stored)


def test_decoder_export_leaves_frozen_parameters_and_their_buffers_out(tmp_path):
    segmenter = export(tmp_path / "export")
    stored = load_file(tmp_path / "export" / "trained.safetensors")
    assert set(stored) == {name for name, p in segmenter.named_parameters() if p.requires_grad}
    table = "backbone.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert table in segmenter.state_dict()
    assert table not in trained_names(segmenter)


def test_card_asks_as_training_did(tmp_path):
    export(tmp_path / "box", {**DECODER, "prompts": {"class_path": "medsam_tune.prompts.BoxPrompt"}})
    assert "predictor.predict(box=(x1, y1, x2, y2))" in (tmp_path / "box" / "README.md").read_text()
    export(tmp_path / "generator", GENERATOR)
    assert "mask = predictor.segment(image)" in (tmp_path / "generator" / "README.md").read_text()


def test_description_says_what_the_tensors_belong_to(tmp_path):
    segmenter = export(tmp_path / "export")
    description = json.loads((tmp_path / "export" / "export.json").read_text())
    assert description["base_weights"] == {"name": "random_tiny", "sha256": segmenter.base_weights().sha256}
    assert description["input_rule"]["side"] == 64
    assert description["metrics"] == {"dice": 0.5}
    assert "not included" in description["licence"]
    state = segmenter.state_dict()
    assert {name: entry["shape"] for name, entry in description["parameters"].items()} == {
        name: list(state[name].shape) for name in trained_names(segmenter)
    }


def test_files_a_generator_started_from_are_not_needed_again(tmp_path):
    config = json.loads(json.dumps(GENERATOR))
    config["prompt_encoder"]["init_args"]["weights"] = "gone.pth"
    save_export(tmp_path / "export", segmenter=trained(GENERATOR), model_config=config, metrics={}, data_description={})
    assert load_export(tmp_path / "export").segment(np.zeros((8, 8), np.uint8)).shape == (8, 8)


def test_second_export_replaces_the_first_and_leaves_nothing_behind(tmp_path):
    export(tmp_path / "export", GENERATOR)
    export(tmp_path / "export", DECODER)
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["README.md", "export.json", "trained.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_export_does_not_replace_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds files that are no export. Choose another folder"):
        export(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_failed_write_keeps_the_earlier_export(tmp_path, monkeypatch):
    export(tmp_path / "export", GENERATOR)

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*Free space"):
        export(tmp_path / "export", DECODER)
    monkeypatch.undo()
    assert load_export(tmp_path / "export").segmenter is not None
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_untrained_network_is_no_export(tmp_path):
    config = DECODER | {"backbone": {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": {"weights": "random_tiny"}}}
    with pytest.raises(CheckpointError, match="nothing was trained"):
        save_export(tmp_path / "e", segmenter=build_segmenter(config), model_config=config, metrics={}, data_description={})


def test_other_base_weights_are_refused_unless_forced(tmp_path):
    export(tmp_path / "export")
    edit(tmp_path / "export", base_weights={"name": "sam_vit_b", "sha256": "0" * 64})
    with pytest.raises(CheckpointError, match=r"was trained on base weights sam_vit_b \(sha256 000000000000\).*force=True"):
        load_export(tmp_path / "export")
    assert load_export(tmp_path / "export", force=True).segment(np.zeros((8, 8), np.uint8)).shape == (8, 8)


def test_corrupt_tensors_are_refused(tmp_path):
    export(tmp_path / "export")
    path = tmp_path / "export" / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="corrupt or another one; copy it again"):
        load_export(tmp_path / "export")


def test_tensors_that_do_not_fit_are_named(tmp_path):
    export(tmp_path / "export")
    edit(tmp_path / "export", model=GENERATOR)
    with pytest.raises(CheckpointError, match=r"\d+ missing \(prompt_encoder.*\d+ unexpected \(backbone"):
        load_export(tmp_path / "export")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "has format version 1.*Install the version that wrote it"),
        ({"files": ["trained.safetensors"]}, "files missing or of the wrong type"),
        ({"model": None}, "model missing or of the wrong type"),
        ({"frozen": {"prompt_encoder": 3}}, "frozen missing or of the wrong type"),
    ],
)
def test_description_that_cannot_be_read_says_why(tmp_path, changes, message):
    export(tmp_path / "export")
    edit(tmp_path / "export", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_export(tmp_path / "export")


def test_missing_export_says_which_folder_to_give(tmp_path):
    with pytest.raises(CheckpointError, match=r"Give the folder that holds it"):
        load_export(tmp_path)


class ForeignPrompt(PromptEncoder):
    """A user's own prompt encoder with one parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, queries, inputs, embeddings, backbone):
        return backbone.embed_prompts(queries.n_objects)


def test_foreign_class_runs_only_where_it_is_trusted(tmp_path):
    config = DECODER | {"prompts": None, "prompt_encoder": {"class_path": f"{__name__}.ForeignPrompt"}}
    segmenter = build_segmenter(config, trusted=True)
    save_export(tmp_path / "e", segmenter=segmenter, model_config=config, metrics={}, data_description={})
    with pytest.raises(RecipeError, match=r"model.prompt_encoder: .*ForeignPrompt lies outside medsam_tune.*trusted=True"):
        load_export(tmp_path / "e")
    assert isinstance(load_export(tmp_path / "e", trusted=True).segmenter.prompt_encoder, ForeignPrompt)


def own_weights(folder, seed=3):
    """A run on a file of base weights of one's own, and its export."""
    file = folder / "base.pth"
    torch.save(SamBackbone("random_tiny", seed=seed).state_dict(), file)
    config = json.loads(json.dumps(DECODER))
    config["backbone"]["init_args"]["checkpoint"] = str(file)
    segmenter = build_segmenter(config, opens_files=True)
    assert segmenter.base_weights().name == "base.pth"
    save_export(folder / "export", segmenter=segmenter, model_config=config, metrics={}, data_description={})
    return file, segmenter


def test_own_base_weights_are_found_by_checksum_wherever_they_lie_now(tmp_path, monkeypatch):
    file, segmenter = own_weights(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    file.rename(tmp_path / "moved.pth")
    loaded = load_export(tmp_path / "export", checkpoint="~/moved.pth").segmenter
    batch = make_batch()
    with torch.no_grad():
        assert torch.equal(loaded(batch).low_res_masks, segmenter.eval()(batch).low_res_masks)


def test_own_base_weights_that_are_not_given_are_named_by_checksum(tmp_path):
    file, segmenter = own_weights(tmp_path)
    with pytest.raises(CheckpointError, match=rf"base\.pth\. .*checkpoint=FILE.* sha256 {segmenter.base_weights().sha256}"):
        load_export(tmp_path / "export")
    assert str(tmp_path) not in (tmp_path / "export" / "export.json").read_text()
    assert file.is_file()


def test_own_base_weights_are_found_where_the_runs_own_recipe_says(tmp_path, monkeypatch):
    file, segmenter = own_weights(tmp_path)
    config = {"model": {"backbone": {"class_path": "SamBackbone", "init_args": {"checkpoint": str(file)}}}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    monkeypatch.chdir("/")
    assert load_export(tmp_path / "export").segmenter.base_weights() == segmenter.base_weights()
    torch.save(SamBackbone("random_tiny", seed=4).state_dict(), file)
    with pytest.raises(CheckpointError, match="Say where it lies now"):
        load_export(tmp_path / "export")


def test_another_file_of_base_weights_is_refused(tmp_path):
    own_weights(tmp_path)
    torch.save(SamBackbone("random_tiny", seed=4).state_dict(), tmp_path / "base.pth")
    with pytest.raises(CheckpointError, match=r"base weights base\.pth \(sha256 .*, but base\.pth \(sha256 .* were loaded"):
        load_export(tmp_path / "export", checkpoint=tmp_path / "base.pth")


class WordPrompt(PromptEncoder):
    """A word, embedded by a frozen encoder and projected by a layer that learns, with a frozen and a learning BatchNorm."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.text.requires_grad_(False)
        self.project, self.norm = nn.Linear(8, 32), nn.BatchNorm1d(32)
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.plain = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))

    def forward(self, queries, inputs, embeddings, backbone):
        return backbone.embed_prompts(queries.n_objects)


def words(seed=0):
    return DECODER | {"prompts": None, "prompt_encoder": {"class_path": f"{__name__}.WordPrompt", "init_args": {"seed": seed}}}


def test_what_is_frozen_outside_the_backbone_is_named_and_never_stored(tmp_path):
    segmenter = build_segmenter(words(), trusted=True)
    trained = {name.removeprefix("prompt_encoder.") for name in trained_names(segmenter) if name.startswith("prompt_encoder.")}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert trained == {
        *("project.weight", "project.bias", "norm.weight", "norm.bias", "plain.0.weight", "plain.0.bias"),
        *(f"{owner}.{name}" for owner in ("norm", "plain.1") for name in statistics),
    }
    save_export(tmp_path / "e", segmenter=segmenter, model_config=words(), metrics={}, data_description={})
    frozen = json.loads((tmp_path / "e" / "export.json").read_text())["frozen"]
    assert {name: entry["name"] for name, entry in frozen.items()} == {
        "prompt_encoder.text": "Sequential",
        "prompt_encoder.scale": "scale",
    }
    assert load_export(tmp_path / "e", trusted=True).segmenter.prompt_encoder.text is not None


def test_another_frozen_module_is_refused_unless_forced(tmp_path):
    segmenter = build_segmenter(words(), trusted=True)
    save_export(tmp_path / "e", segmenter=segmenter, model_config=words(seed=1), metrics={}, data_description={})
    with pytest.raises(CheckpointError, match=r"prompt_encoder\.text is frozen and not stored; the training had Sequential \("):
        load_export(tmp_path / "e", trusted=True)
    assert load_export(tmp_path / "e", trusted=True, force=True).segmenter is not None


def test_a_frozen_module_may_say_whose_weights_it_holds():
    segmenter = build_segmenter(words(), trusted=True)
    segmenter.prompt_encoder.text.weights = WeightsIdentity("clip.pt", "0" * 64)
    assert frozen_identities(segmenter)["prompt_encoder.text"] == {"name": "clip.pt", "sha256": "0" * 64}


def test_file_of_a_part_outside_the_backbone_is_given_by_its_key(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("medsam_tune.prompt_encoders.features.load_hardnet", lambda features, path: opened.append(path))
    config = json.loads(json.dumps(GENERATOR))
    build_segmenter(config, files={"prompt_encoder.weights": tmp_path / "hardnet.pth"})
    assert opened == [str(tmp_path / "hardnet.pth")]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_damaged_values_are_refused_by_name(tmp_path, value):
    segmenter = trained(DECODER)
    with torch.no_grad():
        segmenter.backbone.mask_decoder.iou_token.weight[0, 3] = value
    save_export(tmp_path / "e", segmenter=segmenter, model_config=DECODER, metrics={}, data_description={})
    with pytest.raises(CheckpointError, match=r"1 with NaN or infinity \(backbone\.mask_decoder\.iou_token\.weight\)"):
        load_export(tmp_path / "e")


def test_tuned_backbone_still_names_its_frozen_weights():
    segmenter = build_segmenter(DECODER)
    assert segmenter.base_weights() == SamBackbone("random_tiny").weights
