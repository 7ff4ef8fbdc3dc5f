"""Predictions, exports and sweeps that are killed at changes of the disk, and end as those that nobody killed."""

import pytest

from tests.training.deadly import Deadly
from tests.training.killed_commands import KILLED, killed, prepare, whole

pytestmark = pytest.mark.slow

# Spread over the command, its first and last change among them; `python benchmarks/kills.py --of predict` kills at more.
N_KILLS = 3


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    pytest.importorskip("optuna")
    deadly, folder = Deadly(), tmp_path_factory.mktemp("killed")
    yield deadly, folder, prepare(deadly, folder)
    deadly.close()


@pytest.mark.parametrize("name", ["predict", "export", "export --to adapter", "sweep"])
def test_command_killed_before_a_change_of_the_disk_and_typed_again_leaves_what_it_would_have(workplace, name):
    deadly, folder, commands = workplace
    expected, changes = whole(deadly, folder, commands[name])
    for call in sorted({1 + round(step * (changes - 1) / (N_KILLS - 1)) for step in range(N_KILLS)}):
        statuses, found, temporary = killed(deadly, folder, commands[name], call)
        assert (call, statuses) == (call, (KILLED, 0)), (folder / "log.txt").read_text()[-2000:]
        assert (call, temporary) == (call, [])
        assert found == expected, call
