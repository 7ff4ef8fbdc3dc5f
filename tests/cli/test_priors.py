import re

import pytest

from medsam_tune.cli import main
from tests.training.tiny_runs import forget_run, write_workplace

WORDS = [
    "--data.priors.weights=random_tiny",
    "data.priors.points_per_side=2",
    "--data.priors.pred_iou_thresh",
    "0",
    "--data.priors.stability_score_thresh=0",
    "--data.cache_embeddings=false",
]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    write_workplace(tmp_path)
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    forget_run()
    yield tmp_path
    forget_run()


def test_priors_of_train_val_and_test_are_made_once_and_counted(workplace, capsys):
    assert main(["priors", "tiny.yaml", *WORDS]) == 0
    counted, made = capsys.readouterr().out.splitlines()[-2:]
    assert re.fullmatch(r"20 images, \d+\.\d masks an image, \d+ images without a mask", counted)
    assert re.fullmatch(rf"20 made in \d+\.\d s; kept in {workplace}/cache/priors/\S+", made)
    assert main(["priors", "tiny.yaml", *WORDS]) == 0
    again = capsys.readouterr().out.splitlines()[-2:]
    assert again[0] == counted
    assert again[1].startswith("0 made in ")
    assert not (workplace / "runs").exists() or not list((workplace / "runs").glob("*"))


def test_recipe_without_priors_is_one_line(workplace, capsys):
    assert main(["priors", "tiny.yaml"]) == 2
    assert "error: data.priors: is null in this recipe, so there is nothing to make." in capsys.readouterr().err


def test_setting_that_cannot_be_is_refused_by_its_key(workplace, capsys):
    assert main(["priors", "tiny.yaml", *WORDS, "--data.priors.points_per_side=0"]) == 2
    assert "data.priors.points_per_side: must be at least 1, got 0" in capsys.readouterr().err
