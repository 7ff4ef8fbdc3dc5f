"""A pretraining is a run: what it leaves, what starts from it, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import CheckpointError, DataError, RecipeError
from medsam_tune.files import sha256_of
from medsam_tune.training.pretrained import pretrained_words
from tests.conformance.conftest import toy_place
from tests.conformance.toy_runs import train_resume_and_reload
from tests.training.tiny_runs import build, forget_run, only_run, run, weights_of, write_workplace

RECIPE = """\
# Masks, mixtures and moved cells on the tiny network.
seed_everything: 0
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny, trainable: [image_encoder]}}
  task: {class_path: medsam_tune.tasks.Pretraining, init_args: {shed_ratio: 0.3}}
data:
  root: unlabelled
  source: {class_path: medsam_tune.data.UnlabelledFolder}
  batch_size: 3
  cache_embeddings: false
  split: {val_fraction: 0.2, test_fraction: 0.2}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""
BASE = "--model.backbone.weights"
__all__ = ["toy_place"]


def write_unlabelled(folder, n_images=9):
    """Pictures of other patients than those of the workplace."""
    folder.mkdir()
    random = np.random.default_rng(1)
    for number in range(n_images):
        Image.fromarray(random.integers(0, 256, (16, 20), dtype=np.uint8)).save(folder / f"p{number}.png")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Return (workplace, run folder) of one pretraining, and what it said; nothing may change it."""
    folder = tmp_path_factory.mktemp("pretrained")
    write_workplace(folder)
    write_unlabelled(folder / "unlabelled")
    (folder / "pretrain.yaml").write_text(RECIPE)
    forget_run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSAM_TUNE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert build_and_run("pretrain.yaml") == 0
        forget_run()
        return folder, only_run(folder / "runs").path


def build_and_run(recipe, *words):
    from medsam_tune.cli import main

    return main(["run", recipe, *words])


@pytest.fixture
def place(pretrained, monkeypatch, tmp_path):
    """The workplace of the pretraining; runs go elsewhere."""
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(pretrained[0] / "cache"))
    monkeypatch.chdir(pretrained[0])
    return tmp_path


def record_of(folder):
    return json.loads((folder / "pretrained" / "pretraining.json").read_text())


def test_a_pretraining_leaves_plain_weights_their_history_and_the_files_it_saw(pretrained):
    place, folder = pretrained
    record, file = record_of(folder), folder / "pretrained" / "weights.safetensors"
    base = SamBackbone("random_tiny")
    assert record["weights"] == "random_tiny"
    assert record["sha256"] == sha256_of(file)
    assert record["chain"] == [
        {"name": "random_tiny", "sha256": base.weights.sha256},
        {"name": folder.name, "sha256": record["sha256"]},
    ]
    splits = json.loads((folder / "splits.json").read_text())
    seen = {entry["file"].removesuffix(".png") for entry in record["files"]}
    assert seen == {*splits["train"], *splits["val"]}
    assert not seen & set(splits["test"])
    assert all(sha256_of(place / "unlabelled" / entry["file"]) == entry["sha256"] for entry in record["files"])
    state, before = load_file(file), base.state_dict()
    assert state.keys() == before.keys()
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    assert changed
    assert all(name.startswith("image_encoder.") for name in changed)
    # The weights are those that the validation chose.
    best = weights_of(folder / "checkpoints" / "best.ckpt")
    assert all(torch.equal(state[name], best[f"segmenter.backbone.{name}"]) for name in changed)


def test_losses_stand_beside_their_trivial_ones_and_the_run_says_what_is_not_beaten(pretrained):
    summary = json.loads((pretrained[1] / "summary.json").read_text())
    figures = summary["validation"]
    assert {f"val/{name}{end}" for name in ("mae", "emix", "shed") for end in ("", "_trivial")} < figures.keys()
    beaten = all(figures[f"val/{name}"] < figures[f"val/{name}_trivial"] for name in ("mae", "emix", "shed"))
    assert summary["verdict"]["verdict"] == ("beaten" if beaten else "not beaten")
    assert ("NOT BEATEN" in summary["verdict"]["text"]) is not beaten


def test_heads_are_no_part_of_the_export(pretrained):
    described = json.loads((pretrained[1] / "export" / "export.json").read_text())
    assert all(name.startswith("backbone.image_encoder.") for name in described["parameters"])


def test_any_recipe_starts_from_it_and_records_it(pretrained, place):
    folder = pretrained[1]
    (place / "runs").mkdir()
    assert run(f"weights={folder}", f"--run.folder={place / 'runs'}", "--run.report=false") == 0
    tuned, record = only_run(place / "runs"), record_of(folder)
    summary = json.loads(tuned.summary.read_text())
    assert summary["base_weights"] == {"name": "weights.safetensors", "sha256": record["sha256"]}
    assert summary["pretraining"]["chain"] == record["chain"]
    assert summary["pretraining"]["n_files"] == len(record["files"])
    assert json.loads((tuned.path / "pretraining.json").read_text()) == record
    forget_run()
    state, begun = load_file(folder / "pretrained" / "weights.safetensors"), build(f"--weights={folder}")
    encoder = begun.model.segmenter.backbone.state_dict()
    assert all(torch.equal(encoder[name], tensor) for name, tensor in state.items())
    begun.discard_unused_folder()


def test_a_file_of_the_test_part_is_refused_by_name(pretrained, place):
    tested = json.loads((pretrained[1] / "splits.json").read_text())
    names = sorted(path.stem for path in Path("images/images").iterdir())
    data = place / "data"
    shutil.copytree("images", data)
    # A copy under another name, in every case that may be tested.
    for name in names:
        shutil.copy(f"unlabelled/{tested['train'][0]}.png", data / "images" / f"{name}.png")
        Image.new("L", (20, 16)).save(data / "masks" / f"{name}.png")
        Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), ((6, 6), (8, 8)))).save(data / "masks" / f"{name}.png")
    with pytest.raises(DataError, match=r"was pretrained on \d+ files of the test part: images/c\d_\d\.png"):
        build(f"--weights={pretrained[1]}", f"--data.root={data}")


def test_folders_that_hold_no_pretrained_weights_and_damaged_ones_are_refused(pretrained, place):
    with pytest.raises(RecipeError, match=r"is a folder without pretrained/weights.safetensors"):
        pretrained_words([f"{BASE}={place}"])
    shutil.copytree(pretrained[1] / "pretrained", place / "pretrained")
    (place / "pretrained" / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is not the file that pretraining.json names"):
        pretrained_words([f"{BASE}={place}"])
    (place / "pretrained" / "pretraining.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is no record of a pretraining"):
        pretrained_words([f"{BASE}={place}"])
    assert pretrained_words([f"{BASE}=lite_medsam", "--data.root=x"]) == [f"{BASE}=lite_medsam", "--data.root=x"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [
                "--model.backbone.trainable=[]",
                "--model.tuner=medsam_tune.tuners.AdaptFormer",
            ],
            r"its tuner must merge: take LoRA, BiasTuning",
        ),
        (["--data.batch_size=1"], "e-Mix tells an image from the others of its batch"),
        (["--model.task.cell_px=10"], "a cell must be a multiple of 16 px"),
    ],
)
def test_what_could_only_fail_at_the_end_is_refused_before_training(place, words, said):
    with pytest.raises(RecipeError, match=said):
        build(f"--run.folder={place}", *words, recipe="pretrain.yaml")
    assert not any(place.iterdir())


@pytest.mark.slow
def test_a_resumed_pretraining_ends_as_one_that_never_stopped(toy_place):
    """Three runs: whole, cut off, and continued."""
    write_unlabelled(toy_place / "unlabelled")
    train_resume_and_reload(RECIPE, exports_it=False)


@pytest.mark.slow
def test_lora_learns_and_a_second_pretraining_lengthens_the_chain(pretrained, place):
    lora = [
        "--model.backbone.trainable=[]",
        "--model.tuner=medsam_tune.tuners.PeftTuner",
        "--model.tuner.config=peft.LoraConfig",
        "--model.tuner.parts=[image_encoder.attention.qkv]",
    ]
    words = [f"--run.folder={place}", f"weights={pretrained[1]}", *lora, "--model.task.emix=0", "--data.batch_size=1"]
    assert build_and_run("pretrain.yaml", *words) == 0
    record, first = record_of(only_run(place).path), record_of(pretrained[1])
    assert [entry["sha256"] for entry in record["chain"][:2]] == [entry["sha256"] for entry in first["chain"]]
    assert len(record["chain"]) == 3
    assert len(record["files"]) == 2 * len(first["files"])
    assert record["weights"] == "random_tiny"
