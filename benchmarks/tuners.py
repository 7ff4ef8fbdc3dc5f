"""Which tuner gains most from the same few steps? One row a tuner, on the bundled hippocampus MR and carotid samples.

Usage: python benchmarks/tuners.py fit [--folder runs/tuners] [--steps 40] [--rows LoRA DoRA ...] [--data hippocampus carotid]
       python benchmarks/tuners.py cost [--rows ...]     seconds and memory of one step, each row in a process of its own
       python benchmarks/tuners.py table                 print what has been measured so far, as Markdown

``fit`` runs each recipe through ``medsam-tune run`` with the same data, steps, order of images and prompt; one image and one
box a step. The box is loose: in training and at test each of its sides is moved outward by up to 20 % of the box, the same draw
for every row. Learning rate, schedule and width are each recipe's own. The test takes the weights after the last step; no row
chooses on validation. A row that has been measured is not repeated, so a stopped command goes on; delete its folder to repeat
it. The row ``no tuning`` is the untuned network under the same boxes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_tune.training.run_place import RUNS

if TYPE_CHECKING:
    from medsam_tune.training.module import TuningModule
    from medsam_tune.types import SegmentationBatch

REPOSITORY = Path(__file__).resolve().parents[1]
WARM_UP_STEPS = 1
LOOSE_BOX = "{high: 0.2, unit: fraction}"


@dataclass(frozen=True)
class Row:
    """Name a tuner, the recipe it comes from and what is changed in it."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()


LORA = "--model.tuner.init_args.config.init_args."


def peft_row(name: str, config: str, **settings: object) -> Row:
    """Return the LoRA recipe with another tuner of the peft library on the same layers."""
    given = tuple(f"{LORA}{key}={value}" for key, value in settings.items())
    return Row(name, "lora", (f"--model.tuner.init_args.config=peft.{config}", *given))


SAMED = (
    "--model.tuner=medsam_tune.tuners.SamedTuner",
    "--model.tuner.init_args.rank=4",
    "--model.backbone.trainable=[mask_decoder]",
)
LATE = "--model.tuner.init_args.blocks=[8,11]"
ROWS = (
    Row("no tuning", "decoder"),
    Row("decoder alone", "decoder"),
    Row("full tuning", "full"),
    Row("norm tuning", "norm"),
    Row("bias tuning", "bias"),
    Row("SSF", "ssf"),
    Row("AdaptFormer", "adaptformer"),
    Row("Medical SAM Adapter", "msa"),
    Row("Medical SAM Adapter, last 4 blocks", "msa", (LATE,)),
    Row("SAM-Med2D adapter, decoder", "sam_med2d"),
    Row("FacT", "fact"),
    Row("Conv-LoRA, decoder", "conv_lora"),
    Row("LoRA", "lora"),
    Row("LoRA, last 4 blocks", "lora", (LATE,)),
    Row("DoRA", "lora", (f"{LORA}use_dora=true",)),
    Row("SAMed's LoRA on q and v, decoder", "lora", SAMED),
    peft_row("AdaLoRA", "AdaLoraConfig", init_r=12, target_r=8, tinit=5, tfinal=10, total_step=40),
    peft_row("IA3", "IA3Config", feedforward_modules="[]"),
    Row("ladder network", "ladder"),
)
UNTUNED = ROWS[0]
DATA = {
    "hippocampus": (
        "--data.source.init_args.slices={count: 3, range: [0.2, 0.8]}",
        "--data.source.init_args.train_slices={count: 3, range: [0.2, 0.8]}",
        "--data.split.val_fraction=0.05",
    ),
    "carotid": (
        "--data.source=medsam_tune.data.ImageFolder",
        "--data.source.init_args.case_pattern=^(.+)_slice_",
        "--data.root=sample:carotid",
        "--data.split.val_fraction=0.13",
        "--data.split.test_fraction=0.5",
    ),
}


def words(row: Row, data: str, *, steps: int) -> list[str]:
    """Return the overrides that make all rows comparable, then the row's own."""
    return [
        *DATA[data],
        "--data.batch_size=1",
        "--data.eval_batch_size=1",
        "--model.prompts=medsam_tune.prompts.BoxPrompt",
        f"--model.prompts.init_args.jitter={LOOSE_BOX}",
        f"--model.prompts.init_args.eval_jitter={LOOSE_BOX}",
        f"--trainer.max_steps={steps}",
        "--trainer.max_epochs=1000",
        f"--trainer.val_check_interval={steps}",
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.limit_val_batches=1",
        "--run.report=false",
        "--run.baselines=false",
        *row.overrides,
    ]


def recipe_of(row: Row) -> Path:
    """Return the recipe's file."""
    return REPOSITORY / "recipes" / f"{row.recipe}.yaml"


def finished_run(row: Row, data: str, folder: Path) -> Path | None:
    """Return the newest run of this row that has been tested, or None."""
    return max((path.parent for path in (folder / data / row.name).glob(f"{RUNS}/summary.json")), default=None)


def fit(rows: Iterable[Row], data: Iterable[str], *, folder: Path, steps: int, accelerator: str) -> None:
    """Run what is missing."""
    for name in data:
        for row in rows:
            if finished_run(row, name, folder) is not None:
                continue
            target = folder / name / row.name
            shutil.rmtree(target, ignore_errors=True)
            print(f"{name}: {row.name}", flush=True)
            # A test without a checkpoint takes the network as it is built.
            start = ["test", "--untuned", "--config"] if row is UNTUNED else ["run"]
            command = [*start, str(recipe_of(row)), *words(row, name, steps=steps), f"--run.folder={target}"]
            command.append(f"--trainer.accelerator={accelerator}")
            subprocess.run([sys.executable, "-m", "medsam_tune", *command], check=True)


