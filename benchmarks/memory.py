"""How much memory do evaluation and report take on large images, on many objects, and on many images?

Usage: python benchmarks/memory.py [report] [objects] [images] [--repeats 1]

Each line is one ``medsam-tune run`` in a process of its own, on images made here, with a tiny network of random weights: two
steps of training, then test, baselines, export, report. Printed is the process's peak resident memory (10^9 bytes), the
imported libraries among it (about 0.6 GB).

report   images of 8000 x 6000 pixels with one object, with the report and without it;
objects  images of 1024 x 1024 pixels with 4, 60 and 400 objects each (``data.target: per_instance``); 60 took 1.19 GB and 400
         1.28 GB when true masks were first held cut to their boxes, 1.27 GB and 2.32 GB before;
images   400 test images of 1000 x 1000 pixels, to see whether the heap grows with the number of images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

RECIPE = """\
# A tiny network on images whose size alone matters.
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny, trainable: [mask_decoder]}}
  prompts: {class_path: medsam_tune.prompts.BoxPrompt}
  objects_per_decode: 8
data:
  root: .
  source: {class_path: medsam_tune.data.ImageFolder}
  target: per_instance
  batch_size: 1
  max_objects: 4
  split: {file: splits.json}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false, limit_train_batches: 2}
"""


def write_images(folder: Path, *, size: tuple[int, int], n_test: int, n_objects: int) -> None:
    """Write a recipe, noise images of ``size`` (H, W) with ``n_objects`` discs in a grid, and the split."""
    random = np.random.default_rng(0)
    mask = discs(size, n_objects)
    names = {"train": ["train0", "train1"], "val": ["val0"], "test": [f"test{number}" for number in range(n_test)]}
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for name in (name for part in names.values() for name in part):
        noise = random.integers(0, 60, (size[0] // 8, size[1] // 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(noise + 150 * mask).save(folder / "images" / f"{name}.png", compress_level=1)
        Image.fromarray(255 * mask).save(folder / "masks" / f"{name}.png", compress_level=1)
    (folder / "splits.json").write_text(json.dumps(names))
    (folder / "memory.yaml").write_text(RECIPE)


def discs(size: tuple[int, int], n_objects: int) -> np.ndarray:
    """Return (H, W) uint8 with ``n_objects`` discs of 1 that do not touch."""
    mask = np.zeros(size, dtype=np.uint8)
    columns = int(np.ceil(np.sqrt(n_objects)))
    step = min(size) // columns
    rows, offsets = np.ogrid[:step, :step]
    disc = (rows - step / 2) ** 2 + (offsets - step / 2) ** 2 < (step / 3) ** 2
    for number in range(n_objects):
        top, left = step * (number // columns), step * (number % columns)
        mask[top : top + step, left : left + step] = disc
    return mask


def peak_gb(folder: Path, *overrides: str) -> float:
    """Run the recipe in a process of its own and return its peak resident memory in 10^9 bytes."""
    words = [sys.executable, "-m", "medsam_tune", "run", "memory.yaml", *overrides]
    environment = {**os.environ, "MEDSAM_TUNE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    log = folder / "log.txt"
    with log.open("w") as file:
        child = subprocess.Popen(words, cwd=folder, env=environment, stdout=file, stderr=file)
        # Unlike getrusage's, these figures are of this one process.
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"the run failed:\n{log.read_text()[-2000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def measure(what: str, *overrides: str, size: tuple[int, int], n_test: int = 1, n_objects: int = 1, repeats: int = 1) -> None:
    """Print one line: the peaks of ``repeats`` runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, size=size, n_test=n_test, n_objects=n_objects)
        peaks = [peak_gb(folder, *overrides) for _ in range(repeats)]
    print(f"{what:<52} {' '.join(f'{peak:6.2f}' for peak in peaks)} GB", flush=True)


def main() -> None:
    """Measure what the command line names; everything by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="report, objects, images; all by default")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each line")
    parser.add_argument("--objects", nargs="+", type=int, default=[4, 60, 400])
    arguments = parser.parse_args()
    what, repeats = arguments.what or ["report", "objects", "images"], arguments.repeats
    if "report" in what:
        measure("8000 x 6000, without report", "--run.report=false", size=(6000, 8000), repeats=repeats)
        measure("8000 x 6000, with report", size=(6000, 8000), repeats=repeats)
    for n_objects in arguments.objects if "objects" in what else ():
        measure(f"1024 x 1024, {n_objects} objects", size=(1024, 1024), n_objects=n_objects, repeats=repeats)
    if "images" in what:
        measure("400 test images of 1000 x 1000", size=(1000, 1000), n_test=400, repeats=repeats)


if __name__ == "__main__":
    main()
