"""``medsam-tune test``, ``validate`` and ``resume`` of a run, which knows its recipe, overrides and split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsam_tune.cli.options import OptionParser
from medsam_tune.training.overrides import normalise_overrides

if TYPE_CHECKING:
    from medsam_tune.runs.run import Run

_SCORE = """\
Score the best checkpoint of a run on the {cases} cases of its own split. The figures come to {command}s/<time>/ in its folder.

Further words change keys of the run's recipe, such as --data.root=DIR where the data were moved. With --config RECIPE in
place of RUN every key of LightningCLI is there: `medsam-tune {command} --config RECIPE --help`."""
_RESUME = """\
Continue the training of a run in its folder where its last checkpoint is, then test, export and report.

Further words change keys of its recipe from here on, such as --trainer.max_epochs=40."""
_EXPORT = """\
Write what the best checkpoint of a run holds to export/ in its folder, with the model card and the figures of its test."""


def main(arguments: list[str]) -> int:
    """Run the command that ``arguments`` begin with.

    Raises:
        MedsamTuneError: If the run, the data or the prompts cannot be used.
    """
    command, words = arguments[0], arguments[1:]
    return _resume(command, words) if command == "resume" else _score(command, words)


def parser_of(command: str) -> OptionParser:
    """Return what parses the words of ``test``, ``validate``, ``resume`` or ``export``."""
    cases = "test" if command == "test" else "validation"
    description = {"resume": _RESUME, "export": _EXPORT}.get(command, _SCORE.format(command=command, cases=cases))
    parser = OptionParser(f"medsam-tune {command}", description)
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/hippocampus/lora/TIME")
    parser.add_argument("--checkpoint", metavar="FILE", help="where the base weights lie if they are a file of your own")
    parser.add_argument("--trust", action="store_true", help="import code from outside medsam_tune that the run names")
    return parser


def opened(command: str, words: list[str]) -> tuple[Run, list[str]]:
    """Return the run that the words of a command name, and what changes in its recipe.

    Raises:
        RecipeError: If they name no run, or a word is no override.
    """
    # Every other key may be typed without dashes.
    words = [f"--{word}" if word.startswith("checkpoint=") else word for word in words]
    options, overrides = parser_of(command).parse_known_args(words)
    from medsam_tune.runs.run import Run

    changed = normalise_overrides(overrides)
    changed += [f"--model.backbone.checkpoint={options.checkpoint}"] if options.checkpoint else []
    return Run.open(options.run, trusted=options.trust), changed


def _score(command: str, words: list[str]) -> int:
    run, changed = opened(command, words)
    from medsam_tune.runs.closing import closing

    if command == "validate":
        run.validate(changed)
    elif (summary := run.test(changed).summary) and run.scored is not None:
        print(closing(summary, run.scored, None))
    return 0


def _resume(command: str, words: list[str]) -> int:
    run, changed = opened(command, words)
    run.resume(changed).finish()
    return 0
