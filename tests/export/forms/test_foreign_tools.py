"""Each tool, in a process that never imports this package, answers as the tuned network does."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything import sam_model_registry

from medsam_tune.errors import CheckpointError
from medsam_tune.export.forms import verify_form, write_form
from medsam_tune.export.forms.base import RECORD_FILE
from medsam_tune.export.forms.bundle import is_own_code
from medsam_tune.export.forms.stock_sam import merged, with_unused
from medsam_tune.files import sha256_of
from medsam_tune.runs.forms import check_export
from medsam_tune.types import ImageEmbeddings
from tests.export.forms.tools import Tools
from tests.export.forms.tuned import BOTTLENECK, CLASSES, GENERATOR, LORA, SAMED, UNET, config_of, exported

# Each starts a process that imports a large library, or lets torch trace a network: seconds, whatever the network's size.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    process = Tools(tmp_path_factory.mktemp("tools"))
    yield process
    process.close()


@pytest.fixture
def forked(tools, monkeypatch):
    """Ask by a fork of a process that has imported the tools, which take seconds; others start as a user's do."""
    monkeypatch.setattr("medsam_tune.export.forms.verify.subprocess", tools)


def written(folder, form, config, **moved):
    return write_form(exported(folder, config, **moved), form, folder / form)


def check(folder, questions=12):
    figures = check_export(folder)
    assert figures["questions"] == questions
    assert figures["imports_medsam_tune"] is False
    assert figures["logits_differ_by_share"] < 1e-4
    assert figures["pixels_that_differ"] <= 2
    with np.load(folder / "reference.npz") as stored:
        shares = [stored[name].mean() for name in stored.files if name.endswith("_masks") and stored[name].dtype == bool]
    # Masks that are all empty or all full would agree whatever the tool did.
    assert any(0.01 < share < 0.99 for share in shares)
    return figures


def test_transformers_loads_merged_weights(tmp_path):
    check(written(tmp_path, "transformers", config_of(tuner=LORA)))


def test_onnxruntime_answers_with_a_tuner_inside_the_graph(tmp_path):
    figures = check(written(tmp_path, "onnx", config_of(tuner=BOTTLENECK)))
    asked = [line.partition(":")[0] for line in figures["each"]]
    assert asked[:4] == ["64 x 64, a box", "64 x 64, 1 points", "64 x 64, 2 points", "64 x 64, 9 points"]
    assert {line.partition(",")[0] for line in asked} == {"64 x 64", "32 x 24", "32 x 64"}


@pytest.mark.parametrize(
    "config",
    [config_of(prompt_encoder=GENERATOR), config_of(segmenter=CLASSES), {"segmenter": UNET}],
    ids=["autosam", "classes", "unet"],
)
def test_network_without_prompts_is_one_graph_from_image_to_mask(tmp_path, config):
    folder = written(tmp_path, "onnx", config)
    assert sorted(path.name for path in folder.glob("*.onnx")) == ["model.onnx"]
    check(folder, questions=3)


def test_monai_runs_the_bundle_and_foreign_code_in_one_is_not_run(tmp_path):
    folder = written(tmp_path, "bundle", config_of(tuner=SAMED))
    figures = check_export(folder)
    assert (figures["pixels_that_differ"], figures["imports_medsam_tune"]) == (0, False)
    metadata = json.loads((folder / "configs/metadata.json").read_text())
    # The keys that MONAI's schema of metadata requires.
    required = ("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task")
    assert {*required, "description", "authors", "copyright", "network_data_format"} <= metadata.keys()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} >= {
        "LICENSE", "docs/README.md", "configs/metadata.json", "configs/inference.json", "models/facts.json"
    }  # fmt: skip
    script = folder / "scripts/network.py"
    script.write_text(script.read_text() + "\nraise SystemExit('ran')\n")
    record = json.loads((folder / RECORD_FILE).read_text())
    record["files"]["scripts/network.py"] = sha256_of(script)
    (folder / RECORD_FILE).write_text(json.dumps(record))
    assert not is_own_code(folder)
    with pytest.raises(CheckpointError, match=r"checking a bundle runs them. Give --trust"):
        check_export(folder)


@pytest.mark.usefixtures("forked")
def test_lite_medsam_loads_strictly_in_the_authors_model(tmp_path):
    folder = written(tmp_path, "sam", config_of("lite_medsam", tuner=SAMED), moved=0.005)
    check(folder)
    assert (folder / "lite_medsam.pth").is_file()


