"""A run on shards is the run on the folder that they were made of, to the last bit."""

from pathlib import Path

import pytest
import torch

from medsam_tune.cli import main
from tests.training.tiny_runs import RECIPE, only_run, weights_of

SOURCE = "{class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}"
PREPARED = {
    "flat": ((), "{class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^(.+)/'}}"),
    "sharded": (("--shards=7",), "{class_path: medsam_tune.data.ImageShards}"),
}


@pytest.mark.slow
def test_weights_and_test_figures_are_those_of_the_folder(workplace):
    for name, (words, source) in PREPARED.items():
        assert main(["prepare", "images", name, "--format=images", "--case-pattern=^([^_]+)_", *words]) == 0
        assert SOURCE in RECIPE
        Path(f"{name}.yaml").write_text(RECIPE.replace(SOURCE, source))
        read = (f"--data.root={name}", f"--data.split.file={name}/splits.json", f"--run.folder=runs-{name}")
        assert main(["run", f"{name}.yaml", *read, "--run.baselines=false", "--run.report=false"]) == 0
    flat, sharded = (only_run(f"runs-{name}") for name in PREPARED)
    expected, found = (weights_of(run.last_checkpoint) for run in (flat, sharded))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sharded.test_cases.read_text() == flat.test_cases.read_text()
