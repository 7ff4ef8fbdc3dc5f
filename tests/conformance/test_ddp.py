"""Two gloo processes train every learned prompt encoder, and the U-Net, under plain ddp."""

import pytest

from tests.conformance.prompt_cases import run_rank
from tests.processes import noted_by_two_ranks


@pytest.mark.slow
def test_two_processes_keep_equal_weights_without_looking_for_unused_parameters(tmp_path):
    assert noted_by_two_ranks(run_rank, tmp_path) == []
