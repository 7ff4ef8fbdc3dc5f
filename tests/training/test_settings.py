import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.training.settings import RunSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_every_n_steps": 0}, "run.save_every_n_steps: must be at least 1, got 0"),
        ({"folder": " "}, "run.folder: is empty, so runs would lie in the current folder"),
        ({"early_stopping_patience": -1}, "run.early_stopping_patience: must be at least 1 or null, got -1"),
    ],
)
def test_setting_out_of_range_is_refused_by_its_key(settings, message):
    with pytest.raises(RecipeError, match=message):
        RunSettings(**settings)


def test_smallest_settings_are_accepted():
    settings = RunSettings(save_every_n_steps=1, early_stopping_patience=1)
    assert (settings.save_every_n_steps, settings.early_stopping_patience) == (1, 1)
