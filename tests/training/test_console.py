import logging
import warnings

from medsam_tune.backbone import engines
from medsam_tune.errors import DataWarning
from medsam_tune.training.console import quieten
from tests.training.tiny_runs import run


def test_no_line_of_a_run_reads_as_if_pickles_were_loaded(workplace, caplog):
    quieten()
    with caplog.at_level(logging.INFO):
        assert run("--run.baselines=false", "--run.report=false", "--trainer.max_epochs=1") == 0
    assert [record.getMessage() for record in caplog.records if "weights_only" in record.getMessage()] == []


def test_warning_of_ours_is_shown_without_the_place_in_the_code_and_others_with_it(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    quieten()
    # As the interpreter writes it to stderr; pytest catches what is warned.
    ours = warnings.formatwarning(DataWarning("patients look alike"), DataWarning, "dataset.py", 7)
    assert ours == "warning: patients look alike\n"
    of_the_package = warnings.formatwarning(UserWarning("the modules go on"), UserWarning, engines.__file__, 105)
    assert of_the_package == "warning: the modules go on\n"
    others = warnings.formatwarning(UserWarning("something else"), UserWarning, "dataset.py", 7)
    assert others.startswith("dataset.py:7: UserWarning: something else")
