from __future__ import annotations

import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.training.cli import MedsamCLI, main
from medsam_tune.training.stage_parser import SUBCOMMANDS
from tests.training.tiny_runs import build


class OnlyParses(MedsamCLI):
    """Stop before anything is built."""

    def instantiate_classes(self):
        raise KeyboardInterrupt


def parsed(*words):
    cli = OnlyParses.__new__(OnlyParses)
    with pytest.raises(KeyboardInterrupt):
        cli.__init__(list(words), recipe_file=None, command="", run=True)
    return cli


def test_a_called_stage_has_a_parser_of_its_own_keys_alone(workplace):
    stage = ["fit", "--config", "tiny.yaml"]
    cli = parsed(*stage)
    assert list(cli.subcommands()) == list(cli.parser._subcommands_action.choices) == ["fit"]
    assert cli.config.subcommand == "fit"
    assert cli.config.fit.data.batch_size == 2


def test_every_stage_is_offered_where_none_is_called(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"    {stage} " in said for stage in SUBCOMMANDS)
    with pytest.raises(RecipeError, match="train"):
        main(["train"])


def test_a_parser_is_made_once_for_a_stage_and_keeps_nothing_of_what_it_parsed(workplace):
    first, second = build("--data.batch_size=3", "--trainer.max_epochs=5"), build()
    assert first.parser is second.parser
    assert (first.config.data.batch_size, first.config.trainer.max_epochs) == (3, 5)
    assert (second.config.data.batch_size, second.config.trainer.max_epochs) == (2, 2)
    assert parsed("validate", "--config", "tiny.yaml", "--untuned").parser is not first.parser


def test_resolved_recipe_follows_what_is_set_and_not_what_its_reader_does_to_it(workplace):
    cli = build()
    cli.recipe_values()["trainer"]["max_epochs"] = 9
    assert cli.recipe_values()["trainer"]["max_epochs"] == 2
    cli.config.trainer.max_epochs = 7
    assert "\n  max_epochs: 7\n" in cli.dump()
    assert cli.recipe_values()["trainer"]["max_epochs"] == 7
