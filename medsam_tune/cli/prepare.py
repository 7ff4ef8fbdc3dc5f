"""``medsam-tune prepare``: any data to a folder of 8-bit PNG images, masks, splits and a record of the grey window."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand

if TYPE_CHECKING:
    from medsam_tune.data.base import SegmentationSource
    from medsam_tune.data.prepare import Prepared
    from medsam_tune.data.splits import Splits

DESCRIPTION = """\
Turn NIfTI volumes, DICOM series, image folders or MedSAM's npz and npy files into a folder of native-size 8-bit PNG images and
masks.

The folder holds images/CASE/IMAGE.png, masks/CASE/IMAGE.png (label ids), splits.json and prepared.json, which records how grey
values became 0..255. It is never written over, and appears only when it is complete.

With --shards, images, masks and a record of each case lie in plain tar files instead (CASE/IMAGE.png, .mask.png and .json, as
WebDataset names them), so that a million images are a few hundred files. The same command goes on where it was killed."""

OPTIONS = {
    "nifti": {"images", "masks", "axis", "step", "window", "percentiles"},
    "dicom": {"images", "masks", "axis", "step", "window", "percentiles"},
    "images": {"images", "masks", "case_pattern", "mask_threshold", "mask_suffix", "window", "percentiles"},
    "npz": {"step", "window", "percentiles"},
    "npy": {"images", "masks", "case_pattern"},
}
"""The options of each format, beside labels and split."""
WINDOW_NAMES = ("soft_tissue", "lung", "brain")


def main(arguments: list[str]) -> int:
    """Run ``prepare`` with its arguments.

    Raises:
        RecipeError: If options contradict each other or are no numbers.
        DataError: If the data cannot be read, or the folder exists.
    """
    options = parser().parse_args(arguments)
    source = build_source(options)
    from medsam_tune.data.checks import check_cases
    from medsam_tune.data.prepare import prepare_folder
    from medsam_tune.data.prepare_shards import prepare_shards
    from medsam_tune.data.shards.writing import ShardLimit

    limit = None if options.shards is None else ShardLimit.of(options.shards)
    source.ignore_label = options.ignore_label
    source.open(expand(options.source, "SOURCE"))
    checksums = check_cases(source)
    splits, out, keep_empty = _splits(source, options), expand(options.folder, "OUT"), not options.skip_empty
    if limit is None:
        done = prepare_folder(source, out, splits=splits, keep_empty=keep_empty)
    else:
        done = prepare_shards(source, out, limit=limit, splits=splits, checksums=checksums, keep_empty=keep_empty)
    print(_closing(done))
    return 0


def _splits(source: SegmentationSource, options: argparse.Namespace) -> Splits:
    """Split by patient, under the names that the cases have in the prepared folder."""
    from medsam_tune.data.names import flat_file_name
    from medsam_tune.data.patients import patient_rule, patients_of
    from medsam_tune.data.split_choice import choose_splits
    from medsam_tune.data.splits import SplitSettings

    named = dict(zip(source.case_ids(), source.patient_ids(), strict=True))
    rule = patient_rule(named, options.patient)
    found = patients_of(named, rule)
    patients = {flat_file_name(case): patient for case, patient in found.items()}
    settings = SplitSettings(options.seed, options.val_fraction, options.test_fraction)
    given = None if rule is None else patients
    return choose_splits(settings, patients, patients=given, files={}, run_folder=None)


def build_source(options: argparse.Namespace) -> SegmentationSource:
    """Build the source of the format with the options it understands.

    Raises:
        RecipeError: If an option does not belong to the format, or options contradict each other.
    """
    _check_options(options)
    from medsam_tune.data import ImageFolder, Intensity, MedsamNpy, MedsamNpz, NiftiVolumes, SliceRule, VolumeSource
    from medsam_tune.data.formats import DicomFormat

    labels, window = _labels(options.labels), _window(options.window)
    rules = _given(options, "images", "masks", "axis", "case_pattern", "mask_threshold", "mask_suffix")
    if options.format == "npy":
        return MedsamNpy(**rules, labels=labels)
    if options.format == "nifti":
        rules |= _given(options, "percentiles")
        return NiftiVolumes(**rules, labels=labels, window=window, slices=SliceRule(step=options.step))
    intensity = None
    if window is not None:
        intensity = Intensity("window", window=window)
    elif options.percentiles is not None:
        intensity = Intensity("percentile", percentiles=tuple(options.percentiles))
    if options.format == "dicom":
        # Its files say themselves which of them are masks, and of which series.
        places = {"images": ".", "masks": "."} | {name: rules[name] for name in ("images", "masks") if name in rules}
        axis = {name: rules[name] for name in ("axis",) if name in rules}
        slices = SliceRule(step=options.step)
        return VolumeSource(DicomFormat(), **places, **axis, labels=labels, intensity=intensity, slices=slices)
    if options.format == "npz":
        return MedsamNpz(labels=labels, intensity=intensity, slices=SliceRule(step=options.step))
    groups: dict[str, list[int | str]] | None = None if labels is None else {name: [*values] for name, values in labels.items()}
    return ImageFolder(**rules, labels=groups, intensity=intensity)


def _check_options(options: argparse.Namespace) -> None:
    for name in {name for names in OPTIONS.values() for name in names} - OPTIONS[options.format]:
        if getattr(options, name) is not None:
            formats = ", ".join(kind for kind, names in OPTIONS.items() if name in names)
            raise RecipeError(f"--{name.replace('_', '-')}: belongs to --format {formats}, got {options.format}. Leave it out.")
    if options.window is not None and options.percentiles is not None:
        raise RecipeError("--window: excludes --percentiles. Keep one of them.")


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options of these names that were set, so that defaults stay where they are documented."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _window(words: list[str] | None) -> tuple[float, float] | None:
    """Return the limits of a named CT window, or of two numbers."""
    if words is None:
        return None
    if len(words) == 1 and words[0] in WINDOW_NAMES:
        from medsam_tune.data.prepare import CT_WINDOWS

        return CT_WINDOWS[words[0]]
    try:
        low, high = (float(word) for word in words)
    except ValueError as error:
        raise RecipeError(
            f"--window: expected one of {', '.join(WINDOW_NAMES)}, or LOW HIGH in stored values, got {' '.join(words)}."
        ) from error
    return low, high


def _labels(words: list[str] | None) -> dict[str, list[int]] | None:
    """Return name to mask values from words such as ``tumour=2,3``."""
    if words is None:
        return None
    labels = {}
    for word in words:
        name, _, values = word.partition("=")
        if name in labels:
            raise RecipeError(f"--labels: {name} stands twice. Write {name}=VALUE,VALUE.")
        try:
            labels[name] = [int(value) for value in values.split(",")]
        except ValueError as error:
            raise RecipeError(f"--labels: expected NAME=VALUE[,VALUE...], such as tumour=2,3; got {word}.") from error
    return labels


def _closing(done: Prepared) -> str:
    ignored = " --data.ignore_label=255" if done.ignore_label is not None else ""
    labels = "{" + ", ".join(f"{name}: [{value}]" for value, name in done.labels.items()) + "}"
    root = shlex.quote(str(done.folder))
    shards = "" if done.shards is None else f", in {done.shards} shards"
    reader = "ImageFolder --data.source.case_pattern='^(.+)/[^/]+$'" if done.shards is None else "ImageShards"
    return "\n".join(
        [
            f"{done.images} images of {done.cases} cases ({done.empty} without an object) are in {done.folder}{shards}",
            "Train on them with",
            f"  --data.root={root} --data.split.file={shlex.quote(str(done.folder / 'splits.json'))}",
            f"  --data.source=medsam_tune.data.{reader}",
            f"  --data.source.labels={shlex.quote(labels)}{ignored}",
        ]
    )


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune prepare``."""
    parser = OptionParser("medsam-tune prepare", DESCRIPTION)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="the folder that holds the data")
    add("folder", metavar="FOLDER", help="the folder to make; must not exist")
    add("--format", choices=OPTIONS, default="nifti", help="what SOURCE holds; nifti by default")
    add("--images", metavar="DIR", help="folder of the images, below SOURCE")
    add("--masks", metavar="DIR", help="folder of the masks, below SOURCE")
    add("--axis", choices=("sagittal", "coronal", "axial"), help="how volumes are cut; axial by default")
    add("--step", type=int, metavar="N", help="take every N-th slice of a volume")
    add("--window", nargs="+", metavar="W", help=f"a CT window ({', '.join(WINDOW_NAMES)}), or LOW HIGH in stored values")
    add("--percentiles", nargs=2, type=float, metavar=("LOW", "HIGH"), help="without a window; 0.5 99.5 where a rule is needed")
    add("--labels", nargs="+", metavar="NAME=VALUES", help="mask values of each label, such as liver=1 tumour=2,3")
    add("--ignore-label", type=int, help="mask value of pixels that nobody annotated")
    add("--mask-threshold", type=int, help="mask values above it are foreground (images)")
    add("--mask-suffix", help="what a mask's name adds to its image's (images)")
    add("--case-pattern", help="regular expression whose first group is the case (images, npy)")
    add("--patient", metavar="RULE", help="a pattern whose first group is the patient, a .csv file, or header; see docs/data")
    add("--shards", metavar="N|SIZE", help="write tar files of N images each, or of SIZE, such as 500MB")
    add("--skip-empty", action="store_true", help="leave out images without an object; they are kept by default")
    add("--seed", type=int, default=0, help="of the split")
    add("--val-fraction", type=float, default=0.15)
    add("--test-fraction", type=float, default=0.2)
    return parser
