"""``medsam-tune init``: what a folder of one's own is, and a recipe that runs on it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import DataFaults, RecipeError
from medsam_tune.folders import expand

DESCRIPTION = """\
Look at a folder of images and masks, say what it is, and write a recipe that runs on it as it stands.

Images and masks are found by names and folders in the usual layouts; every file is read, and all faults are listed. Beside
the recipe come OUT.fingerprint.json, what was found, and OUT.png, images with their masks laid over them. Where names do not
say what belongs together, OUT.pairs.csv lists it."""


def main(arguments: list[str]) -> int:
    """Run ``init`` with its arguments.

    Raises:
        RecipeError: If the recipe exists already.
        DataError: If the folder holds no images with masks, or none that can be used.
    """
    options = parser().parse_intermixed_args(arguments)
    folder = expand(options.folder, "DIR")
    out = _out(options, folder)
    from medsam_tune.data.fingerprint import take_fingerprint
    from medsam_tune.data.layouts import detect, pairing_of_patterns
    from medsam_tune.files import write_bytes, write_json, write_text
    from medsam_tune.runs.first_recipe import make_first_recipe
    from medsam_tune.runs.first_recipe.text import describe, few_cases, has_few_cases

    root = folder.resolve()
    pairing = detect(root) if options.images is None else pairing_of_patterns(root, options.images, options.masks)
    found = take_fingerprint(root, pairing)
    print("\n".join(describe(found, side := 256)))
    _list_faults(found.faults)
    fingerprint = write_json(out.with_suffix(".fingerprint.json"), found.as_json(side))
    first = make_first_recipe(found, out, prompt=options.prompt, timed=not options.no_timing, say=_told)
    from medsam_tune.evaluation.contact_sheet import contact_sheet

    data = first.cli.datamodule
    trained = set(data.splits.train)
    shown = [index for index, case in enumerate(data.source.case_ids()) if case in trained]
    sheet = write_bytes(out.with_suffix(".png"), contact_sheet(data.source, data.source.select(shown, "train")))
    write_text(out, first.text)
    print(f"Method: {first.parts.method.recipe}, because: {first.parts.method.why}")
    if has_few_cases(found):
        print(f"Few: {few_cases(found, f'medsam-tune run {out}')}")
    if first.cost is not None:
        print(f"Cost: {first.cost.told()}")
    print(f"\nWrote {out}, {fingerprint.name} and {sheet.name}. Look at {sheet.name}, then start:\n  medsam-tune run {out}")
    return 0


def _out(options: argparse.Namespace, folder: Path) -> Path:
    """Return where the recipe goes; the folder's name by default.

    Raises:
        RecipeError: If it is there already, or is no name of a recipe.
    """
    name = re.sub(r"[^\w.\-]+", "_", folder.resolve().name).strip("_.") or "first"
    out = expand(options.out or f"{name}.yaml", "OUT")
    if out.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{out}: expected a name that ends in .yaml. Give OUT as {out}.yaml.")
    if out.exists() and not options.force:
        raise RecipeError(f"{out}: exists already. Give another name, or --force to overwrite it.")
    if not out.absolute().parent.is_dir():
        raise RecipeError(f"{out.parent}: no such folder. Make it first, or give another destination.")
    if (options.images is None) != (options.masks is None):
        both = "--images='{folder}/img/{name}' --masks='{folder}/seg/{name}'"
        raise RecipeError(f"--images, --masks: one of them is missing. Give both, as in {both}.")
    return out


def _list_faults(faults: tuple[str, ...]) -> None:
    if faults:
        from medsam_tune.training.opening import counted

        print(DataFaults(f"left out: {counted(len(faults), 'file')} that cannot be used", faults), file=sys.stderr)


def _told(text: str) -> None:
    print(text, file=sys.stderr)


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune init``."""
    parser = OptionParser("medsam-tune init", DESCRIPTION)
    parser.add_argument("folder", metavar="DIR", help="the folder that holds images and masks")
    parser.add_argument("out", metavar="OUT.yaml", nargs="?", help="the recipe to write; DIR's name by default")
    parser.add_argument(
        "--prompt",
        choices=("none", "box", "click"),
        default="none",
        help="what is at hand at use; none by default",
    )
    parser.add_argument("--images", metavar="PATTERN", help="where images lie, if they are not found: '{folder}/img/{name}'")
    parser.add_argument("--masks", metavar="PATTERN", help="where masks lie, with the same fields: '{folder}/seg/{name}_mask'")
    parser.add_argument("--no-timing", action="store_true", help="do not time any pass of the network")
    parser.add_argument("--force", action="store_true", help="overwrite the recipe")
    return parser
