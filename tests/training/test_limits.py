"""Numbers that no part can work with, and sections that nothing reads, are refused by key before anything is built."""

import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.training.limits import check_numbers, check_recipe_files, config_files

SECTIONS = ("data", "model", "run", "seed_everything", "trainer")


def recipe(key, value, class_path="medsam_tune.prompt_encoders.EmbeddingPromptGenerator"):
    """Return a recipe with one value in it; a part of the key after ``init_args`` belongs to ``class_path``."""
    outer, _, inner = key.partition(".init_args.")
    if inner:
        value = {"class_path": class_path, "init_args": {inner: value}}
    for name in reversed(outer.split(".")):
        value = {name: value}
    return value


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed_everything", -1, r"seed_everything: expected a number from 0 to 4294967295, got -1\."),
        ("seed_everything", 10**400, r"seed_everything: expected a number from 0 to 4294967295, got 10000"),
        ("model.backbone.init_args.seed", 2**32, r"model\.backbone\.seed: expected a number from 0 to 4294967295"),
        ("model.optimizer.init_args.lr", -1e-3, r"model\.optimizer\.lr: expected a number of at least 0\.0, got -0\.001"),
        ("model.optimizer.init_args.lr", float("nan"), r"model\.optimizer\.lr: .* got nan"),
        ("model.optimizer.init_args.weight_decay", float("inf"), r"model\.optimizer\.weight_decay: .* got inf"),
        ("data.num_workers", -1, r"data\.num_workers: expected a number of at least 0, got -1"),
        ("model.warmup_steps", -1, r"model\.warmup_steps: expected a number of at least 0, got -1"),
        ("model.prompt_encoder.init_args.width", 10**9, r"model\.prompt_encoder\.width: expected a number from 1 to 65536"),
        ("model.prompt_encoder.init_args.width", -3, r"model\.prompt_encoder\.width: expected a number from 1 to 65536"),
        ("trainer.accumulate_grad_batches", 0, r"trainer\.accumulate_grad_batches: expected a number of at least 1, got 0"),
        ("trainer.gradient_clip_val", -1.0, r"trainer\.gradient_clip_val: expected a number of at least 0, got -1\.0"),
    ],
)
def test_number_out_of_bounds_is_named(key, value, said):
    with pytest.raises(RecipeError, match=f"^{said}"):
        check_numbers(recipe(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed_everything", 2**32 - 1),
        ("seed_everything", True),
        ("model.optimizer.init_args.lr", 0.0),
        ("model.objects_per_decode", 0),
        ("model.prompt_encoder.init_args.width", 65536),
    ],
)
def test_number_within_bounds_passes(key, value):
    check_numbers(recipe(key, value))


def test_another_ones_class_may_mean_something_else_by_width():
    check_numbers(recipe("model.prompt_encoder.init_args.width", -3, class_path="mine.Encoder"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle: {a: 1}\n", r"modle: no such section\. A recipe has data, model, run, seed_everything, trainer\."),
        ("dta: {}\n", "dta: no such section"),
        ("- data\n", "expected the sections of a recipe, got list"),
        ("# nothing\n", "expected the sections of a recipe, got NoneType"),
        ("data: {}\ndata: {}\n", "line 2: data stands twice"),
    ],
)
def test_file_with_a_section_that_nothing_reads_is_refused(text, said, tmp_path):
    path = tmp_path / "a=b.yaml"
    path.write_text(text)
    for words in (["--config", str(path)], [f"--config={path}"], ["fit", "-c", str(path)]):
        with pytest.raises(RecipeError, match=rf"a=b\.yaml: {said}"):
            check_recipe_files(words, SECTIONS, also=("fit",))


def test_only_files_that_are_there_are_read(tmp_path):
    (tmp_path / "a.yaml").touch()
    words = ["fit", "--config", "none.yaml", f"--config={tmp_path / 'a.yaml'}", f"--config={'x' * 10_000}", "--config"]
    assert list(config_files(words)) == [tmp_path / "a.yaml"]
