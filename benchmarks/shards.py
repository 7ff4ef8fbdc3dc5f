"""What a folder of many small images costs as files and as shards: files, bytes on the disk, seconds to open and to read.

``python benchmarks/shards.py FOLDER [--images N]`` writes N images of 32 x 32 and their masks below FOLDER, makes shards of
them, and opens both; what is there already is only opened. File caches are warm: a network share or a cold disk adds its own
time to every file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medsam_tune.data import ImageFolder, ImageShards, SegmentationSource, Splits
from medsam_tune.data.formats.raster import encode_png
from medsam_tune.data.prepare_shards import prepare_shards
from medsam_tune.data.shards.index import INDEX_FILE
from medsam_tune.data.shards.writing import ShardLimit

_CASE = 20
_READ = 2000
_PATTERN = "^(p[^/]+)/"


def write_images(folder: Path, n_images: int) -> None:
    """Write noise with a square, ``images/pCASE/NUMBER.png`` and ``masks/pCASE/NUMBER.png``."""
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 1
    for number in range(n_images):
        image = rng.integers(0, 255, (32, 32), dtype=np.uint8)
        for kind, values in (("images", image), ("masks", mask)):
            path = folder / kind / f"p{number // _CASE:05d}" / f"{number:07d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(values))


def on_disk(folder: Path) -> dict[str, float]:
    """Return the number of files and folders below a folder, and the megabytes that they take in blocks."""
    found = [Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)]
    return {"files and folders": len(found), "MB": round(sum(path.lstat().st_blocks for path in found) * 512 / 1e6, 1)}


def seconds(step: Callable[[], object]) -> dict[str, float]:
    """Return how long a step takes, by the processor's clock and by the one on the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return {"cpu_s": round(time.process_time() - cpu, 2), "wall_s": round(time.perf_counter() - wall, 2)}


def measured(source: SegmentationSource, root: Path) -> dict[str, object]:
    """Return what a folder takes on the disk, and the seconds of opening it and of reading images in random order."""
    found: dict[str, object] = {**on_disk(root), "open": seconds(lambda: source.open(root))}
    order = np.random.default_rng(0).permutation(len(source))[:_READ].tolist()
    found[f"read {len(order)} at random"] = seconds(lambda: [source[index] for index in order])
    return found


def make(flat: Path, sharded: Path, n_images: int) -> dict[str, float]:
    """Write the images and the shards, and return the seconds of preparing the shards."""
    write_images(flat, n_images)
    source = ImageFolder(case_pattern=_PATTERN)
    source.open(flat)
    limit = ShardLimit(images=1000)
    return seconds(lambda: prepare_shards(source, sharded, limit=limit, splits=Splits((), (), ()), checksums={}))


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    flat, sharded = options.folder / "flat", options.folder / "sharded"
    os.environ.setdefault("MEDSAM_TUNE_CACHE", str(options.folder / "cache"))
    found: dict[str, object] = {} if sharded.is_dir() else {"prepare": make(flat, sharded, options.images)}
    found |= {"flat": measured(ImageFolder(case_pattern=_PATTERN), flat), "sharded": measured(ImageShards(), sharded)}
    aside = (sharded / INDEX_FILE).rename(options.folder / INDEX_FILE)
    found["without an index"] = {name: seconds(lambda: ImageShards().open(sharded)) for name in ("open first", "open again")}
    aside.rename(sharded / INDEX_FILE)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
