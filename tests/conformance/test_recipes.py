"""Two gloo processes take two steps of every recipe of the project under plain ddp."""

import pytest

from tests.conformance.recipe_cases import RECIPES, run_rank
from tests.processes import noted_by_two_ranks


def test_the_recipes_are_found():
    assert {"autosam.yaml", "msa.yaml", "samed.yaml", "medsam_box.yaml", "paper/medsam.yaml"} <= set(RECIPES)


@pytest.mark.slow
def test_every_recipe_steps_in_two_processes_without_looking_for_unused_parameters(tmp_path):
    assert noted_by_two_ranks(run_rank, tmp_path) == []
