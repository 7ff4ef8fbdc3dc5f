"""A training whose views are drawn anew reads all of them from a cache that was filled before, and goes on exactly."""

import pytest
import torch

from medsam_tune.data.view_refresh import shown_views
from tests.training.tiny_runs import build, only_run, run, weights_of

WORDS = (
    "--data.augmentation.horizontal_flip=0.5",
    "--data.augmentation.degrees=20",
    "--data.views=2",
    "--data.views_refresh=0.5",
    "--run.baselines=false",
    "--run.report=false",
)


def test_the_cache_holds_what_all_epochs_show(workplace):
    data = build(*WORDS, "--trainer.max_epochs=8").datamodule
    names, items = data.source.image_ids(), data.cache_items(["train"])
    assert data.epochs == 8
    expected = {(i, v) for i in data.dataset("train").indices for v in shown_views(0, names[i], 8, n_views=2, share=0.5)}
    assert set(items) == expected
    assert len(items) > 2 * len(data.dataset("train"))
    assert build(*WORDS[:3], "--trainer.max_epochs=8").datamodule.cache_items(["train"]) == [
        (i, v) for i in sorted(data.dataset("train").indices) for v in range(2)
    ]


def test_a_training_that_only_time_ends_is_refused(workplace, capsys):
    assert run(*WORDS, "--trainer.max_epochs=-1", "--trainer.max_time=00:00:01:00") == 2
    assert "data.views_refresh: the views of all epochs are encoded before the first" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_weights_of_one_that_was_never_stopped(workplace):
    assert run(*WORDS, "--trainer.max_epochs=4", "--run.folder=whole") == 0
    assert run(*WORDS, "--trainer.max_epochs=2", "--run.folder=parts") == 0
    assert run(*WORDS, "--trainer.max_epochs=4", "--run.folder=parts", "--ckpt_path=last") == 0
    expected, found = (weights_of(only_run(name).last_checkpoint) for name in ("whole", "parts"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert run(*WORDS[:3], *WORDS[4:], "--trainer.max_epochs=4", "--run.folder=fixed") == 0
    fixed = weights_of(only_run("fixed").last_checkpoint)
    assert not all(torch.equal(fixed[name], expected[name]) for name in expected)
