"""How much does Dice lose when the box is drawn badly, before and after tuning? A figure and a table.

Usage: python benchmarks/jitter.py [--folder runs/jitter] [--jitter 0 0.05 0.1 0.2] [--draws 3] [--figure FILE.png]

On each bundled sample ``recipes/medsam_box.yaml`` is run twice: as it stands (in training each side of the box moves 0 to 5 px
outward) and with a training jitter of up to 20 % of the box, in or out. A run that is finished is not repeated. Then the
untuned network and both tuned ones get the same boxes on the test cases: every side is moved by exactly j of the box's width or
height, outward or inward at random. Dice is the mean over cases; each case enters with its mean over the draws.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.metrics.interval import mean_interval
from medsam_tune.training.run_place import RUNS

if TYPE_CHECKING:
    from medsam_tune.backbone.base import Backbone
    from medsam_tune.types import SegmentationBatch

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = REPOSITORY / "recipes" / "medsam_box.yaml"
DATA = {
    "hippocampus": (),
    "carotid": (
        "--data.source=medsam_tune.data.ImageFolder",
        "--data.source.init_args.case_pattern=^(.+)_slice_",
        "--data.root=sample:carotid",
        "--data.source.init_args.labels={artery: [255]}",
        "--data.split.test_fraction=0.5",
        "--trainer.max_epochs=40",
    ),
}
TRAINING = {
    "tuned": (),
    "tuned, jitter 20 %": ("--model.prompts.init_args.jitter={high: 0.2, unit: fraction, signed: true}",),
}
BEFORE = "untuned"


@dataclass(frozen=True)
class Point:
    """Hold the Dice of one network under boxes moved by ``jitter``."""

    data: str
    network: str
    jitter: float
    dice: float
    low: float
    high: float
    n_cases: int


def finished_run(folder: Path) -> Path | None:
    """Return the newest tested run below ``folder``, or None."""
    return max((path.parent for path in folder.glob(f"{RUNS}/summary.json")), default=None)


def tuned_run(data: str, training: str, folder: Path) -> Path:
    """Return the run of a sample and a training jitter, made if it is missing."""
    target = folder / data / training.replace(" %", "").replace(", ", "_").replace(" ", "_")
    if finished_run(target) is None:
        words = ["run", str(RECIPE), *DATA[data], *TRAINING[training], f"--run.folder={target}", "--run.report=false"]
        subprocess.run([sys.executable, "-m", "medsam_tune", *words], check=True)
    found = finished_run(target)
    if found is None:
        sys.exit(f"{target}: the run ended without a summary.json")
    return found


def test_batches(run: Path) -> list[SegmentationBatch]:
    """Return the run's test batches with their embeddings; the encoder stays frozen in all networks, so it runs once."""
    import torch

    from medsam_tune.backbone import SamBackbone
    from medsam_tune.training.cli import MedsamCLI

    cli = MedsamCLI(["--config", str(run / "config.yaml"), "--trainer.logger=false"], recipe_file=RECIPE, command="", run=False)
    cli.discard_unused_folder()
    backbone = SamBackbone("lite_medsam").eval()
    with torch.no_grad():
        return [
            replace(batch, image_embeddings=backbone.pack(backbone.encode(batch.encoder_input())))
            for batch in cli.datamodule.test_dataloader()
        ]


def load_network(run: Path | None) -> Backbone:
    """Return the tuned backbone of a run, or the untuned one."""
    from medsam_tune import SamBackbone, SamSegmenter, load_export

    if run is None:
        return SamBackbone("lite_medsam")
    segmenter = load_export(run / "export").segmenter
    if not isinstance(segmenter, SamSegmenter):
        sys.exit(f"{run}: expected a SAM, got {type(segmenter).__name__}")
    return segmenter.backbone


