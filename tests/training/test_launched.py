"""A further rank ends with the process that started it; rank 0 does not end with the shell."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medsam_tune.training.launched import die_with_launcher

FILE = Path(__file__).parents[2] / "medsam_tune" / "training" / "launched.py"
# The file alone, so that neither process imports torch.
RANK = f"import runpy, time; runpy.run_path({str(FILE)!r})['die_with_launcher'](); print('ready', flush=True); time.sleep(60)"
LAUNCHER = """
import os, subprocess, sys, time
environ = {**os.environ, "LOCAL_RANK": sys.argv[2]}
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environ, stdout=subprocess.PIPE)
rank.stdout.readline()
print(rank.pid, flush=True)
time.sleep(60)
"""


def is_gone(pid, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize(("rank", "seconds", "gone"), [("1", 60, True), ("0", 0.5, False)])
def test_rank_that_was_started_ends_when_its_launcher_is_killed(rank, seconds, gone):
    environ = {name: value for name, value in os.environ.items() if name not in ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")}
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK, rank], env=environ, stdout=subprocess.PIPE, text=True
    ) as launcher:
        pid = int(launcher.stdout.readline())
        launcher.send_signal(signal.SIGKILL)
    found = is_gone(pid, seconds)
    if not found:
        os.kill(pid, signal.SIGKILL)
    assert found is gone


@pytest.mark.parametrize(
    "environ",
    [{}, {"LOCAL_RANK": "0"}, {"LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "a"}, {"LOCAL_RANK": "1", "SLURM_PROCID": "1"}],
)
def test_processes_of_other_launchers_and_rank_0_are_left_alone(environ):
    assert not die_with_launcher(environ)
