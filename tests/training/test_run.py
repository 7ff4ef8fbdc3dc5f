import csv
import importlib.metadata
import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import medsam_tune
from medsam_tune.data.dataset import collate
from medsam_tune.evaluation.predict import predict_masks
from medsam_tune.runs.closing import closing
from medsam_tune.training.checkpoint import read_checkpoint
from medsam_tune.training.places import split_places
from medsam_tune.training.test_results import versions
from tests.training.tiny_runs import STEPS_PER_EPOCH, TEST_CASES, TEST_SLICES, build, only_run, run


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def in_workplace(finished, monkeypatch):
    """Return the finished run with its workplace as current folder."""
    folder, done = finished
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    return done


def test_run_leaves_exactly_the_documented_folder(finished):
    found = files(finished[1].path)
    tensorboard = {name for name in found if name.startswith("tensorboard/")}
    assert found - tensorboard == {
        "config.yaml",
        "local.yaml",
        "splits.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.csv",
        "epochs.csv",
        "summary.json",
        "test_cases.csv",
        "test_certainty.csv",
        "export/export.json",
        "export/trained.safetensors",
        "export/README.md",
        "report/index.html",
    }
    assert any("tfevents" in name for name in tensorboard)


def test_config_is_the_resolved_recipe_and_parses_back_to_itself(in_workplace, tmp_path):
    again = build(f"--run.folder={tmp_path}", recipe=in_workplace.config)
    resolved = yaml.safe_load(in_workplace.config.read_text())
    shared, _ = split_places(yaml.safe_load(again.dump().replace(f"folder: {tmp_path}", "folder: runs")))
    assert shared == resolved
    assert resolved["model"]["prompt_encoder"]["init_args"] == {"width": 8, "dilations": [1], "norm": "group"}
    assert resolved["trainer"]["max_epochs"] == 2
    assert resolved["run"]["save_every_n_steps"] == 50


def test_splits_hold_every_case_once(finished):
    splits = json.loads(finished[1].splits.read_text())
    assert sorted(splits["train"] + splits["val"] + splits["test"]) == [f"c{case}" for case in range(8)]


