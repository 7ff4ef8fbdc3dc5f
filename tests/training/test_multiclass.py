"""Several classes from data to report: one mask a class by SAMed's decoder, and one box an object."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import medsam_tune
from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.segmenters import SemanticSegmenter
from medsam_tune.training.run_place import RUNS
from tests.training.tiny_runs import STEPS_PER_EPOCH, TEST_CASES, build, only_run, run, weights_of, write_workplace

SEMANTIC = """\
# Two classes on tiny images.
seed_everything: 0
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny, trainable: [mask_decoder]}}
  tuner: {class_path: medsam_tune.tuners.SamedTuner, init_args: {rank: 2}}
  segmenter: {class_path: medsam_tune.segmenters.SemanticSegmenter, init_args: {classes: [disc, ring]}}
  loss: {class_path: medsam_tune.losses.SoftmaxDiceLoss}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
data:
  root: images
  source:
    class_path: medsam_tune.data.ImageFolder
    init_args: {case_pattern: '^([^_]+)_', labels: {disc: [255], ring: [100]}}
  target: per_class
  batch_size: 2
  split: {val_fraction: 0.15, test_fraction: 0.4}
  cache_embeddings: false
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""
BOXES = """\
# One box for each of two labels on tiny images.
seed_everything: 0
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny, trainable: [mask_decoder]}}
  prompts: {class_path: medsam_tune.prompts.BoxPrompt}
data:
  root: images
  source:
    class_path: medsam_tune.data.ImageFolder
    init_args: {case_pattern: '^([^_]+)_', labels: {disc: [255], ring: [100]}}
  target: per_label
  batch_size: 2
  split: {val_fraction: 0.15, test_fraction: 0.4}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""


def add_rings(root):
    """Give the masks of the tiny images a second value around the disc, on every image but the first of a case."""
    for path in (root / "masks").iterdir():
        mask = np.asarray(Image.open(path)).copy()
        grown = np.zeros_like(mask, dtype=bool)
        grown[1:-1, 1:-1] = (mask[2:, 1:-1] | mask[:-2, 1:-1] | mask[1:-1, 2:] | mask[1:-1, :-2]) > 0
        if not path.stem.endswith("_0"):
            mask[grown & (mask == 0)] = 100
        Image.fromarray(mask).save(path)


@pytest.fixture
def two_classes(workplace):
    add_rings(workplace / "images")
    (workplace / "tiny.yaml").write_text(SEMANTIC)
    return workplace


@pytest.fixture(scope="module")
def finished_classes(tmp_path_factory):
    """Return (workplace, run folder) of one run with one mask a class; nothing may change it."""
    folder = tmp_path_factory.mktemp("classes")
    write_workplace(folder)
    add_rings(folder / "images")
    (folder / "tiny.yaml").write_text(SEMANTIC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSAM_TUNE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert run() == 0
        return folder, only_run(folder / "runs")


def cases(folder):
    return list(csv.DictReader(folder.test_cases.read_text().splitlines()))


def test_a_run_with_one_mask_a_class_is_reported_by_class(finished_classes):
    _, done = finished_classes
    summary = json.loads(done.summary.read_text())
    assert list(summary["test"]["per_label"]) == ["disc", "ring"]
    assert set(summary["baselines"]["oracle_box"]["per_label"]) == {"disc", "ring"}
    assert [row["label"] for row in cases(done)] == ["disc", "ring"] * TEST_CASES
    assert summary["test"]["n_cases"] == TEST_CASES
    html = (done.report / "index.html").read_text()
    assert "By label" in html
    assert "<td>disc</td>" in html
    assert "<td>ring</td>" in html
    assert "segment_classes" in html


def test_export_and_adapter_reload_as_the_same_network_and_are_not_merged(finished_classes, tmp_path, capsys):
    folder, done = finished_classes
    image = np.asarray(Image.open(next((folder / "images" / "images").iterdir())))
    by_export = medsam_tune.load_export(done.export).segment_classes(image)
    by_adapter = medsam_tune.load_adapter(done.export).segment_classes(image)
    assert list(by_export) == list(by_adapter) == ["disc", "ring"]
    assert all(np.array_equal(by_export[name], by_adapter[name]) for name in by_export)

    assert main(["export", str(done.path), str(tmp_path / "merged"), "--to", "sam"]) == 2
    assert "mask 0 of this decoder is the background" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_weights_of_an_uninterrupted_one(two_classes):
    quick = ("--run.report=false", "--run.baselines=false", "--trainer.max_epochs=2")
    assert run(*quick, "--run.folder=whole") == 0
    assert run(*quick, f"--trainer.max_steps={STEPS_PER_EPOCH}", "--run.folder=cut") == 0
    assert run(*quick, "--run.folder=cut", "--ckpt_path=last") == 0
    whole, cut = (weights_of(only_run(name).checkpoints / "last.ckpt") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert "segmenter.backbone.mask_decoder.mask_tokens.weight" in whole
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_predicted_files_hold_the_value_of_each_class(finished_classes, tmp_path, monkeypatch):
    folder, done = finished_classes
    monkeypatch.chdir(folder)
    best = done.checkpoints / "best.ckpt"
    words = ["predict", "--config=tiny.yaml", f"--ckpt_path={best}", "--weights_only=true", f"--run.folder={tmp_path}"]
    assert main(words) == 0
    (written,) = tmp_path.glob(f"{RUNS}/predictions")
    predictor = medsam_tune.load_export(done.export)
    legend = json.loads((written / "labels.json").read_text())
    assert legend == {"255": {"name": "disc", "values": [255]}, "100": {"name": "ring", "values": [100]}}
    for path in written.glob("*.png"):
        masks = predictor.segment_classes(np.asarray(Image.open(folder / "images" / "images" / path.name)))
        assert np.array_equal(np.asarray(Image.open(path)), np.uint8(255) * masks["disc"] + np.uint8(100) * masks["ring"])


def test_labels_that_the_network_does_not_emit_are_refused_before_a_folder_is_made(two_classes):
    with pytest.raises(RecipeError, match=r"model\.segmenter\.classes: .* Make them and data\.source\.labels agree"):
        build("--model.segmenter.init_args.classes=[ring, disc]")
    with pytest.raises(RecipeError, match=r"data\.target: .* got per_label\. Set data\.target: per_class"):
        build("--data.target=per_label")
    assert not (two_classes / "runs").exists()


def test_a_checkpoint_of_another_number_of_classes_is_refused(finished_classes, monkeypatch, capsys):
    folder, done = finished_classes
    monkeypatch.chdir(folder)
    one = SEMANTIC.replace("classes: [disc, ring]", "classes: [disc]").replace(
        "{disc: [255], ring: [100]}", "{disc: [255, 100]}"
    )
    assert one.count("ring") == 0
    (folder / "one.yaml").write_text(one)
    words = ["--config", "one.yaml", "--ckpt_path", str(done.checkpoints / "best.ckpt"), "--run.folder", str(folder / "other")]
    assert main(["test", *words]) == 2
    said = capsys.readouterr().err
    assert "does not fit the recipe's model" in said
    assert "Traceback" not in said


def test_the_recipe_builds_the_network_it_names(two_classes):
    segmenter = build().model.segmenter
    assert isinstance(segmenter, SemanticSegmenter)
    assert segmenter.tuner.rank == 2


def test_a_run_with_one_box_an_object_is_reported_by_class(two_classes):
    (two_classes / "tiny.yaml").write_text(BOXES)
    assert run() == 0
    done = only_run()
    summary = json.loads(done.summary.read_text())
    assert list(summary["test"]["per_label"]) == ["disc", "ring"]
    assert {row["label"] for row in cases(done)} == {"disc", "ring"}
    # A ring is on every image but the first of its case, so it has a row fewer.
    slices = {label: sum(int(row["n_slices"]) for row in cases(done) if row["label"] == label) for label in ("disc", "ring")}
    assert slices["disc"] - slices["ring"] == TEST_CASES
    html = (done.report / "index.html").read_text()
    assert "<td>disc</td>" in html
    assert "<td>ring</td>" in html
