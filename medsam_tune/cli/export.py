"""``medsam-tune export``: a run's own export folder, or a form of it that other tools load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import RecipeError

# Of export/forms/base.py, which imports what takes seconds.
FORMS = ("adapter", "sam", "transformers", "onnx", "bundle")
_DESCRIPTION = """\
Write what a run trained in a form that other tools load, with a model card, and check it in that tool.

  adapter       what was trained alone; peft loads it where the tuner is one of peft
  sam           merged weights for segment_anything (ViT-B, L, H), MobileSAM or LiteMedSAM
  transformers  a folder for SamModel and SamProcessor (ViT)
  onnx          encoder.onnx and decoder.onnx as the usual SAM clients read them, or model.onnx from image to mask
  bundle        a MONAI bundle

Without --to it writes RUN/export again, from the best checkpoint, with the figures of the test; further words change keys of
the recipe. What a model cannot be written as is said before anything is written, with what it can."""


def main(words: list[str]) -> int:
    """Run ``export`` with its words.

    Raises:
        CheckpointError: If the run cannot be loaded, or cannot take the form that is asked for.
        RecipeError: If the words do not fit each other.
    """
    if words[:1] == ["merge"]:
        raise RecipeError("medsam-tune export merge: is `medsam-tune export RUN --to sam OUT` now.")
    # Intermixed: OUT may follow the options, as people type it.
    options, overrides = parser().parse_known_intermixed_args(words or ["--help"])
    options.out = options.out or options.o
    if options.verify is not None:
        _refuse(
            overrides,
            [
                ("RUN", options.run),
                ("OUT", options.out),
                ("--to", options.to),
                ("--int8", options.int8),
                ("--half", options.half),
            ],
        )
        return _verify(options.verify, checkpoint=options.checkpoint, force=options.force, trusted=options.trust)
    if options.run is None:
        raise RecipeError("medsam-tune export: expected RUN, or --verify FOLDER. `medsam-tune export --help` shows both.")
    if options.to is None:
        # A word with a sign of equality is a key of the recipe.
        _refuse(
            [],
            [
                ("OUT", options.out and "=" not in options.out),
                ("--int8", options.int8),
                ("--half", options.half),
                ("--force", options.force),
            ],
        )
        return _own_folder(words)
    _refuse(overrides, [(str(options.out), "=" in (options.out or ""))])
    from medsam_tune.runs.forms import export_form

    done = export_form(
        options.run,
        options.to,
        options.out,
        int8=options.int8,
        half=options.half,
        checkpoint=options.checkpoint,
        force=options.force,
        trusted=options.trust,
    )
    print(f"{done.folder} is written")
    _say_measured(done.folder / "form.json")
    if options.to == "onnx":
        print("width x height, what is asked: how far the logits differ, how many pixels of the mask")
        print("\n".join(f"  {line}" for line in done.figures["each"]))
    _say(done.figures)
    return 0


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune export``."""
    found = OptionParser("medsam-tune export", _DESCRIPTION)
    found.add_argument("run", metavar="RUN", nargs="?", help="a run folder, or an export folder")
    found.add_argument("out", metavar="OUT", nargs="?", help="the folder to write; RUN/export-FORM by default")
    found.add_argument("-o", metavar="OUT", help="the same as OUT, as `medsam-tune predict` has it")
    found.add_argument("--to", choices=FORMS, metavar="FORM", help=", ".join(FORMS))
    found.add_argument("--int8", action="store_true", help="onnx: graphs of 8 bits too, their Dice measured on the test cases")
    found.add_argument("--half", action="store_true", help="adapter: in float16, its Dice measured on the test cases")
    found.add_argument("--verify", metavar="FOLDER", help="check a folder that --to wrote, in the tool it is for")
    found.add_argument("--checkpoint", metavar="FILE", help="where the base weights lie if they are a file of your own")
    found.add_argument("--force", action="store_true", help="go on with other base weights than those of the training")
    found.add_argument("--trust", action="store_true", help="import or run code from outside medsam_tune that the folder names")
    return found


def _own_folder(words: list[str]) -> int:
    """Write RUN/export."""
    from medsam_tune.cli.of_run import opened

    run, changed = opened("export", words)
    print(f'medsam_tune.load_export("{run.export(changed).folder / "export"}") loads it')
    return 0


def _verify(folder: str, *, checkpoint: str | None, force: bool, trusted: bool) -> int:
    from medsam_tune.folders import expand
    from medsam_tune.runs.forms import check_export

    _say(check_export(expand(folder, "FOLDER"), checkpoint=checkpoint, force=force, trusted=trusted))
    return 0


def _say(figures: Mapping[str, Any]) -> None:
    print(
        f"{figures['loads_in']} loads it and answers {figures['questions']} reference questions as the tuned network does: "
        f"logits differ by {figures['logits_differ_by']:.2g} at most, {figures['pixels_that_differ']} of {figures['pixels']} "
        "pixels of the masks differ"
    )


def _say_measured(record: Any) -> None:  # noqa: ANN401 - a path; pathlib need not be imported for it
    from medsam_tune.export.description import read_object

    for name, value in read_object(record)["figures"].items():
        print(f"{name.replace('_', ' ')}: {value:.4f}" if isinstance(value, float) else f"{name.replace('_', ' ')}: {value}")


def _refuse(overrides: list[str], given: list[tuple[str, Any]]) -> None:
    unfit = [name for name, value in given if value] + overrides
    if unfit:
        raise RecipeError(f"medsam-tune export: {unfit[0]} does not go with the rest. See `medsam-tune export --help`.")
