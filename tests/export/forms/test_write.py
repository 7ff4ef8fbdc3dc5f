"""What is refused before anything is written, what lies in a folder, and what a reference is."""

import json

import numpy as np
import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.export.build import build_segmenter
from medsam_tune.export.forms import read_tuned, verify_form, write_form
from medsam_tune.export.forms.base import RECORD_FILE, read_record
from medsam_tune.export.forms.bundle import metadata
from medsam_tune.export.forms.hub import new_name
from medsam_tune.export.forms.reference import drawn_image, make_reference
from medsam_tune.inference.predictor import Predictor
from medsam_tune.runs.forms import check_export
from tests.export.forms.tuned import BOTTLENECK, CLASSES, GENERATOR, LORA, SAMED, config_of, exported


@pytest.mark.parametrize(
    ("form", "config", "message"),
    [
        (
            "sam",
            config_of(),
            r"encoder is tiny\. What this model can be written as: adapter, transformers, onnx, bundle\.",
        ),
        ("sam", config_of(prompt_encoder=GENERATOR), r"no place for EmbeddingPromptGenerator\. .* as: adapter, onnx, bundle\."),
        (
            "transformers",
            config_of("random_lite_medsam"),
            r"ViT as its encoder, this one is lite_medsam\. .*adapter, sam",
        ),
        ("transformers", config_of(segmenter=CLASSES), r"the other 2 are classes.* as: adapter, onnx, bundle\."),
        ("transformers", config_of(tuner=BOTTLENECK), r"cannot be merged .* as: adapter, onnx, bundle\."),
    ],
)
def test_refused_form_leaves_no_folder_and_names_what_can_be_had(tmp_path, form, config, message):
    tuned = exported(tmp_path, config)
    with pytest.raises(CheckpointError, match=message):
        write_form(tuned, form, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


def test_places_that_hold_something_else_are_refused(tmp_path):
    tuned = exported(tmp_path, config_of(tuner=LORA))
    with pytest.raises(RecipeError, match="is the run's own export, which every form starts from"):
        write_form(tuned, "adapter", tmp_path / "export")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds something else than an export of this command"):
        write_form(tuned, "adapter", tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("config", "why"),
    [(config_of(tuner=SAMED), "this encoder is tiny"), (config_of(tuner=BOTTLENECK), "learns of the Medical SAM Adapter")],
    ids=["samed", "bottleneck"],
)
def test_adapter_folder_is_checked_by_this_package_where_peft_alone_cannot(tmp_path, config, why):
    folder = write_form(exported(tmp_path, config), "adapter", tmp_path / "out")
    assert why in read_record(folder)["not_in_peft"]
    figures = check_export(folder)
    assert (figures["loads_in"], figures["logits_differ_by"], figures["pixels_that_differ"]) == ("medsam_tune", 0.0, 0)
    # It is a run's export like any other.
    reloaded = make_reference(read_tuned(folder).segmenter)
    assert np.array_equal(
        reloaded.answers[0].low_res_masks, make_reference(read_tuned(tmp_path).segmenter).answers[0].low_res_masks
    )


def test_record_names_every_file_and_says_which_is_missing_or_outside(tmp_path):
    folder = write_form(exported(tmp_path, config_of(tuner=LORA)), "adapter", tmp_path / "out")
    record = json.loads((folder / RECORD_FILE).read_text())
    assert {*record["files"], RECORD_FILE} == {path.name for path in folder.iterdir()}
    (folder / RECORD_FILE).write_text(json.dumps({**record, "files": {"../secret": "0"}}))
    with pytest.raises(CheckpointError, match=r"names \.\./secret, which lies outside"):
        verify_form(folder)
    (folder / RECORD_FILE).write_text(json.dumps(record))
    (folder / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"README\.md: no such file, although form.json names it. Copy the whole folder"):
        verify_form(folder)
    with pytest.raises(CheckpointError, match=r"--verify takes a folder that `medsam-tune export RUN --to FORM` wrote"):
        verify_form(tmp_path / "export")


def test_reference_answers_are_those_of_the_predictor():
    segmenter = build_segmenter(config_of(tuner=SAMED)).eval()
    reference = make_reference(segmenter)
    predictor = Predictor(segmenter)
    assert reference.original_sizes == ((64, 64), (24, 32), (64, 32))
    assert [image.shape for image in reference.images] == [(64, 64, 3), (48, 64, 3), (64, 32, 3)]
    for asked, said in zip(reference.questions, reference.answers, strict=True):
        predictor.set_image(reference.images[asked.image])
        points = {"point_coords": asked.points, "point_labels": asked.labels} if len(asked.points) else {}
        masks, ious, low_res = predictor.predict(box=asked.box if len(asked.box) else None, **points)
        np.testing.assert_array_equal(low_res, said.low_res_masks)
        np.testing.assert_array_equal(ious, said.iou_predictions)
        if asked.image != 1:  # the one whose original is half as large
            np.testing.assert_array_equal(masks, said.masks)


def test_drawn_image_spans_all_grey_levels_so_that_limits_of_its_own_change_nothing():
    for size in ((64, 64), (48, 64), (1024, 512)):
        image = drawn_image(size)
        assert (image.shape, image.min(), image.max()) == ((*size, 3), 0, 255)


def test_every_weight_of_a_tiny_vit_has_a_name_in_transformers():
    from transformers import SamConfig, SamModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "global_attn_indexes": [1], "window_size": 2}
    with torch.device("meta"):
        model = SamModel(SamConfig(vision_config=sizes))
    theirs = {name for name in model.state_dict() if not name.startswith("shared_image_embedding.")}
    assert {new_name(name) for name in SamBackbone("random_tiny").state_dict()} == theirs


_TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        **{key: {"type": "string"} for key in ("type", "format", "dtype")},
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "channel_def": {"type": "object"},
    },
}
_SIDE = {"type": "object", "additionalProperties": _TENSOR}
# What meta_schema_20240725.json demands, at Project-MONAI/project-monai.github.io abfc051, public/schema; said in our words.
_TEXTS = (
    "schema",
    "version",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "task",
    "description",
    "authors",
    "copyright",
)
_SCHEMA = {
    "type": "object",
    "required": [*_TEXTS, "required_packages_version", "network_data_format"],
    "properties": {
        **{key: {"type": "string"} for key in _TEXTS},
        **{key: {"type": "object"} for key in ("changelog", "required_packages_version")},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": _SIDE, "outputs": _SIDE},
        },
    },
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("config", [config_of(), config_of(segmenter=CLASSES)], ids=["prompts", "classes"])
def test_monai_verifies_the_metadata_of_a_bundle(tmp_path, config):
    pytest.importorskip("jsonschema")
    from monai.bundle import verify_metadata

    stated = metadata(exported(tmp_path, config))
    assert stated["schema"].endswith("/meta_schema_20240725.json")
    (tmp_path / "metadata.json").write_text(json.dumps(stated))
    # A schema that is there already is not downloaded.
    (tmp_path / "schema.json").write_text(json.dumps(_SCHEMA))
    verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    (tmp_path / "metadata.json").write_text(json.dumps({**stated, "task": 3}))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(tmp_path / "schema.json"))