def cost(rows: Iterable[Row], *, folder: Path, steps: int) -> None:
    """Measure a step of each row in a process of its own, so that peak memory is the row's."""
    for row in rows:
        target = folder / "cost" / f"{row.name}.json"
        if target.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "step", "--rows", row.name, "--steps", str(steps), "--folder", str(folder)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured = found.stdout.strip().splitlines()[-1]
        print(row.name, measured, flush=True)
        target.write_text(measured)


def measure_step(row: Row, *, steps: int, folder: Path) -> dict[str, float]:
    """Train on one image a step; return median seconds of a step and the memory it takes beyond the loaded network, in MB.

    Where the recipe caches the encoder's embeddings, they are at hand. Memory is the peak of the resident set (Linux).
    """
    import torch

    module, batches = build(row, n_batches=WARM_UP_STEPS + steps, folder=folder)
    optimizer = torch.optim.AdamW(module.trainable_parameters(), lr=1e-4)
    # Sets the peak back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before, times = resident_mb("VmRSS"), []
    for batch in batches:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = torch.stack(list(module.segmenter.training_losses(batch, module.loss).values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (statistics.median(column) for column in zip(*times[WARM_UP_STEPS:], strict=True))
    return {"wall": wall, "cpu": cpu, "memory_mb": resident_mb("VmHWM") - before}


def build(row: Row, *, n_batches: int, folder: Path) -> tuple[TuningModule, list[SegmentationBatch]]:
    """Return the row's module in train mode and its first training batches."""
    import torch

    from medsam_tune.training.cli import MedsamCLI

    settings = ["--config", str(recipe_of(row)), *words(row, "hippocampus", steps=n_batches), "--trainer.accelerator=cpu"]
    settings += ["--trainer.logger=false", f"--run.folder={folder / 'cost'}"]
    cli = MedsamCLI(settings, recipe_file=recipe_of(row), command="", run=False)
    cli.discard_unused_folder()
    segmenter = cli.model.segmenter
    batches = list(itertools.islice(cli.datamodule.train_dataloader(), n_batches))
    if cli.datamodule.cache_embeddings:
        with torch.no_grad():
            batches = [
                replace(batch, image_embeddings=segmenter.eval().encode(batch.images, batch.frames)) for batch in batches
            ]
    cli.model.train()
    return cli.model, batches


def resident_mb(name: str) -> float:
    """Return VmRSS (now) or VmHWM (peak) of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def table(*, folder: Path) -> str:
    """Return what has been measured, as a Markdown table; what is missing shows as a dash."""
    lines = [
        "| Tuner | Trained parameters | File | s a step | Memory of a step | "
        + " | ".join(f"Dice, {name}" for name in DATA)
        + " |",
        "|---|---:|---:|---:|---:|" + "---|" * len(DATA),
    ]
    return "\n".join([*lines, *(table_row(row, folder) for row in ROWS)])


def table_row(row: Row, folder: Path) -> str:
    """Return one row of the table."""
    runs = {name: finished_run(row, name, folder) for name in DATA}
    summaries = {name: json.loads((run / "summary.json").read_text()) for name, run in runs.items() if run is not None}
    n_trained, size, seconds, memory = "-", "-", "-", "-"
    run = next((run for run in runs.values() if run is not None), None)
    if row is not UNTUNED and run is not None:
        n_trained = f"{next(iter(summaries.values()))['parameters']['trained']:,}"
        size = f"{sum(file.stat().st_size for file in (run / 'export').glob('*.safetensors')) / 1e6:.2f} MB"
    measured = folder / "cost" / f"{row.name}.json"
    if measured.is_file():
        step = json.loads(measured.read_text())
        seconds, memory = f"{step['wall']:.2f}", f"{step['memory_mb'] / 1024:.2f} GB"
    scores = (dice(summaries[name]["test"]["dice"]) if name in summaries else "-" for name in DATA)
    return f"| {row.name} | {n_trained} | {size} | {seconds} | {memory} | {' | '.join(scores)} |"


def dice(score: dict[str, Any]) -> str:
    """Return the mean and its interval."""
    interval = "" if score["ci95"] is None else f" ({score['ci95'][0]:.3f} to {score['ci95'][1]:.3f})"
    return f"{score['mean']:.3f}{interval}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fit", "cost", "table", "step"], help="step is what cost starts for each row")
    parser.add_argument("--folder", type=Path, default=Path("runs/tuners"), help="where results are kept")
    parser.add_argument("--rows", nargs="+", default=names, choices=names, metavar="ROW", help="rows, by name; all by default")
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--steps", type=int, help="optimizer steps: 40 for fit, 4 timed ones for cost")
    parser.add_argument("--accelerator", default="cpu", help="where fit trains: cpu or gpu; cost is always of the CPU")
    return parser.parse_args()


def main() -> int:
    """Do what the command line asks for."""
    arguments = parse_arguments()
    rows, folder = [row for row in ROWS if row.name in arguments.rows], arguments.folder
    if arguments.what == "fit":
        fit(rows, arguments.data, folder=folder, steps=arguments.steps or 40, accelerator=arguments.accelerator)
    elif arguments.what == "cost":
        cost([row for row in rows if row is not UNTUNED], folder=folder, steps=arguments.steps or 4)
    elif arguments.what == "step":
        print(json.dumps(measure_step(rows[0], steps=arguments.steps, folder=folder)))
    if arguments.what in ("fit", "cost", "table"):
        print(table(folder=folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
