import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import medsam_tune
from medsam_tune.cli import main
from medsam_tune.data.split_file import read_splits
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.runs.build import override_words
from medsam_tune.runs.run import Run
from medsam_tune.training.run_place import run_place
from tests.training.tiny_runs import weights_of

QUICK = {"epochs": 1, "run.baselines": False, "run.report": False}


@pytest.fixture
def trained(finished, workplace):
    """A fresh workplace that holds a copy of the finished run, without what another test may have tested it on."""
    run = workplace / "runs" / run_place("images", "tiny") / finished[1].path.name
    shutil.copytree(finished[1].path, run, ignore=shutil.ignore_patterns("tests"))
    return run


def figures(folder):
    return json.loads((folder / "summary.json").read_text())["test"]


def test_a_run_trains_tests_exports_and_reloads_in_python(workplace):
    run = medsam_tune.Run.from_recipe("tiny.yaml", {"width": 4, "data.split.seed": 1, **QUICK}).fit().test().export()
    assert run.summary["test"] == figures(run.folder)
    assert run.config["model"]["prompt_encoder"]["init_args"]["width"] == 4
    predictor = run.predictor()
    expected = weights_of(run.checkpoint)
    for name, tensor in predictor.segmenter.named_parameters():
        assert f"segmenter.{name}" not in expected or torch.equal(tensor, expected[f"segmenter.{name}"])
    opened = Run.open(run.folder)
    assert (opened.splits, opened.summary, opened.checkpoint) == (run.splits, run.summary, run.checkpoint)
    # The recipe alone would draw another split and build another network.
    again = opened.test()
    assert again.summary["test"] == figures(run.folder)
    assert again.scored.parent == run.folder / "tests"
    assert read_splits(again.scored / "splits.json").test == run.splits.test


def test_an_opened_run_is_exported_as_it_was_at_its_end(trained):
    before = sorted(path.name for path in trained.iterdir())
    shutil.copytree(trained / "export", "there")
    shutil.rmtree(trained / "export")
    assert main(["export", str(trained)]) == 0
    there, here = (json.loads((folder / "export.json").read_text()) for folder in (Path("there"), trained / "export"))
    tensors = [load_file(folder / "trained.safetensors") for folder in (Path("there"), trained / "export")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert here["metrics"] == there["metrics"]
    assert here["model"] == there["model"]
    assert sorted(path.name for path in trained.iterdir()) == before


def test_a_resumed_run_goes_on_in_its_folder_with_its_own_recipe(trained, capsys):
    shutil.rmtree(trained / "tensorboard", ignore_errors=True)
    (trained.parents[3] / "tiny.yaml").unlink()
    assert main(["resume", str(trained), "--trainer.max_epochs=3", "--run.baselines=false"]) == 0
    assert "A tiny network on tiny images." in (trained / "report" / "index.html").read_text()
    assert figures(trained)["n_cases"] == 3
    assert yaml.safe_load((trained / "config.yaml").read_text())["trainer"]["max_epochs"] == 3
    assert torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 3
    assert "medsam-tune resume" in (trained / "resumes" / "001.yaml").read_text().splitlines()[0]


def test_commands_of_a_run_score_and_draw_without_naming_the_recipe(trained, workplace, capsys):
    (workplace / "tiny.yaml").unlink()
    assert main(["test", str(trained), "--run.baselines=false"]) == 0
    (scored,) = (trained / "tests").iterdir()
    assert figures(scored) == figures(trained)
    said = capsys.readouterr().out
    assert f"Run folder  {scored}" in said
    assert f"test Dice {figures(trained)['dice']['mean']:.4f}, test IoU" in said
    assert main(["validate", str(trained)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^val Dice 0\.\d{4}, val IoU 0\.\d{4}$", said, re.MULTILINE)
    assert "DataLoader 0" not in said
    shutil.copytree(workplace / "images" / "images", "new")
    (workplace / "new" / "broken.png").write_bytes(b"")
    for model in (trained, trained / "export"):
        out = workplace / model.name
        assert main(["predict", str(model), "new", "-o", str(out)]) == 1
        said = capsys.readouterr()
        assert said.err.count("error: ") == 1
        assert "broken.png: cannot be read" in said.err
        assert f"{len(list(out.glob('*.png')))} masks in {out}" in said.out
        predictor = medsam_tune.load_export(trained / "export")
        mask = predictor.segment(np.asarray(Image.open("new/c0_0.png")))
        assert np.array_equal(np.asarray(Image.open(out / "c0_0.png")) == 255, mask)


def test_all_of_another_cohort_is_tested_unless_a_case_of_it_trained_the_run(trained, workplace, capsys):
    for folder in ("images", "masks"):
        (workplace / "other" / folder).mkdir(parents=True)
        for path in (workplace / "images" / folder).glob("c[0-3]_*.png"):
            # A row less: other images, as another hospital's are.
            Image.fromarray(np.asarray(Image.open(path))[1:]).save(workplace / "other" / folder / f"site2-{path.name}")
    assert main(["test", str(trained), "data=other", "--run.baselines=false"]) == 0
    assert "all of its 4 cases are tested, none of which trained it" in capsys.readouterr().out
    (scored,) = (trained / "tests").iterdir()
    assert figures(scored)["n_cases"] == 4
    assert len((scored / "test_cases.csv").read_text().splitlines()) == 1 + 4
    known = json.loads((trained / "splits.json").read_text())["train"][0]
    for folder in ("images", "masks"):
        for path in (workplace / "images" / folder).glob(f"{known}_*.png"):
            shutil.copy(path, workplace / "other" / folder / path.name.replace(known, "renamed"))
    assert main(["test", str(trained), "data=other"]) == 2
    assert "1 of them trained the run or chose its weights (renamed)" in capsys.readouterr().err
    assert main(["validate", str(trained), "data=other"]) == 2


def test_an_export_of_earlier_weights_is_never_taken_for_the_runs(trained, workplace, capsys):
    later = (trained / "export" / "export.json").stat().st_mtime + 60
    os.utime(trained / "checkpoints" / "best.ckpt", (later, later))
    assert main(["predict", str(trained), "images", "-o", "out"]) == 2
    assert "export: is older than checkpoints/best.ckpt" in capsys.readouterr().err
    assert main(["export", str(trained)]) == 0
    os.utime(trained / "export" / "export.json", (later, later))
    assert main(["predict", str(trained), "images", "-o", "out"]) == 0


def test_a_prompt_generator_takes_no_boxes(trained, workplace, capsys):
    Path("boxes.csv").write_text("image,x1,y1,x2,y2\nc0_0,1,2,3,4\n")
    assert main(["predict", str(trained), "images", "-o", "out", "--boxes=boxes.csv"]) == 2
    assert "--boxes, --points: SamSegmenter takes no prompt" in capsys.readouterr().err
    assert not Path("out").exists()


def test_what_is_no_run_or_has_no_checkpoint_is_named(trained, workplace):
    with pytest.raises(RecipeError, match=r"images: is no run: it holds no config\.yaml"):
        Run.open("images")
    with pytest.raises(RecipeError, match=r"fit belongs to a run in training"):
        Run.open(trained).fit()
    (trained / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"best\.ckpt: training ended before a validation chose it"):
        Run.open(trained).test()


def test_overrides_are_written_as_the_command_line_takes_them():
    assert override_words({"rank": 8, "patient": None, "labels": {"a": [1]}, "root": Path("x"), "on": True}) == [
        "--rank=8", "--patient=null", '--labels={"a": [1]}', "--root=x", "--on=true",
    ]  # fmt: skip
    assert override_words(["--rank=8"]) == ["--rank=8"]