def test_summary_has_the_documented_keys_and_agrees_with_the_case_table(finished):
    summary = json.loads(finished[1].summary.read_text())
    rows = table(finished[1].test_cases)
    dice = [float(row["dice"]) for row in rows]
    assert summary["test"]["n_cases"] == len(rows) == TEST_CASES
    assert sum(int(row["n_slices"]) for row in rows) == TEST_SLICES
    assert summary["test"]["dice"]["mean"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert summary["test"]["dice"]["std"] == pytest.approx(np.std(dice, ddof=1), abs=1e-6)
    assert set(summary["test"]["dice"]) == set(summary["test"]["iou"]) == {"mean", "std", "ci95", "ci95_method"}
    assert list(summary["baselines"]) == ["no_prompt", "whole_image_box", "oracle_box"]
    assert next(iter(summary)) == "verdict"
    shy = {name: summary["baselines"][name]["dice"]["mean"] for name in ("no_prompt", "whole_image_box")}
    assert summary["verdict"]["against"] == max(shy, key=shy.get)
    gain = summary["test"]["dice"]["mean"] - summary["baselines"]["no_prompt"]["dice"]["mean"]
    assert summary["baselines"]["no_prompt"]["tuned_minus_this"]["mean"] == pytest.approx(gain, abs=1e-6)
    assert summary["steps"] == 2 * STEPS_PER_EPOCH
    best = torch.load(finished[1].checkpoints / "best.ckpt", weights_only=True)
    assert summary["tested_step"] == best["global_step"]
    assert set(summary["seconds"]) == {"cache", "fit", "test", "baselines", "calibration", "export", "report"}
    assert 0 <= summary["calibration"]["ece"]["mean"] <= 1
    assert summary["calibration"]["uncertainty"]["kind"] == "one_answer"
    assert summary["calibration"]["untuned"] is not None
    assert 0.05 < summary["peak_memory_gb"] < 50


def test_summary_counts_the_parameters_of_the_network(finished):
    counts = json.loads(finished[1].summary.read_text())["parameters"]
    segmenter = medsam_tune.load_export(finished[1].export).segmenter
    assert counts["total"] == sum(p.numel() for p in segmenter.parameters())
    assert counts["trained"] == sum(p.numel() for p in segmenter.prompt_encoder.parameters())


def test_metrics_hold_a_loss_and_a_validation_for_every_epoch(finished):
    rows = table(finished[1].metrics_csv)
    for column in ("train/loss", "val/dice", "val/iou"):
        assert [row["epoch"] for row in rows if row[column]] == ["0", "1"], column


def test_report_needs_nothing_from_outside(finished):
    html = (finished[1].report / "index.html").read_text()
    assert not re.search(r"""src\s*=\s*["'](?!data:)""", html)
    links = set(re.findall(r"""href\s*=\s*["'](?!data:|#)([^"']*)""", html))
    assert links
    assert all((finished[1].report / link).resolve().is_relative_to(finished[1].path.resolve()) for link in links)
    assert all((finished[1].report / link).exists() for link in links)
    assert not re.search(r"""url\(\s*["']?(?!data:|#)|@import|<script[^>]+src""", html)
    assert html.count('<figure class="panel"') == TEST_SLICES + 6  # and training images
    assert "load_export" in html


@pytest.mark.parametrize("verdict", ["better", "not shown to be better", "worse", "not compared"])
def test_what_the_console_says_begins_with_the_verdict(finished, verdict):
    summary = json.loads(finished[1].summary.read_text())
    summary["verdict"] = {"verdict": verdict, "text": f"{verdict.capitalize()} than the untuned network"}
    said = closing(summary, finished[1].path, None).splitlines()
    assert said[1] == summary["verdict"]["text"]
    assert said[2].startswith("Test Dice 0.")
    assert said[2].endswith(" over 3 cases")


def test_summary_console_and_report_begin_with_the_same_verdict(finished):
    summary, page = json.loads(finished[1].summary.read_text()), (finished[1].report / "index.html").read_text()
    text = summary["verdict"]["text"]
    assert closing(summary, finished[1].path, None).splitlines()[1] == text
    body = re.sub(r"<[^>]+>", " ", page.partition("<body")[2])
    assert 0 < body.index(text) < body.index("test Dice")
    assert summary["verdict"]["difference"]["n_cases"] == TEST_CASES


def test_run_without_baselines_says_that_it_was_not_compared(workplace, capsys):
    assert run("--trainer.max_epochs=1", "--run.baselines=false", "--run.report=false") == 0
    text = "Not compared with an untuned network: run.baselines is false."
    assert json.loads(only_run().summary.read_text())["verdict"]["text"] == text
    assert f"\n{text}\nTest Dice" in capsys.readouterr().out


def test_export_reloads_in_one_line_and_segments_as_the_module_did(in_workplace, tmp_path):
    predictor = medsam_tune.load_export(in_workplace.export)
    cli = build(f"--run.folder={tmp_path}", "--run.report=false")
    cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=str(in_workplace.checkpoints / "best.ckpt"), verbose=False)
    cli.model.eval()
    for item in cli.datamodule.dataset("test"):
        batch = collate([item])
        with torch.no_grad():
            masks = predict_masks(cli.model(batch), batch, cli.model.side_px)[0]
        image = np.asarray(Image.open(f"images/images/{batch.image_ids[0]}.png"))
        assert np.array_equal(predictor.segment(image), masks[0].numpy())
    assert masks.any()


def test_exported_weights_are_those_of_the_best_checkpoint(finished):
    from safetensors.torch import load_file

    exported = load_file(finished[1].export / "trained.safetensors")
    best = read_checkpoint(finished[1].checkpoints / "best.ckpt")["state_dict"]
    assert {f"segmenter.{name}" for name in exported} == set(best)
    assert all(torch.equal(best[f"segmenter.{name}"], tensor) for name, tensor in exported.items())


def test_same_seed_repeats_the_figures_exactly_and_skips_what_is_switched_off(finished, workplace):
    assert run("--run.report=false", "--run.baselines=false") == 0
    again = only_run()
    rows, before = (list(csv.DictReader(each.test_cases.read_text().splitlines())) for each in (again, finished[1]))
    # Baselines alone say what the untuned network scores.
    assert all(float(row.pop("untuned_dice")) >= 0 for row in before)
    assert rows == [{**row, "untuned_dice": ""} for row in before]
    assert not again.report.exists()
    assert json.loads(again.summary.read_text())["baselines"] is None


def test_untuned_network_is_scored_on_the_images_that_were_tested_and_no_others(workplace):
    words = ("--trainer.max_epochs=1", "--run.report=false", "--data.eval_batch_size=1")
    assert run(*words, "--trainer.limit_test_batches=1") == 0
    summary = json.loads(only_run().summary.read_text())
    assert summary["test"]["n_cases"] == summary["test"]["slices"]["n"] == 1
    for found in summary["baselines"].values():
        assert (found["n_cases"], found["slices"]["n"], found["tuned_minus_this"]["n_cases"]) == (1, 1, 1)


def test_versions_are_known_of_a_checkout_that_is_installed_nowhere(monkeypatch):
    known = importlib.metadata.version

    def version(name):
        if name == "medsam-tune":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions()["medsam-tune"] == medsam_tune.__version__
    assert versions()["torch"] == known("torch")
