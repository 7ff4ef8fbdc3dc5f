"""Every broken input ends in one line with its place and a remedy, exit status 2, and nothing written."""

import pytest

from tests.bad_inputs import (
    caches,
    checkpoints,
    commands,
    exports,
    images,
    nifti,
    npz,
    overrides,
    recipes,
    shards,
    splits,
    sweeps,
)

KINDS = {
    module.__name__.rpartition(".")[2]: module.CASES
    for module in (images, shards, nifti, npz, recipes, overrides, checkpoints, exports, caches, splits, sweeps, commands)
}
CASES = [pytest.param(case, id=f"{kind}: {case.name}") for kind, cases in KINDS.items() for case in cases]


@pytest.mark.parametrize("case", CASES)
def test_broken_input_is_refused_in_one_line_and_nothing_is_written(refused, case):
    refused(case)


def test_corpus_is_as_large_as_promised_and_names_no_case_twice():
    assert len(CASES) >= 150
    assert len({case.id for case in CASES}) == len(CASES)
