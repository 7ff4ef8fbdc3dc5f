"""What ``predict --config`` cannot do is said before an image is encoded: one line, status 2, nothing left behind."""

from pathlib import Path

import pytest

from medsam_tune.cli import main
from tests.training.tiny_runs import RECIPE

ASKED = RECIPE.replace(
    next(line for line in RECIPE.splitlines() if "prompt_encoder" in line),
    "  prompts: {class_path: medsam_tune.prompts.BoxPrompt}",
)


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        (ASKED, (), "model.prompts: BoxPrompt draws its prompt from true masks, which new images do not have. Give boxes"),
        (RECIPE, ("--trainer.devices=2",), "trainer.devices: predict writes whole volumes from one process."),
        (RECIPE, ("--ckpt_path=last",), "--ckpt_path=last: no run under runs/"),
    ],
    ids=["no prompts", "two processes", "no run"],
)
def test_what_predict_cannot_do_is_refused_before_any_work(workplace, capsys, recipe, words, said):
    Path("tiny.yaml").write_text(recipe)
    untuned = () if "--ckpt_path=last" in words else ("--untuned",)
    assert main(["predict", "--config=tiny.yaml", *untuned, *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.removeprefix("error: ").startswith(said)
    assert "Leave" not in line, "without a checkpoint predict is refused, so that is no advice"
    assert not Path("cache/embeddings").exists(), "images were encoded"
    assert not list(Path("runs").glob("*/*/*")), "a run folder was left behind"
