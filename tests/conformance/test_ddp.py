"""Two gloo processes train every learned prompt encoder, and the U-Net, under plain ddp."""

import pytest
import torch.multiprocessing as mp

from tests.conformance.prompt_cases import run_rank


@pytest.mark.slow
def test_two_processes_keep_equal_weights_without_looking_for_unused_parameters(tmp_path):
    with mp.Manager() as manager:
        faults = manager.list()
        mp.spawn(run_rank, (f"file://{tmp_path}/rendezvous", faults), nprocs=2)
        assert list(faults) == []
