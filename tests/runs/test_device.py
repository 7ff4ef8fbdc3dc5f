"""Where the network lies while something is scored or drawn: no test of ours has a GPU, so the moves are held instead."""

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from medsam_tune.runs import run as runs
from medsam_tune.runs.run import Run
from medsam_tune.training.module import TuningModule

DEVICE = torch.device("cpu", 0)  # not the "cpu" to which Lightning moves a network when a stage ends


@pytest.fixture
def moves(monkeypatch):
    """Return the list of where the network went, and of what was done there."""
    seen = []

    def noting(owner, name, said):
        before = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **named: seen.append(said(*args)) or before(*args, **named))

    monkeypatch.setattr(SingleDeviceStrategy, "root_device", property(lambda strategy: DEVICE))
    noting(TuningModule, "to", lambda module, device: device)
    noting(TuningModule, "cpu", lambda module: "left")
    noting(runs, "_score_beside", lambda *args: "scored")
    noting(runs, "report_stage", lambda *args: "drawn")
    noting(runs.SliceArtist, "draw", lambda *args: "drawn again")
    return seen


def test_what_follows_a_stage_is_done_on_the_device_of_the_training(workplace, moves):
    run = Run.from_recipe("tiny.yaml", {"run.folder": "runs", "trainer.max_epochs": 1}).fit()
    moves.clear()
    run.test()
    assert moves[-4:] == ["left", DEVICE, "scored", "left"]
    moves.clear()
    run.export().report()
    assert [move for move in moves if move != "drawn again"] == [DEVICE, "drawn", "left"]
    moves.clear()
    Run.open(run.folder).draw_cases(run.splits.test[:1])
    assert moves == [DEVICE, "drawn again", "left"]


def test_the_network_leaves_the_device_also_where_scoring_fails(workplace, moves, monkeypatch):
    run = Run.from_recipe("tiny.yaml", {"run.folder": "runs", "trainer.max_epochs": 1}).fit()

    def fails(cli, kept):
        raise RuntimeError("no room")

    monkeypatch.setattr(runs, "_score_beside", fails)
    with pytest.raises(RuntimeError, match="no room"):
        run.test()
    assert moves[-2:] == [DEVICE, "left"]
