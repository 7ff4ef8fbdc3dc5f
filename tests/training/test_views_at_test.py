"""A run whose test averages flipped views or drops specks: the training is the same, the test is not, the export knows it."""

import json

import torch

from medsam_tune import load_export
from medsam_tune.cli import main
from tests.training.tiny_runs import only_run, run, weights_of

ONCE = ("--run.baselines=false", "--run.report=false")


def test_flips_change_what_is_tested_and_not_what_is_trained(workplace):
    assert run(*ONCE, "--run.folder=one") == 0
    assert run(*ONCE, "--run.folder=flips", "--model.views_at_test=flips") == 0
    one, flips = only_run("one"), only_run("flips")
    weights = [weights_of(folder.checkpoints / "best.ckpt") for folder in (one, flips)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    tested = [json.loads(folder.summary.read_text())["test"] for folder in (one, flips)]
    assert tested[0]["dice"]["mean"] != tested[1]["dice"]["mean"]
    # The other run's weights, tested with the key alone.
    assert main(["test", str(one.path), "--model.views_at_test=flips", *ONCE]) == 0
    (again,) = one.path.glob("tests/*/summary.json")
    assert json.loads(again.read_text())["test"] == tested[1]
    assert load_export(flips.export).segmenter.views_at_test == "flips"
    assert load_export(one.export).segmenter.views_at_test == "one"


def test_specks_go_from_what_is_tested(workplace):
    assert run(*ONCE, "--trainer.max_epochs=1", "--model.smallest_part=0.01") == 0
    folder = only_run()
    assert load_export(folder.export).segmenter.smallest_part == 0.01
    # Nothing but the largest island of each slice.
    assert main(["test", str(folder.path), "--model.smallest_part=1", *ONCE]) == 0
    (again,) = folder.path.glob("tests/*/summary.json")
    one, other = (json.loads(path.read_text())["test"]["dice"]["mean"] for path in (again, folder.summary))
    assert one != other


def test_a_share_that_is_none_is_refused(workplace, capsys):
    assert run("--model.smallest_part=1.5") == 2
    assert "model.smallest_part" in capsys.readouterr().err
