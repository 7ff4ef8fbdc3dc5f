import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.training.overrides import normalise_overrides


@pytest.mark.parametrize(
    "words",
    [["--model.lr=0.1"], ["model.lr=0.1"], ["++model.lr=0.1"], ["+model.lr=0.1"], ["--model.lr", "0.1"]],
    ids=" ".join,
)
def test_every_spelling_of_a_sweep_comes_to_one(words):
    assert normalise_overrides([*words, "--trainer.devices=2"]) == ["--model.lr=0.1", "--trainer.devices=2"]


def test_value_may_hold_equal_signs_spaces_and_line_breaks():
    assert normalise_overrides(["data.root=a=b c\nd"]) == ["--data.root=a=b c\nd"]


def test_negative_number_is_a_value():
    assert normalise_overrides(["--model.offset", "-1"]) == ["--model.offset=-1"]


def test_option_without_a_value_stays_alone():
    words = ["--print_config", "model.lr=0.1", "--print_config", "--trainer.devices", "2", "--print_config"]
    assert normalise_overrides(words) == [
        "--print_config",
        "--model.lr=0.1",
        "--print_config",
        "--trainer.devices=2",
        "--print_config",
    ]


def test_empty_value_and_list_append_are_kept():
    assert normalise_overrides(["data.root=", "trainer.callbacks+=Timer"]) == ["--data.root=", "--trainer.callbacks+=Timer"]


def test_normal_overrides_stay_as_they_are():
    words = ["--model.lr=0.1", "--ckpt_path=last", "--print_config"]
    assert normalise_overrides(words) == words


@pytest.mark.parametrize("word", ["0.1", "=0.1", "-x", "--", "2fold=1"])
def test_word_that_is_no_override_is_named(word):
    with pytest.raises(RecipeError, match=rf"^{word}: expected an override, --key=value or key=value"):
        normalise_overrides(["--model.lr=0.1", word])