def scores_by_case(
    backbone: Backbone, batches: Sequence[SegmentationBatch], jitter: float, draws: int
) -> dict[int, list[float]]:
    """Return each case's Dice in every draw."""
    from medsam_tune.evaluation.baselines import evaluate_segmenters
    from medsam_tune.prompts import BoxJitter, BoxPrompt
    from medsam_tune.segmenters import SamParts, SamSegmenter

    moved = BoxPrompt(eval_jitter=BoxJitter(jitter, jitter, unit="fraction", signed=True))
    asked = {"box": SamSegmenter(SamParts(backbone, moved, objects_per_decode=4))}
    found: dict[int, list[float]] = defaultdict(list)
    for seed in range(draws if jitter else 1):
        scores = evaluate_segmenters(asked, [replace(batch, seed=seed) for batch in batches])["box"]
        for case, dice in zip(scores.scored_cases().tolist(), scores.case_dice().tolist(), strict=True):
            found[case].append(dice)
    return found


def measure(
    data: str, network: str, run: Path | None, batches: Sequence[SegmentationBatch], *, jitter: float, draws: int
) -> Point:
    """Score a network on the test cases under boxes moved by ``jitter``."""
    cases = [statistics.mean(values) for values in scores_by_case(load_network(run), batches, jitter, draws).values()]
    interval = mean_interval(cases, bounds=(0, 1))
    low, high = (math.nan, math.nan) if interval is None else (interval.low, interval.high)
    return Point(data, network, jitter, statistics.mean(cases), low, high, len(cases))


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw one panel a sample, one curve a network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.6), dpi=120, layout="constrained")
    colours = dict(zip((BEFORE, *TRAINING), ("#7d8590", "#2F8FD0", "#D9822B"), strict=True))
    for axes, data in zip(figure.subplots(1, len(DATA)), DATA, strict=True):
        for network, colour in colours.items():
            curve = [point for point in points if (point.data, point.network) == (data, network)]
            x = [100 * point.jitter for point in curve]
            axes.plot(x, [point.dice for point in curve], "o-", color=colour, label=network)
            axes.fill_between(x, [p.low for p in curve], [p.high for p in curve], color=colour, alpha=0.15, linewidth=0)
        axes.set_title(f"{data} ({curve[0].n_cases} test cases)", fontsize=11)
        axes.set_xticks(x)
        axes.set_xlabel("each side of the box moved by (%)")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("Dice, mean and 95 % interval")
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, facecolor="white")


def table(points: Sequence[Point]) -> str:
    """Return the points as Markdown, one row a network."""
    jitters = list(dict.fromkeys(point.jitter for point in points))
    head = " | ".join(f"{jitter:.0%}" for jitter in jitters)
    lines = [f"| Sample | Network | {head} |", "|---|---|" + "---|" * len(jitters)]
    rows: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in points:
        rows[point.data, point.network].append(point)
    for (data, network), row in rows.items():
        cells = (f"{point.dice:.3f} ({point.low:.3f} to {point.high:.3f})" for point in row)
        lines.append(f"| {data} | {network} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_csv(points: Sequence[Point], path: Path) -> None:
    """Write the points, one a line."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Point.__annotations__))
        writer.writeheader()
        writer.writerows(vars(point) for point in points)


def main() -> None:
    """Train what is missing, measure, write jitter.csv and the figure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/jitter"), help="where runs and results are kept")
    parser.add_argument("--jitter", nargs="+", type=float, default=[0.0, 0.05, 0.1, 0.2], help="moves as a share of the box")
    parser.add_argument("--draws", type=int, default=3, help="draws of each move")
    parser.add_argument("--figure", type=Path, help="default FOLDER/jitter.png")
    arguments = parser.parse_args()
    points: list[Point] = []
    for data in DATA:
        runs: Mapping[str, Path] = {training: tuned_run(data, training, arguments.folder) for training in TRAINING}
        batches = test_batches(next(iter(runs.values())))
        for network, run in {BEFORE: None, **runs}.items():
            for jitter in arguments.jitter:
                points.append(measure(data, network, run, batches, jitter=jitter, draws=arguments.draws))
                print(points[-1], flush=True)
    write_csv(points, arguments.folder / "jitter.csv")
    draw(points, arguments.figure or arguments.folder / "jitter.png")
    print(table(points))


if __name__ == "__main__":
    main()
