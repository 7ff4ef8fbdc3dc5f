"""Two gloo processes take two steps of every recipe of the project under plain ddp."""

import pytest
import torch.multiprocessing as mp

from tests.conformance.recipe_cases import RECIPES, run_rank


def test_the_recipes_are_found():
    assert {"autosam.yaml", "msa.yaml", "samed.yaml", "medsam_box.yaml", "paper/medsam.yaml"} <= set(RECIPES)


@pytest.mark.slow
def test_every_recipe_steps_in_two_processes_without_looking_for_unused_parameters(tmp_path):
    with mp.Manager() as manager:
        faults = manager.list()
        mp.spawn(run_rank, (f"file://{tmp_path}/rendezvous", faults), nprocs=2)
        assert list(faults) == []
