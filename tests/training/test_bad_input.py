"""Whatever is wrong with a recipe or its data is one line on stderr and status 2, and leaves no run folder."""

import errno
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.cli import main
from medsam_tune.training import checkpoint
from medsam_tune.training.module import TuningModule
from tests.training.tiny_runs import RECIPE, only_run, run

UNET = """\
model:
  segmenter: {class_path: medsam_tune.segmenters.task.TaskSegmenter, init_args: {side: 32}}
data:
  root: images
  source: {class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""


@pytest.fixture
def refused(workplace, capsys):
    """Return a function that runs tiny.yaml, expects a refusal, and returns its one line."""

    def refuse(*overrides, recipe="tiny.yaml"):
        assert main(["run", recipe, *overrides]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert not list(Path("runs").glob("*")), "a run folder was left behind"
        return line.removeprefix("error: ")

    return refuse


def save(pixels, path):
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--trainer.max_epoch=3", "trainer.max_epoch: no such key. Did you mean trainer.max_epochs?"),
        (
            "--trainer.max_epochs=0",
            "trainer.max_epochs: is 0, so nothing would be trained. Raise it, or use `medsam-tune test`.",
        ),
        ("--trainer.limit_train_batches=0", "trainer.limit_train_batches: is 0, so nothing would be trained."),
        ("--trainer.limit_val_batches=0", "trainer.limit_val_batches: is 0, so nothing would choose the best weights."),
        ("--trainer.limit_test_batches=0", "trainer.limit_test_batches: is 0, so nothing would test."),
        ("--trainer.fast_dev_run=true", "trainer.fast_dev_run: writes no checkpoint, so there is nothing to test and export."),
        ("--modle.objects_per_decode=3", "modle.objects_per_decode: no such key, and no key of this recipe ends so. Did"),
        ("--data.split.fraction=0.1", "data.split.fraction: no such key. Did you mean data.split.val_fraction?"),
        (
            "--model.prompt_encoder.widht=3",
            "model.prompt_encoder.widht: EmbeddingPromptGenerator takes no widht. Did you mean width?",
        ),
        (
            "--model.prompt_encoder.rank=3",
            "model.prompt_encoder.rank: EmbeddingPromptGenerator takes no rank. It takes: width, dilations, norm.",
        ),
        (
            "--data.source.case_patern=x",
            "data.source.case_patern: ImageFolder takes no case_patern. Did you mean case_pattern?",
        ),
        ("--data.batch_size=two", "data.batch_size: expected int, got two."),
        ("--data.split.fold=a", "data.split.fold: expected int or null, got a."),
        ("--model.prompt_encoder.width=wide", "model.prompt_encoder.width: expected int, got wide."),
        ("--model.schedule=cosin", "model.schedule: expected one of 'constant', 'cosine', 'poly', got cosin."),
        (
            "--model.prompt_encoder=EmbeddingPromtGenerator",
            "model.prompt_encoder: there is no class EmbeddingPromtGenerator. "
            "Did you mean medsam_tune.prompt_encoders.EmbeddingPromptGenerator?",
        ),
        (
            "--model.prompts=nowhere.Mine",
            "model.prompts: there is no class nowhere.Mine. medsam_tune.prompts has BoxPrompt, ",
        ),
        (
            "--model.backbone=medsam_tune.prompts.BoxPrompt",
            "model.backbone: medsam_tune.prompts.BoxPrompt is no Backbone. medsam_tune.backbone has SamBackbone.",
        ),
        ("--model.optimizer=torch.optim.AdamV", "model.optimizer: there is no class torch.optim.AdamV."),
        ("--model.optimizer.lr=0.1", "model.optimizer: has no class_path to which this option could belong."),
        ("--trainer.logger=Nope", "trainer.logger: there is no class Nope. Give its whole dotted path."),
    ],
)
def test_key_or_value_that_does_not_parse_is_named_with_what_was_likely_meant(refused, override, said):
    assert refused(override).startswith(said)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--data.root=nowhere"], "nowhere: no such folder. Set data.root"),
        (["--data.root=~nobody77/x"], "data.root: ~nobody77/x: no home folder is known for it."),
        (["--trainer.precision=bf16-true"], "trainer.precision: bf16-true casts the whole network"),
        (["--seed_everything=-1"], "seed_everything: expected a number from 0 to 4294967295, got -1."),
        (
            ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=-1"],
            "model.optimizer.lr: expected a number of at least 0.0, got -1.0.",
        ),
        (["--data.source.images=scans"], "images/scans: no such folder; images holds the folders ['images', 'masks']"),
        (["--model.backbone.weights=sam_vit_x"], "model.backbone.weights: 'sam_vit_x' is unknown. Known: lite_medsam,"),
        (["--model.backbone.checkpoint=mine.pth"], "mine.pth: there is no such file."),
        (["--model.backbone.trainable=[encoder]"], "model.backbone.trainable: 'encoder' names no parameter. The parts:"),
        (
            ["--model.backbone.trainable=[image_encoder]"],
            "data.cache_embeddings: true cannot be combined with model.backbone.trainable",
        ),
        (
            ["--data.target=per_label"],
            "data.target: EmbeddingPromptGenerator gives one mask per image, so labels must be joined; got per_label.",
        ),
        (
            ["--model.prompts=BoxPrompt"],
            "model.prompts: EmbeddingPromptGenerator makes the prompt from the image and reads none.",
        ),
        (["--model.loss=SoftmaxDiceLoss"], "model.loss: SoftmaxDiceLoss compares classes, but this segmenter predicts each"),
        (
            ["--model.loss=IouHeadLoss", "--model.loss.mask_loss=SoftmaxDiceLoss"],
            "model.loss: SoftmaxDiceLoss compares classes, but this segmenter predicts each",
        ),
        (
            [
                "--model.prompt_encoder=null",
                "--model.prompts=CombinedPrompt",
                "--model.prompts.samplers=[{class_path: PointPrompt}, {class_path: PointPrompt}]",
            ],
            "model.prompts: CombinedPrompt expects samplers of different kinds, got ['points', 'points'].",
        ),
        (
            [
                "--model.prompt_encoder=null",
                "--model.prompts=OneOfPrompt",
                "--model.prompts.samplers=[{class_path: PointPrompt}, {class_path: PointPrompt, init_args: {positives: 2}}]",
            ],
            "model.prompts.init_args.samplers: expected the same number of points, got [1, 2].",
        ),
        (
            [
                "--model.prompt_encoder=null",
                "--model.prompts=OneOfPrompt",
                "--model.prompts.samplers=[{class_path: BoxPrompt}, {class_path: PointPrompt, init_args: {positives: 2}}]",
            ],
            "model.prompts.init_args.samplers: expected the same number of tokens, got boxes: 2, points: 3.",
        ),
        (
            ["--model.segmenter=medsam_tune.segmenters.task.TaskSegmenter"],
            "model.backbone: TaskSegmenter is a network of its own and has no place for it. Remove the key.",
        ),
        (
            [
                "--model.schedule=cosine",
                "--model.scheduler=torch.optim.lr_scheduler.StepLR",
                "--model.scheduler.step_size=1",
            ],
            "model.scheduler: excludes model.schedule",
        ),
        (["--model.prompt_encoder=null"], "model: nothing is trainable. Name parts in"),
        (["--run.save_every_n_steps=0"], "run.save_every_n_steps: must be at least 1, got 0."),
        (["--run.early_stopping_patience=0"], "run.early_stopping_patience: must be at least 1 or null, got 0."),
        (["--data.views=3"], "data.views: 3 views need data.augmentation"),
        (["--data.split.test_fraction=1.5"], "data.split.test_fraction: expected a fraction between 0 and 1, got 1.5."),
        (["--data.split.folds=5"], "data.split.folds and data.split.fold belong together"),
        (["--data.split.file=none.json"], "none.json: cannot be read (No such file or directory)."),
        (
            ["--model.optimizer=torch.optim.AdamW", "--model.optimizer.betas=[2,3]"],
            "model.optimizer: Invalid beta parameter at index 0: 2.0. Correct its init_args.",
        ),
        (
            ["--model.scheduler=torch.optim.lr_scheduler.OneCycleLR", "--model.scheduler.max_lr=0.01"],
            "model.scheduler: You must define either total_steps OR (epochs AND steps_per_epoch).",
        ),
        (
            ["--model.schedule=cosine", "--trainer.max_epochs=null", "--trainer.max_time=00:01:00:00"],
            "model.schedule: cosine needs trainer.max_epochs or trainer.max_steps, got only a time limit.",
        ),
        (["--trainer.strategy=dpp"], "trainer.strategy: You selected an invalid strategy name: `strategy='dpp'`"),
        (["--trainer.devices=none"], "trainer.devices: `devices` selected with `CPUAccelerator` should be an int > 0."),
        (["--ckpt_path=none.ckpt"], "none.ckpt: no such checkpoint. Give the path"),
        (["--ckpt_path=last"], "--ckpt_path=last: no run under runs/own-"),
    ],
)
def test_recipe_that_cannot_be_is_refused_before_any_work(refused, overrides, said):
    assert refused(*overrides).removeprefix(f"{Path.cwd()}/").startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [\n", "bad.yaml: line 2: is no YAML (expected the node content"),
        (RECIPE.replace("max_epochs", "max_epoch"), "trainer.max_epoch: no such key. Did you mean trainer.max_epochs?"),
        (
            RECIPE.replace("width: 8", "width: 8, height: 3"),
            "model.prompt_encoder.height: EmbeddingPromptGenerator takes no height.",
        ),
        (
            RECIPE.replace("  prompt_encoder:", "  promt_encoder:"),
            "model.promt_encoder: no such key. Did you mean model.prompt_encoder?",
        ),
        (UNET, "data.cache_embeddings: true cannot be combined with model.segmenter: this segmenter has no frozen encoder"),
        (
            UNET.replace("data:", "  loss: {class_path: medsam_tune.losses.IouHeadLoss}\ndata:\n  cache_embeddings: false"),
            "model.loss: IouHeadLoss needs a network that predicts an IoU.",
        ),
    ],
    ids=["syntax", "key", "nested key", "section", "cache under a task network", "loss of another network"],
)
def test_fault_in_the_recipe_file_is_named(refused, text, said):
    Path("bad.yaml").write_text(text)
    assert refused(recipe="bad.yaml").startswith(said)


def test_required_key_is_asked_for(refused):
    Path("bad.yaml").write_text(RECIPE.replace("  root: images\n", ""))
    assert "data.root" in refused(recipe="bad.yaml")


def test_missing_recipe_is_named(refused):
    assert refused(recipe="nope.yaml").startswith("nope.yaml: no such recipe.")


def remove(name):
    return lambda root: (root / name).unlink()


def truncate(name):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:150])


def keep_two_cases(root):
    for path in root.glob("*/*"):
        if not path.name.startswith(("c0", "c1")):
            path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("masks/c0_0.png"), "images: 20 images and 19 masks do not pair by name; 1 images without a mask: c0_0."),
        (remove("images/c3_1.png"), "images: 19 images and 20 masks do not pair by name; 1 masks without an image: c3_1."),
        (
            lambda root: save(np.zeros((8, 9)), root / "masks/c2_1.png"),
            "images/masks/c2_1.png: mask is 8 x 9 (H x W), its image is 16 x 20.",
        ),
        (
            lambda root: save(np.arange(320).reshape(16, 20) % 3, root / "masks/c0_0.png"),
            "images/masks/c0_0.png: mask holds the values [0, 1, 2], expected 0 and one other.",
        ),
        (
            lambda root: [save(np.zeros((16, 20)), mask) for mask in root.glob("masks/*")],
            "images: no object in any training image (11 looked at).",
        ),
        (
            lambda root: [save(np.zeros((16, 20)), mask) for mask in root.glob("masks/c7_*")],
            "images: no object in any validation image (cases: c7), so no epoch could be called the best. Choose another data",
        ),
        (
            lambda root: (root / "images/c0_0.png").write_text("hello"),
            "images/images/c0_0.png: cannot be read (cannot identify",
        ),
        (keep_two_cases, "2 patients (c0, c1) are too few for train, val and test"),
        # The header is sound, so these two show only when the image is read for the cache.
        (truncate("images/c0_0.png"), "images/images/c0_0.png: cannot be read (image file is truncated"),
        (truncate("images/c6_2.png"), "images/images/c6_2.png: cannot be read (image file is truncated"),
    ],
    ids=[
        "no mask",
        "no image",
        "size",
        "values",
        "empty",
        "empty val",
        "no image file",
        "few cases",
        "truncated",
        "later truncated",
    ],
)
def test_faulty_images_are_named(refused, workplace, damage, said):
    damage(workplace / "images")
    assert refused().startswith(said)


def test_nan_in_a_volume_is_named(refused, workplace):
    for folder in ("images", "labels"):
        (workplace / "volumes" / folder).mkdir(parents=True)
        for case in range(6):
            values = np.zeros((12, 12, 4), np.float32)
            values[3:8, 3:8] = 1
            if (folder, case) == ("images", 4):
                values[0, 0, 0] = np.nan
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), workplace / "volumes" / folder / f"v{case}.nii.gz")
    said = refused("--data.source=medsam_tune.data.NiftiVolumes", "--data.source.axis=axial", "--data.root=volumes")
    assert said.startswith("volumes/images/v4.nii.gz: 1 of 576 values are NaN or infinite. Repair or remove the file")


def test_recipe_that_is_no_utf8_or_has_a_section_too_many_is_named(refused):
    Path("latin.yaml").write_bytes("# für Darmbilder\n".encode("latin-1") + RECIPE.encode())
    assert refused(recipe="latin.yaml") == "latin.yaml: line 1: is no text in UTF-8. Save the file as UTF-8."
    Path("typo.yaml").write_text(RECIPE + "dta: {}\n")
    assert refused(recipe="typo.yaml").startswith("typo.yaml: dta: no such section. A recipe has data, model,")


def test_full_disk_while_caching_loses_nothing(refused, workplace, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = refused()
    assert "could not be written (No space left on device, " in said
    assert "MEDSAM_TUNE_CACHE" in said
    assert not list(Path("cache").rglob(".partial*"))
    assert run("--run.baselines=false", "--run.report=false") == 0


def test_full_disk_while_saving_keeps_the_last_checkpoint_and_says_how_to_go_on(workplace, monkeypatch, capsys):
    original, writes = torch.save, []

    def save_twice(data, file):
        writes.append(1)
        if len(writes) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(data, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_twice)
        assert run("--run.save_every_n_steps=3") == 2
    said = capsys.readouterr()
    assert " MB free). Free space there; the previous checkpoint is intact." in said.err
    assert "medsam-tune run tiny.yaml --run.save_every_n_steps=3 --ckpt_path=last" in said.out
    assert checkpoint.read_checkpoint(only_run().last_checkpoint)["global_step"] > 0


def test_loss_that_is_not_finite_names_step_and_images(workplace, monkeypatch, capsys):
    monkeypatch.setattr(TuningModule, "trainable_parameters", nan_parameters)
    assert run() == 2
    assert "error: loss is nan at step 0 on images c" in capsys.readouterr().err


def nan_parameters(self):
    parameters = [p for p in self.segmenter.parameters() if p.requires_grad]
    with torch.no_grad():
        parameters[0].fill_(torch.nan)
    return parameters


def test_corrupt_checkpoint_is_named(workplace, capsys):
    Path("broken.ckpt").write_bytes(b"no checkpoint")
    assert run("--ckpt_path=broken.ckpt") == 2
    assert "broken.ckpt: cannot be read as weights" in capsys.readouterr().err


def test_checkpoint_of_another_network_is_refused_by_the_keys_that_differ(finished, workplace, capsys):
    stored = finished[1].last_checkpoint
    (workplace / "last.ckpt").write_bytes(stored.read_bytes())
    assert run("--ckpt_path=last.ckpt", "--model.prompt_encoder.width=16") == 2
    assert "of another shape (segmenter.prompt_encoder.trunk" in capsys.readouterr().err
    assert main(["test", "--config=tiny.yaml", "--ckpt_path=last.ckpt", "--model.backbone.seed=1"]) == 2
    assert "was trained on base weights random_tiny" in capsys.readouterr().err
    assert not (workplace / "cache").exists(), "nothing is computed for a checkpoint that does not fit"
    assert not (workplace / "runs").exists()


def test_building_the_cache_leaves_no_run_folder(workplace, capsys):
    assert main(["cache", "build", "tiny.yaml"]) == 0
    assert "20 embeddings are in the cache" in capsys.readouterr().out
    assert not Path("runs").exists() or not list(Path("runs").glob("*"))
