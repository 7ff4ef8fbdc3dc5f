import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.runs.build import build
from tests.training import tiny_runs

AUTOMATIC = "--run.automatic.points_per_side=2"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tiny_runs.write_workplace(tmp_path)
    tiny_runs.forget_run()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            r"run\.automatic: .*instances, but data\.target is binary\. Set data\.target: per_instance",
        ),
        (
            ["--data.target=per_instance", "--data.tiles=auto"],
            r"run\.automatic: masks are found in whole images, but data\.tiles",
        ),
    ],
)
def test_automatic_masks_that_cannot_be_compared_are_refused_before_any_work(recipe, words, message):
    box = ["--model.prompt_encoder=null", "--model.prompts=BoxPrompt", "--model.backbone.trainable=[mask_decoder]"]
    with pytest.raises(RecipeError, match=message):
        build(recipe, [AUTOMATIC, *box, *words])
