"""``medsam-tune test``, ``validate``, ``resume`` and ``predict`` of a run, which knows its recipe, overrides and split."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from medsam_tune.cli.options import OptionParser
from medsam_tune.training.overrides import normalise_overrides

if TYPE_CHECKING:
    from argparse import Namespace

    from medsam_tune.inference.file_prediction import Outcome
    from medsam_tune.inference.prompt_files import Kind
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
_PREDICT = """\
Write a mask for each image or volume, in its own format and on its own voxels; every slice of a volume.

Boxes are a CSV or JSON file with image, x1, y1, x2, y2 (the last column and row included) and perhaps label and slice, or a
COCO file; points have image, x, y and perhaps label (1 object, 0 background), object and slice. Objects are 255 in an image
and 1 in a volume; where classes or labels tell several apart, labels.json says which number is which. Files that cannot be
used are listed at the end, with exit status 1; all others are written."""


def main(arguments: list[str]) -> int:
    """Run the command that ``arguments`` begin with.

    Raises:
        MedsamTuneError: If the run, the data or the prompts cannot be used.
    """
    command, words = arguments[0], arguments[1:]
    return {"test": _score, "validate": _score, "resume": _resume, "predict": _predict}[command](command, words)


def parser_of(command: str) -> OptionParser:
    """Return what parses the words of ``test``, ``validate``, ``resume``, ``export`` or ``predict``."""
    if command == "predict":
        return _predict_parser()
    cases = "test" if command == "test" else "validation"
    description = {"resume": _RESUME, "export": _EXPORT}.get(command, _SCORE.format(command=command, cases=cases))
    parser = OptionParser(f"medsam-tune {command}", description)
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/lora/TIME")
    parser.add_argument("--checkpoint", metavar="FILE", help="where the base weights lie if they are a file of your own")
    parser.add_argument("--trust", action="store_true", help="import code from outside medsam_tune that the run names")
    return parser


def _predict_parser() -> OptionParser:
    parser = OptionParser("medsam-tune predict", _PREDICT)
    parser.add_argument("run", metavar="RUN", help="a run folder, or an export folder")
    parser.add_argument("input", metavar="INPUT", help="an image, a volume, or a folder of them")
    parser.add_argument("-o", "--out", metavar="OUT", required=True, help="the folder of the masks")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--boxes", metavar="FILE", help="boxes of the objects")
    prompts.add_argument("--points", metavar="FILE", help="points on the objects")
    parser.add_argument("--checkpoint", metavar="FILE", help="where the base weights lie if they are a file of your own")
    parser.add_argument("--trust", action="store_true", help="import classes from outside medsam_tune that the run names")
    return parser


def opened(command: str, words: list[str]) -> tuple[Run, list[str]]:
    """Return the run that the words of a command name, and what changes in its recipe.

    Raises:
        RecipeError: If they name no run, or a word is no override.
    """
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


def _predict(command: str, words: list[str]) -> int:
    options = parser_of(command).parse_args(words)
    outcomes = _outcomes(options)
    faults = [outcome.fault for outcome in outcomes if outcome.fault]
    print(f"{len(outcomes) - len(faults)} masks in {options.out}")
    for fault in faults:
        print(f"error: {' '.join(fault.split())}", file=sys.stderr)
    return 1 if faults else 0


def _outcomes(options: Namespace) -> list[Outcome]:
    """Predict each file behind a bar that counts them."""
    from rich.console import Console
    from rich.progress import track

    from medsam_tune.folders import expand
    from medsam_tune.runs.prediction import prepare

    out = expand(options.out, "OUT")
    kind: Kind = "boxes" if options.boxes else "points"
    named = options.boxes or options.points
    job = prepare(
        expand(options.run, "RUN"),
        expand(options.input, "INPUT"),
        out,
        None if named is None else (expand(named, f"--{kind}"), kind),
        checkpoint=options.checkpoint,
        trusted=options.trust,
    )
    return list(track(job.outcomes(), "Predicting", total=len(job.files), console=Console(stderr=True), transient=True))
