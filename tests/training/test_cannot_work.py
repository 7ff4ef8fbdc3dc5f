"""A training that cannot work says so before it starts: one line, status 2, no run folder."""

from pathlib import Path

import pytest

from medsam_tune.cli import main
from tests.training.tiny_runs import write_workplace


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Return a function that runs tiny.yaml, expects a refusal, and returns its one line."""
    write_workplace(tmp_path)
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def refuse(*overrides):
        assert main(["run", "tiny.yaml", *overrides]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert not list(Path("runs").glob("*")), "a run folder was left behind"
        return line.removeprefix("error: ")

    return refuse


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["--trainer.max_steps=8", "--model.warmup_steps=20"],
            "model.warmup_steps: is 20, but the whole training takes 8 optimizer steps, all of them inside the warm-up. Raise",
        ),
        (
            ["--trainer.max_epochs=1", "--model.warmup_steps=20"],
            "model.warmup_steps: is 20, but the whole training takes",
        ),
        (["--data.source.mask_threshold=255"], "images: no object in any training image"),
        (["--data.source.labels={lumen: [7]}"], "8 of 8 cases cannot be used:"),
    ],
    ids=["steps inside the warm-up", "epochs inside the warm-up", "threshold above all", "labels of others"],
)
def test_training_that_cannot_work_is_refused(refused, overrides, said):
    assert refused(*overrides).startswith(said)


def test_one_case_is_refused(refused, tmp_path):
    for path in (tmp_path / "images").glob("*/*"):
        if not path.name.startswith("c0"):
            path.unlink()
    assert refused().startswith("1 patient (c0) is too few for train, val and test")


def test_steps_below_one_epoch_are_validated_at_their_end(refused, capsys):
    assert main(["run", "tiny.yaml", "--trainer.max_steps=2", "--run.baselines=false"]) == 0
    shown = capsys.readouterr()
    assert "2 steps" in shown.out + shown.err
    (run,) = Path("runs").glob("*/*/*")
    assert (run / "checkpoints/best.ckpt").is_file()
