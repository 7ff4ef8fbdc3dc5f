from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from medsam_tune.training.saving import BestCheckpoint, Patience, best_score

TRAINER = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))


def best_with(folder, score):
    best = BestCheckpoint(folder)
    best.best_model_score = best.current_score = best.kth_value = torch.tensor(score)
    best.best_model_path = best.kth_best_model_path = str(folder / "best.ckpt")
    best.best_k_models = {best.best_model_path: torch.tensor(score)}
    return best


def test_best_score_is_kept_when_the_run_folder_was_moved(tmp_path):
    state = best_with(tmp_path / "old", 0.75).state_dict()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "best.ckpt").touch()
    moved = BestCheckpoint(tmp_path / "new")
    moved.load_state_dict(state)
    assert moved.best_model_score == 0.75
    assert not moved.check_monitor_top_k(TRAINER, torch.tensor(0.5))
    assert moved.check_monitor_top_k(TRAINER, torch.tensor(0.875))
    assert moved.kth_best_model_path == str(tmp_path / "new" / "best.ckpt")


def test_best_score_of_another_folder_does_not_count_where_its_weights_are_not(tmp_path):
    state = best_with(tmp_path / "old", 0.75).state_dict()
    elsewhere = BestCheckpoint(tmp_path / "new")
    with pytest.warns(UserWarning, match="dirpath has changed"):
        elsewhere.load_state_dict(state)
    assert elsewhere.check_monitor_top_k(TRAINER, torch.tensor(0.5))


def test_newest_weights_are_best_while_no_validation_case_shows_an_object(tmp_path, capsys):
    best = best_with(tmp_path, float("-inf"))
    assert best.check_monitor_top_k(TRAINER, torch.tensor(float("nan")))
    assert "no validation case shows an object" in capsys.readouterr().out
    best = best_with(tmp_path, 0.25)
    assert not best.check_monitor_top_k(TRAINER, torch.tensor(float("nan")))


def test_best_figure_is_that_of_best_ckpt_whatever_checkpoints_a_recipe_keeps_beside_it(tmp_path):
    other = ModelCheckpoint(tmp_path, monitor="train/loss")
    other.best_model_score = torch.tensor(9.0)
    assert best_score(SimpleNamespace(checkpoint_callbacks=[other, best_with(tmp_path, 0.75)])) == 0.75
    assert best_score(SimpleNamespace(checkpoint_callbacks=[other, BestCheckpoint(tmp_path)])) is None


def test_patience_of_today_counts_and_a_finished_run_stays_finished():
    patience = Patience(5)
    patience.load_state_dict({**Patience(2).state_dict(), "wait_count": 2})
    assert (patience.patience, patience.wait_count) == (5, 2)
    trainer = SimpleNamespace(should_stop=False)
    patience.on_train_start(trainer, None)
    assert not trainer.should_stop
    patience.wait_count = 5
    patience.on_train_start(trainer, None)
    assert trainer.should_stop
