"""What a recipe written for a sample says of the training's length holds for that sample; the user's own word always does."""

import pytest
import yaml

from medsam_tune.errors import RecipeError
from medsam_tune.training.plan import FEWEST_STEPS

from .tiny_runs import STEPS_PER_EPOCH, build

OWN = ("--data.root=images", "--data.source.case_pattern=^([^_]+)_")
FLOOR = -(-FEWEST_STEPS // STEPS_PER_EPOCH)


@pytest.fixture
def example(workplace):
    """Return a recipe like a bundled one: eight epochs and twenty steps of warm-up, for a sample."""
    text = (workplace / "tiny.yaml").read_text()
    text = text.replace("root: images", "root: sample:hippocampus").replace("max_epochs: 2", "max_epochs: 8")
    path = workplace / "example.yaml"
    path.write_text(text.replace("data:\n", "  warmup_steps: 20\ndata:\n"))
    return path


def length(*words, recipe):
    """Return epochs, interval of validations and warm-up, the trainer's and the stored recipe's the same."""
    cli = build(*words, recipe=recipe)
    stored = yaml.safe_load(cli.dump())
    every = stored["trainer"]["check_val_every_n_epoch"]
    assert cli.trainer.max_epochs == stored["trainer"]["max_epochs"]
    assert cli.trainer.check_val_every_n_epoch == every
    assert cli.model.warmup_steps == stored["model"]["warmup_steps"]
    return cli.trainer.max_epochs, every, cli.model.warmup_steps


def test_few_images_of_the_users_get_steps_enough_and_a_warmup_that_is_a_share_of_them(example):
    assert length(*OWN, recipe=example) == (FLOOR, 1, 20)
    assert length(*OWN, "--data.batch_size=20", recipe=example) == (200, 5, 20)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--trainer.max_epochs=5"], (5, 1, 3)),
        (["--trainer.max_steps=12"], (8, 1, 1)),
        (["--trainer.max_epochs=5", "--model.warmup_steps=7"], (5, 1, 7)),
        (["--model.warmup_steps=30"], (FLOOR, 1, 30)),
        (["--trainer.check_val_every_n_epoch=4"], (FLOOR, 4, 20)),
        (["--config=more.yaml"], (6, 1, 3)),
    ],
)
def test_explicit_key_wins(example, words, expected):
    example.with_name("more.yaml").write_text("trainer: {max_epochs: 6}\n")
    assert length(*OWN, *words, recipe=example) == expected


def test_steps_that_are_asked_for_are_taken_whatever_the_recipes_epochs(workplace, example):
    asked = f"--trainer.max_steps={8 * STEPS_PER_EPOCH + 1}"
    assert length(*OWN, asked, recipe=example)[0] == 9
    own = workplace / "own.yaml"
    own.write_text(example.read_text().replace("sample:hippocampus", "images"))
    assert length(asked, recipe=own)[0] == 9
    assert length(asked, "--trainer.max_epochs=3", "--model.warmup_steps=1", recipe=own)[0] == 3
    assert length("--trainer.max_steps=-1", recipe=own)[0] == 8


def test_recipe_of_the_users_own_is_never_changed(workplace, example):
    own = workplace / "own.yaml"
    own.write_text(example.read_text().replace("sample:hippocampus", "images"))
    assert length(recipe=own) == (8, 1, 20)


@pytest.mark.parametrize("words", [["--trainer.max_epochs=3"], ["--trainer.max_steps=20"], ["--trainer.limit_train_batches=2"]])
def test_own_training_inside_its_warmup_is_refused_and_leaves_no_run(workplace, example, words):
    own = workplace / "own.yaml"
    own.write_text(example.read_text().replace("sample:hippocampus", "images"))
    with pytest.raises(RecipeError, match=r"^model\.warmup_steps: is 20, but the whole training takes (16|18|20) "):
        build(*words, recipe=own)
    assert not (workplace / "runs").exists()
