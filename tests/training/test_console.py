import subprocess
import sys


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
