"""``medsam-tune predict MODEL INPUT -o OUT``: a mask for each image or volume."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from medsam_tune.cli.options import OptionParser
from medsam_tune.cli.slice_options import add_slice_options, volume_prompt_of
from medsam_tune.cli.watched import behind_a_bar
from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand

if TYPE_CHECKING:
    from argparse import Namespace

    from medsam_tune.runs.prediction import PredictionJob

WRITERS = (
    "nifti",
    "nrrd",
    "mha",
    "seg",
    "rtstruct",
    "coco",
    "coco-polygons",
)  # of data/formats/known.py, which imports what takes seconds

_DESCRIPTION = """\
Write a mask for each image or volume, in its own format and on its own voxels; every slice of a volume.

MODEL is a run's folder, an export folder, or the name of released weights: the untuned network, which needs boxes or points.

Boxes are a CSV or JSON file with image, x1, y1, x2, y2 (the last column and row included) and perhaps label and slice, or a
COCO file; points have image, x, y and perhaps label (1 object, 0 background), object and slice. Masks of which every object is
asked for are named as their images. A box or click on one slice of a volume (--box-on-slice, --point-on-slice) is followed up
and down from there, as far as the network believes its own masks. labels.json says what each value of the masks means,
cases.csv how large each label is.

Files that cannot be used are listed at the end, with exit status 1; all others are written. The same command again goes on
where it was cut off."""


def main(words: list[str]) -> int:
    """Run ``predict`` with its words.

    Raises:
        MedsamTuneError: If the model, the data or the prompts cannot be used.
    """
    # Intermixed: OUT may stand behind an option.
    options = parser().parse_intermixed_args(words)
    job = _job(options)
    from medsam_tune.training.opening import counted

    if job.left_out:
        print(f"left out: {counted(len(job.left_out), 'mask')} among the images; name a file itself to predict it.")
    for difference in job.differences:
        print(f"warning: {options.input}: {difference}. The masks may be wrong.", file=sys.stderr)
    outcomes = behind_a_bar(job.outcomes(), "Predicting", total=len(job.files))
    faults = [outcome.fault for outcome in outcomes if outcome.fault]
    stood = sum(outcome.stood for outcome in outcomes)
    there = f", {stood} of them from before" if stood else ""
    for outcome in outcomes:
        if outcome.note:
            print(outcome.note)
    print(f"{counted(len(outcomes) - len(faults), 'mask')} in {job.out}{there}")
    for fault in faults:
        print(f"error: {' '.join(fault.split())}", file=sys.stderr)
    return 1 if faults else 0


def parser() -> OptionParser:
    """Return what parses the words."""
    found = OptionParser("medsam-tune predict", _DESCRIPTION)
    found.add_argument("model", metavar="MODEL", help="a run folder, an export folder, or weights such as lite_medsam")
    found.add_argument("input", metavar="INPUT", help="an image, a volume, or a folder of them")
    found.add_argument("place", metavar="OUT", nargs="?", help="the folder of the masks; -o OUT says the same")
    found.add_argument("-o", "--out", metavar="OUT", help="the folder of the masks")
    prompts = found.add_mutually_exclusive_group()
    prompts.add_argument("--boxes", metavar="FILE", help="boxes of the objects")
    prompts.add_argument("--points", metavar="FILE", help="points on the objects")
    prompts.add_argument("--every-object-of", metavar="MASKS", help="ask with the box of every object of these masks")
    add_slice_options(found)
    found.add_argument("--overlays", action="store_true", help="pictures of the masks on the images, in OUT/overlays")
    found.add_argument("--uncertainty", action="store_true", help="how far the answers to moved prompts differ, in cases.csv")
    found.add_argument("--to", choices=WRITERS, help="as what masks are written; by default as their images")
    found.add_argument("--keep-patient", action="store_true", help="copy name, id and dates into DICOM masks, for an archive")
    found.add_argument("--overwrite", action="store_true", help="ask again, and write over whatever stands in OUT")
    found.add_argument("--checkpoint", metavar="FILE", help="where the base weights lie if they are a file of your own")
    found.add_argument("--trust", action="store_true", help="import classes from outside medsam_tune that the run names")
    return found


def _job(options: Namespace) -> PredictionJob:
    from medsam_tune.runs.asked_model import open_model
    from medsam_tune.runs.prediction import PredictionJob, PromptKind, Wanted

    volume_prompt = volume_prompt_of(options)
    if (options.place is None) == (options.out is None):
        raise RecipeError("-o: give the folder of the masks once, as the third word or behind -o.")
    named: dict[PromptKind, str | None] = {
        "boxes": options.boxes,
        "points": options.points,
        "masks": options.every_object_of,
    }
    option = {"masks": "--every-object-of"}
    drawn = [(expand(place, option.get(kind, f"--{kind}")), kind) for kind, place in named.items() if place is not None]
    return PredictionJob(
        open_model(options.model, checkpoint=options.checkpoint, trusted=options.trust),
        expand(options.input, "INPUT"),
        expand(options.out or options.place, "OUT"),
        drawn[0] if drawn else None,
        Wanted(options.overlays, options.uncertainty, options.overwrite, options.to, options.keep_patient),
        volume_prompt=volume_prompt,
    )
