"""``medsam-tune evaluate MODEL DATA --protocol NAME``: models asked as a published study asks, and scored."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from medsam_tune.cli.options import OptionParser
from medsam_tune.cli.table import print_table
from medsam_tune.cli.watched import behind_a_bar
from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from medsam_tune.protocols.base import Protocol
    from medsam_tune.runs.evaluation.job import EvaluationPlan

PROTOCOLS = ("huang", "mazurowski", "prompts", "segment")
_ORACLE_NOTE = "The oracle chooses by the truth, which no user knows: an upper limit, not a result."
_DESCRIPTION = """\
Ask one or more models about data whose masks are known, as a published study asks, and score the answers.

MODEL is a run, an export, the name of released weights, a plain SAM checkpoint FILE, or NAME=FILE where several weights of
`medsam-tune weights list` share its architecture. Several may stand before DATA; they get the same prompts.
DATA is a folder that `medsam-tune init` understands, sample:NAME, or a run: its own data, its test cases alone.

huang       Huang et al. 2024: S1 everything, S2 to S4 points, S5 box, S6 both; prompts moved; attributes of objects
mazurowski  Mazurowski et al. 2023: five modes of points and boxes on the pieces of a class, and up to nine clicks
prompts     Dice against how badly a box is drawn, where a click lies, and the number of clicks
segment     each case once, by tight boxes or without a prompt; volumes are scored in three dimensions