@pytest.mark.usefixtures("forked")
def test_peft_loads_the_adapter_and_what_was_trained_beside_it(tmp_path):
    figures = check(written(tmp_path, "adapter", config_of("lite_medsam", tuner=LORA, trainable=["mask_decoder.mask_tokens"])))
    assert figures["loads_in"] == "peft"


STOCK_VIT_B = """
import sys
import torch
from segment_anything import sam_model_registry

sam = sam_model_registry["vit_b"]()
sam.load_state_dict(torch.load(sys.argv[1], weights_only=True), strict=True)
given = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    tokens = sam.image_encoder.blocks[10](given["tokens"])
    sparse, dense = sam.prompt_encoder(points=None, boxes=given["box"], masks=None)
    masks, _ = sam.mask_decoder(
        image_embeddings=given["embeddings"],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
torch.save({"tokens": tokens, "masks": masks}, sys.argv[3])
assert "medsam_tune" not in sys.modules
"""


def test_vit_b_of_true_shape_loads_strictly_in_stock_segment_anything(tmp_path, tools):
    # A windowed block and the decoder, not the image: an encoder pass of this size takes twenty seconds.
    segmenter = exported(tmp_path, config_of("random_vit_b", tuner=SAMED)).segmenter
    given = {"tokens": torch.randn(1, 14, 14, 768), "box": torch.tensor([[9.0, 20, 500, 600]])}
    given["embeddings"] = torch.randn(1, 256, 64, 64)
    backbone = segmenter.backbone
    with torch.no_grad():
        tokens = backbone.image_encoder.blocks[10](given["tokens"])
        prompts = backbone.embed_prompts(1, boxes=given["box"])
        index = torch.zeros(1, dtype=torch.int64)
        masks = backbone.decode(ImageEmbeddings(given["embeddings"]), index, prompts).low_res_masks
    torch.save(given, tmp_path / "given.pt")
    torch.save(merged(segmenter), tmp_path / "vit_b.pth")
    (tmp_path / "stock.py").write_text(STOCK_VIT_B)
    words = [sys.executable, *(tmp_path / name for name in ("stock.py", "vit_b.pth", "given.pt", "said.pt"))]
    tools.run(words, check=True, cwd=tmp_path)
    said = torch.load(tmp_path / "said.pt", weights_only=True)
    torch.testing.assert_close(said["tokens"], tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said["masks"], masks, atol=1e-4, rtol=1e-4)


def test_large_and_huge_have_the_names_and_shapes_of_stock_segment_anything():
    from medsam_tune.backbone import SamBackbone

    with torch.device("meta"):
        for name in ("vit_l", "vit_h"):
            ours, stock = SamBackbone(f"random_{name}").state_dict(), sam_model_registry[name]().state_dict()
            assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in stock.items()}


def test_mobile_sam_gets_the_head_that_it_builds_and_never_calls():
    from medsam_tune.backbone import SamBackbone

    state = SamBackbone("random_mobile_sam").state_dict()
    added = with_unused(state).keys() - state.keys()
    assert added == {f"image_encoder.{name}" for name in ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias")}


@pytest.mark.usefixtures("forked")
def test_other_weights_are_found_out(tmp_path):
    folder = written(tmp_path, "transformers", config_of(tuner=LORA))
    file = folder / "model.safetensors"
    save_file({name: tensor * 1.1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="is another file than the one that was exported"):
        verify_form(folder)
    record = json.loads((folder / RECORD_FILE).read_text())
    record["files"]["model.safetensors"] = sha256_of(file)
    (folder / RECORD_FILE).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"loads in transformers, but answers otherwise .* Export the run again"):
        verify_form(folder)


def test_a_tool_that_is_not_installed_is_named_with_the_command_that_checks_later(tmp_path, monkeypatch):
    monkeypatch.setattr("medsam_tune.export.forms.verify.read_record", lambda folder: {"form": "sam", "loads_in": "mobile_sam"})
    faulty = subprocess.CompletedProcess([], 1, "", "Traceback\nModuleNotFoundError: No module named 'mobile_sam'\n")
    monkeypatch.setattr("medsam_tune.export.forms.verify.subprocess.run", lambda *words, **settings: faulty)
    with pytest.raises(CheckpointError, match=r"not checked: mobile_sam is not installed .* Install it, then .*--verify"):
        verify_form(tmp_path)
