"""Does pretraining on unlabelled images help with few labelled ones? Paired, on the bundled hippocampus sample.

Usage: python benchmarks/pretraining.py [--folder runs/pretraining] [--seeds 0 1 2] [--labelled 4 28] [--weights lite_medsam]
           [--side 64] [--epochs 6] [--steps 160] [--learns mask_decoder]

One split for all: 28 cases to train on, 4 to validate, 8 to test. For each seed the image encoder is pretrained on the 28 + 4
cases without their masks (``recipes/pretrain.yaml``). Then ``recipes/medsam_box.yaml`` (true boxes, both parts of the
hippocampus as one object) is run for ``--steps`` steps on 28 labelled cases and on 4 of them, drawn by the seed, once from the
weights as they were and once from the pretrained ones. Printed are the test Dice of each and the difference by case, each case
with its mean over the seeds, with the 95 % interval over cases. What is finished is not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path

import numpy as np

from medsam_tune import Run
from medsam_tune.data.sample import sample_folder
from medsam_tune.data.split_file import save_splits
from medsam_tune.data.splits import Splits, make_splits
from medsam_tune.evaluation.case_tables import read_case_table
from medsam_tune.metrics.interval import mean_interval
from medsam_tune.training.run_place import RUNS

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ALL = 28


def finished(folder: Path) -> Path | None:
    """Return the run below a folder that has ended, or None."""
    return next((path.parent for path in sorted(folder.glob(f"{RUNS}/summary.json"))), None)


def run(recipe: str, folder: Path, **overrides: object) -> Path:
    """Run a recipe in this process unless that was done; return its folder."""
    if (there := finished(folder)) is not None:
        return there
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    words = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items()]
    made = Run.from_recipe(RECIPES / recipe, [*words, f"--run.folder={folder}"])
    made.fit().finish()
    return made.folder


def labelled_folder(folder: Path, seed: int, count: int) -> tuple[Path, Path]:
    """Return a folder with ``count`` of the 28 training cases and all others, and the file of its split."""
    sample = sample_folder("hippocampus")
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (sample / "images").iterdir())
    whole = make_splits(cases, seed=0, val_fraction=0.1, test_fraction=0.2)
    drawn = tuple(sorted(random.Random(seed).sample(whole.train, len(whole.train))[:count]))
    data, split = folder / f"data_{seed}_{count}", folder / f"split_{seed}_{count}.json"
    for part in ("images", "labels"):
        (data / part).mkdir(parents=True, exist_ok=True)
        for case in (*drawn, *whole.val, *whole.test):
            shutil.copy(sample / part / f"{case}.nii.gz", data / part)
    save_splits(Splits(drawn, whole.val, whole.test), split)
    return data, split


def dice_of(folder: Path) -> dict[str, float]:
    """Return the test Dice of each case."""
    return dict(read_case_table(folder / "test_cases.csv").dice)


def told(values: list[float]) -> str:
    """Return the mean with its 95 % interval."""
    found = mean_interval(values)
    return f"{np.mean(values):+.4f}" + ("" if found is None else f" ({found.low:+.4f} to {found.high:+.4f})")


def main() -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labelled", type=int, nargs="+", default=[4, 28])
    parser.add_argument("--weights", default="lite_medsam")
    parser.add_argument("--learns", nargs="+", default=["mask_decoder"])
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--cell", type=int, default=8)
    parser.add_argument("--pretrain-lr", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=160)
    options = parser.parse_args()
    folder = options.folder.absolute()
    scores: dict[tuple[int, str], list[dict[str, float]]] = {}
    for seed in options.seeds:
        _, split = labelled_folder(folder, seed, ALL)
        pretrained = run(
            "pretrain.yaml",
            folder / f"pretrained_{seed}",
            seed_everything=seed,
            model__backbone__weights=options.weights,
            model__backbone__side=options.side,
            model__backbone__seed=seed,
            model__task__cell_px=options.cell,
            data__split__file=str(split),
            data__source__train_slices={"count": 3, "range": [0.2, 0.8]},
            data__source__slices={"count": 4, "range": [0.2, 0.8]},
            model__optimizer__lr=options.pretrain_lr,
            trainer__max_epochs=options.epochs,
        )
        print(json.loads((pretrained / "summary.json").read_text())["verdict"]["text"], flush=True)
        for count in options.labelled:
            data, split = labelled_folder(folder, seed, count)
            for start, weights in (("as it was", options.weights), ("pretrained", str(pretrained))):
                tuned = run(
                    "medsam_box.yaml",
                    folder / f"{start.replace(' ', '_')}_{count}_{seed}",
                    seed_everything=seed,
                    model__backbone__weights=weights,
                    model__backbone__side=options.side,
                    model__backbone__seed=seed,
                    model__backbone__trainable=options.learns,
                    model__optimizer__lr=options.lr,
                    data__cache_embeddings=options.learns == ["mask_decoder"],
                    model__prompts__jitter={"high": 1},
                    data__target="binary",
                    data__root=str(data),
                    data__split__file=str(split),
                    data__source="medsam_tune.data.NiftiVolumes",
                    data__source__axis="coronal",
                    data__source__percentiles=[0.5, 99.5],
                    data__source__train_slices={"count": 3, "range": [0.2, 0.8]},
                    trainer__check_val_every_n_epoch=None,
                    trainer__val_check_interval=options.steps // 4,
                    data__source__slices={"count": 4, "range": [0.2, 0.8]},
                    trainer__max_steps=options.steps,
                    trainer__max_epochs=-1,
                    run__baselines=False,
                    run__report=False,
                )
                scores.setdefault((count, start), []).append(dice_of(tuned))
                print(
                    f"seed {seed}, {count} labelled, {start}: {np.mean(list(scores[count, start][-1].values())):.4f}",
                    flush=True,
                )
    report(scores, options.labelled)


def report(scores: dict[tuple[int, str], list[dict[str, float]]], counts: list[int]) -> None:
    """Print the means and the differences by case."""
    for count in counts:
        means = {
            start: {case: float(np.mean([each[case] for each in scores[count, start]])) for case in scores[count, start][0]}
            for start in ("as it was", "pretrained")
        }
        for start, values in means.items():
            print(f"{count} labelled, {start}: {told(list(values.values()))}")
        gains = [means["pretrained"][case] - means["as it was"][case] for case in means["as it was"]]
        print(f"{count} labelled, gain by case: {told(gains)}")


if __name__ == "__main__":
    main()