OUT gets objects.csv (and .parquet), summary.json, figure.png and report.html. The same command goes on where it was cut off."""


def main(words: list[str]) -> int:
    """Run ``evaluate`` with its words.

    Raises:
        MedsamTuneError: If a model or the data cannot be used.
    """
    options = parser().parse_intermixed_args(words or ["--help"])
    if len(options.models) < 2:
        raise RecipeError(f"evaluate: expected MODEL and DATA, got {' '.join(options.models)} alone.")
    from medsam_tune.runs.evaluation.job import EvaluationJob
    from medsam_tune.runs.evaluation.outputs import Evaluation, check_parquet

    if options.parquet:
        check_parquet()
    plan, out = _plan(options)
    for fault in plan.data.faults:
        print(f"warning: left out: {' '.join(fault.split())}", file=sys.stderr)
    job = EvaluationJob(plan, out, devices=_devices(options.devices), workers=options.workers, overwrite=options.overwrite)
    try:
        records = behind_a_bar(job.records(), "Evaluating", total=len(job.cases))
    except KeyboardInterrupt:
        print(f"Stopped. The cases that were answered are in {out}; the same command goes on.", file=sys.stderr)
        raise
    evaluation = Evaluation(plan, records, ("medsam-tune", "evaluate", *words))
    _print(evaluation.write(out), out, stood=sum(record.stood for record in records))
    return 0


def parser() -> OptionParser:
    """Return what parses the words."""
    found = OptionParser("medsam-tune evaluate", _DESCRIPTION)
    found.add_argument("models", metavar="MODEL ... DATA", nargs="+", help="models, and last what they are asked about")
    found.add_argument("--protocol", choices=PROTOCOLS, required=True, help="how they are asked")
    found.add_argument("-o", "--out", metavar="OUT", help="by default evaluations/PROTOCOL-DATA")
    found.add_argument("--target", choices=("binary", "per_label", "per_instance"), help="what one object is")
    found.add_argument("--slices", type=int, default=0, metavar="N", help="slices of a volume at most, evenly spread")
    found.add_argument("--seed", type=int, default=0, help="decides whatever is drawn; by default 0")
    found.add_argument("--devices", metavar="LIST", help="such as cpu or cuda:0,cuda:1; by default the GPU where there is one")
    found.add_argument("--workers", type=int, default=0, metavar="N", help="processes; by default one a device")
    found.add_argument("--batch-size", type=int, default=0, metavar="N", help="prompts decoded at once; changes no figure")
    found.add_argument("--parquet", action="store_true", help="refuse to begin where no Parquet table can be written")
    found.add_argument("--overwrite", action="store_true", help="ask again about cases that were answered")
    found.add_argument("--training-too", action="store_true", help="also on the cases that a run was trained on")
    found.add_argument("--checkpoint", metavar="FILE", help="where the base weights lie if they are a file of your own")
    found.add_argument("--trust", action="store_true", help="import classes from outside medsam_tune that a run names")
    studies = found.add_argument_group("huang")
    studies.add_argument("--strategies", metavar="LIST", help="some of S1,...,S6; by default all")
    studies.add_argument("--displacements", metavar="LIST", help="such as 0-10px,5-10%%, or none; else 0-10, 10-20, 20-30 px")
    studies.add_argument("--points-per-side", type=int, default=32, metavar="N", help="grid of S1; by default 32")
    several = found.add_argument_group("huang, mazurowski, prompts")
    several.add_argument("--draws", type=int, default=3, metavar="N", help="draws of each displacement; by default 3")
    several.add_argument("--clicks", type=int, default=9, metavar="N", help="clicks on the error at most; by default 9")
    mazurowski = found.add_argument_group("mazurowski")
    mazurowski.add_argument("--modes", metavar="LIST", help="some of 1,2,3,4,5; by default all")
    mazurowski.add_argument("--errors", choices=("joined", "separate", "both"), default="both", help="where clicks go")
    prompts = found.add_argument_group("prompts")
    prompts.add_argument("--jitter", metavar="LIST", default="0,0.05,0.1,0.2", help="shares of the box that its sides move by")
    prompts.add_argument("--depths", metavar="LIST", default="1,0.75,0.5,0.25,0", help="1 amid the object, 0 at its border")
    segment = found.add_argument_group("segment")
    asked = segment.add_mutually_exclusive_group()
    asked.add_argument("--boxed", action="store_true", help="ask with the tight box of each object")
    asked.add_argument("--automatic", action="store_true", help="ask without a prompt; by default as the model was trained")
    return found


def _plan(options: Namespace) -> tuple[EvaluationPlan, Path]:
    from medsam_tune.runs.evaluation.data import check_not_trained_on, plan_data
    from medsam_tune.runs.evaluation.job import EvaluationPlan

    *models, data = options.models
    name = expand(data, "DATA").name if not data.startswith("sample:") else data.removeprefix("sample:")
    out = expand(options.out or f"evaluations/{options.protocol}-{name}", "OUT")
    protocol = _protocol(options)
    together = options.protocol == "mazurowski"
    plan = plan_data(data, out, target=options.target, together=together, slices=options.slices, trusted=options.trust)
    if not options.training_too:
        check_not_trained_on(models, plan)
    evaluation = EvaluationPlan(
        tuple(models), plan, protocol, options.seed, options.batch_size, options.checkpoint, options.trust
    )
    evaluation.names()
    return evaluation, out


def _protocol(options: Namespace) -> Protocol:
    from medsam_tune.protocols.huang import DISPLACEMENTS, STRATEGIES, HuangSettings
    from medsam_tune.protocols.mazurowski import MODES, ErrorMap, MazurowskiSettings
    from medsam_tune.protocols.questions import Displacement
    from medsam_tune.protocols.segment import SegmentProtocol
    from medsam_tune.protocols.studies import HuangProtocol, MazurowskiProtocol
    from medsam_tune.protocols.sweep import PromptsProtocol

    if options.protocol == "huang":
        asked = options.displacements
        moved = () if asked == "none" else tuple(map(Displacement.parse, _list(asked))) if asked else DISPLACEMENTS
        strategies = tuple(_list(options.strategies)) if options.strategies else tuple(STRATEGIES)
        return HuangProtocol(HuangSettings(strategies, moved, options.draws, options.points_per_side))
    if options.protocol == "mazurowski":
        modes = tuple(f"mode {number}" for number in _list(options.modes)) if options.modes else tuple(MODES)
        errors: tuple[ErrorMap, ...] = ("joined", "separate") if options.errors == "both" else (options.errors,)
        return MazurowskiProtocol(MazurowskiSettings(modes, options.clicks, errors))
    if options.protocol == "prompts":
        shares = {name: tuple(_number(text, name) for text in _list(getattr(options, name))) for name in ("jitter", "depths")}
        return PromptsProtocol(shares["jitter"], shares["depths"], options.clicks, options.draws)
    return SegmentProtocol(True if options.boxed else False if options.automatic else None)


def _devices(named: str | None) -> list[str]:
    import torch

    return _list(named) if named else ["cuda:0" if torch.cuda.is_available() else "cpu"]


def _list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RecipeError(f"--{option}: expected numbers with commas between, got {text!r}.") from error


def _print(summary: Mapping[str, Any], out: Path, *, stood: int) -> None:
    from medsam_tune.runs.evaluation.outputs import ENTRY_HEAD, HEADLINES, PAGE, entry_words

    metric = HEADLINES[summary["protocol"]]
    head = tuple(name.format(metric={"dice": "Dice", "iou": "IoU"}[metric]) for name in ENTRY_HEAD)
    print_table(head, [entry_words(entry, metric) for entry in summary["entries"]], numbers=(head[3], *head[5:]))
    if any(entry["oracle"] for entry in summary["entries"]):
        print(f"\n{_ORACLE_NOTE}")
    there = f", {stood} of them from before" if stood else ""
    without = summary["images_without_object"]
    print(
        f"\n{summary['cases']} cases{there}, {summary['images']} images, {summary['objects']} objects; "
        f"{without} images show none\n{out / PAGE}"
    )
