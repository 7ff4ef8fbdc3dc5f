import logging
import subprocess
import sys

from medsam_tune.training.console import quieten
from tests.training.tiny_runs import run


def test_no_line_of_a_run_reads_as_if_pickles_were_loaded(workplace, caplog):
    quieten()
    with caplog.at_level(logging.INFO):
        assert run("--run.baselines=false", "--run.report=false", "--trainer.max_epochs=1") == 0
    assert [record.getMessage() for record in caplog.records if "weights_only" in record.getMessage()] == []


def test_warning_of_ours_is_shown_without_the_place_in_the_code_and_others_with_it():
    code = """
import warnings
from medsam_tune.errors import DataWarning
from medsam_tune.training.console import quieten
quieten()
warnings.warn("patients look alike", DataWarning)
warnings.warn("something else", UserWarning)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "warning: patients look alike\n" in said
    assert "UserWarning: something else" in said
    assert "DataWarning" not in said
