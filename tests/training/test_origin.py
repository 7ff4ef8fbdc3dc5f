import json
import re
import shutil
from pathlib import Path

import pytest

from medsam_tune.cli import main
from medsam_tune.data.split_file import read_splits
from medsam_tune.errors import DataError, DataWarning, RecipeError
from medsam_tune.training.cli import MedsamCLI
from medsam_tune.training.origin import check_same_data
from medsam_tune.training.run_place import run_place
from tests.training.tiny_runs import RECIPE, build, only_run


def parse(stage, *words):
    """Run one stage without the command line's one-line errors."""
    return MedsamCLI([stage, "--config=tiny.yaml", *words], recipe_file=Path("tiny.yaml"), command="test", run=True)


@pytest.fixture
def trained(finished, workplace):
    """A fresh workplace that holds a copy of the finished run."""
    run = workplace / "runs" / run_place("images", "tiny") / finished[1].path.name
    shutil.copytree(finished[1].path, run)
    return run


def other_split():
    """Write a recipe whose own draw tests other cases."""
    Path("tiny.yaml").write_text(RECIPE.replace("split: {", "split: {seed: 1, "))


def best(run):
    return f"--ckpt_path={run}/checkpoints/best.ckpt"


def test_a_checkpoint_is_scored_on_its_own_runs_test_cases_whatever_the_recipe_draws(trained, capsys):
    other_split()
    drawn = build("--run.folder=x").datamodule.splits
    cli = parse("test", best(trained), "--run.folder=scored")
    assert cli.datamodule.splits.test == read_splits(trained / "splits.json").test != drawn.test
    assert only_run("scored").summary.is_file()
    figures = [json.loads((run / "summary.json").read_text())["test"]["dice"]["mean"] for run in (trained, cli.folder.path)]
    assert figures[0] == figures[1]
    assert read_splits(cli.folder.splits).test == cli.datamodule.splits.test


def test_a_split_that_the_command_line_asks_for_must_be_the_runs(trained):
    with pytest.raises(RecipeError, match=r"data\.split\.seed: the checkpoint belongs to .* \(seed 0\).*Leave seed out"):
        parse("test", best(trained), "--data.split.seed=1")


def test_cases_that_came_or_went_are_named_and_refused(trained, workplace):
    for folder in ("images", "masks"):
        shutil.copy(workplace / "images" / folder / "c0_0.png", workplace / "images" / folder / "c8_0.png")
        for path in (workplace / "images" / folder).glob("c3_*.png"):
            path.unlink()
    with pytest.raises(DataError, match=r"splits\.json: the data differ.*1 cases are gone \(c3\); 1 cases are new \(c8\)"):
        parse("test", best(trained))


def test_other_images_of_the_same_names_are_refused_until_the_split_is_named(trained, workplace):
    shutil.copy(workplace / "images" / "images" / "c0_0.png", workplace / "images" / "images" / "c1_0.png")
    with pytest.raises(DataError, match=r"1 cases have other files \(c1\).*--data\.split\.file=FILE"):
        parse("validate", best(trained))
    cli = parse("validate", best(trained), f"--data.split.file={trained}/splits.json")
    assert cli.datamodule.splits.val == read_splits(trained / "splits.json").val


def test_a_named_split_that_scores_trained_cases_is_said_aloud(trained, workplace):
    splits = json.loads((trained / "splits.json").read_text())
    splits["test"], splits["train"] = splits["train"], splits["test"]
    Path("turned.json").write_text(json.dumps(splits))
    with pytest.warns(DataWarning, match=r"4 of the 4 cases that are scored were trained on"):
        parse("test", best(trained), "--data.split.file=turned.json")
    assert read_splits(trained / "splits.json").test != tuple(splits["test"])


def test_data_that_a_recipe_reads_otherwise_than_the_training_are_said_aloud(trained, recwarn):
    parse("test", best(trained), "--run.folder=alike")
    parse("test", best(trained), "--run.folder=asked", "--data.source.mask_threshold=99")
    assert not [each for each in recwarn if issubclass(each.category, DataWarning)]
    Path("tiny.yaml").write_text(RECIPE.replace("case_pattern:", "mask_threshold: 99, case_pattern:"))
    said = (
        r"read its data otherwise \(data\.source\.mask_threshold was None, is 99\).*`medsam-tune test .*` reads them as it did"
    )
    with pytest.warns(DataWarning, match=said):
        parse("test", best(trained), "--run.folder=scored")


def test_a_checkpoint_outside_of_a_run_is_scored_on_a_named_split_only(trained, capsys):
    shutil.copy(trained / "checkpoints" / "best.ckpt", "alone.ckpt")
    assert main(["test", "--config=tiny.yaml", "--ckpt_path=alone.ckpt"]) == 2
    assert "nobody knows which cases it was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["test", "validate", "predict"])
def test_an_untrained_network_is_never_used_in_silence(workplace, stage, capsys):
    assert main([stage, "--config=tiny.yaml"]) == 2
    assert f"--ckpt_path: is not given, so `{stage}` would use a network that nobody trained" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_untrained_network_is_scored_where_it_is_asked_for(workplace):
    cli = parse("test", "--untuned")
    assert cli.folder.summary.is_file()
    assert "untuned" not in cli.folder.config.read_text()


def test_untuned_contradicts_a_checkpoint(trained):
    with pytest.raises(RecipeError, match=r"--untuned: contradicts --ckpt_path=best"):
        parse("test", "--untuned", "--ckpt_path=best")


def test_the_newest_run_is_taken_for_the_data_that_it_was_trained_on(trained, workplace, capsys):
    cli = parse("test", "--ckpt_path=best", "--run.baselines=false")
    assert cli.checkpoint.resolve() == trained / "checkpoints" / "best.ckpt"
    shutil.copytree(workplace / "images", workplace / "fundus")
    for stage in ("test", "predict"):
        assert main([stage, "--config=tiny.yaml", "--ckpt_path=best", "--data.root=fundus"]) == 2
        said = capsys.readouterr().err
        assert f"Runs of it on other data are in runs/{run_place('images', 'tiny')}." in said
    assert main(["test", "--config=tiny.yaml", "--ckpt_path=best", "--data.target=per_instance"]) == 2
    assert re.search(r"trained on other data \(data\.target was binary, is per_instance\).*best\.ckpt", capsys.readouterr().err)


def test_every_difference_of_the_data_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "data: {root: a, target: binary, source: {class_path: S, init_args: {axis: axial}}, batch_size: 3}"
    )
    same = {"root": "a", "target": "binary", "source": {"class_path": "S", "init_args": {"axis": "axial"}}, "batch_size": 9}
    check_same_data("last", tmp_path, same)
    other = {**same, "root": "b", "source": {"class_path": "S", "init_args": {"axis": "coronal"}}}
    with pytest.raises(RecipeError, match=r"data\.root was a, is b; data\.source\.axis was axial, is coronal"):
        check_same_data("last", tmp_path, other)
