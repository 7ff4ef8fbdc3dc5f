"""What a folder of many small images costs as files and as shards: files, bytes on the disk, seconds to open and to read.

``python benchmarks/shards.py FOLDER [--images N]`` writes N images of 32 x 32 and their masks below FOLDER, makes shards of
them, and opens both. File caches are warm: a network share or a cold disk adds its own time to every file.
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
from medsam_tune.data.checks import check_cases
from medsam_tune.data.formats.raster import encode_png
from medsam_tune.data.prepare_shards import prepare_shards
from medsam_tune.data.shards.index import INDEX_FILE
from medsam_tune.data.shards.writing import ShardLimit

_CASE = 20
_READ = 2000


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


def seconds(step: Callable[[], object]) -> float:
    """Return how long a step takes."""
    start = time.perf_counter()
    step()
    return round(time.perf_counter() - start, 2)


def measured(make: Callable[[], SegmentationSource], root: Path) -> dict[str, float]:
    """Return the seconds of opening, of checking every case once and again, and of reading in random order."""
    source = make()
    found = {"open": seconds(lambda: source.open(root))}
    cache = root.parent / f"cache-{root.name}"
    found["read all once"] = seconds(lambda: check_cases(source, cache=cache))
    found["remembered"] = seconds(lambda: check_cases(source, cache=cache))
    order = np.random.default_rng(0).permutation(len(source))[:_READ].tolist()
    found[f"read {len(order)} at random"] = seconds(lambda: [source[index] for index in order])
    return found


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    flat, sharded = options.folder / "flat", options.folder / "sharded"
    os.environ.setdefault("MEDSAM_TUNE_CACHE", str(options.folder / "cache"))
    write_images(flat, options.images)
    source = ImageFolder(case_pattern="^(p[^/]+)/")
    source.open(flat)
    limit = ShardLimit(images=1000)
    writing = seconds(lambda: prepare_shards(source, sharded, limit=limit, splits=Splits((), (), ()), checksums={}))
    found = {"flat": {**on_disk(flat), **measured(lambda: ImageFolder(case_pattern="^(p[^/]+)/"), flat)}}
    found["sharded"] = {**on_disk(sharded), "write": writing, **measured(ImageShards, sharded)}
    (sharded / INDEX_FILE).unlink()
    found["without an index"] = {name: seconds(lambda: ImageShards().open(sharded)) for name in ("open first", "open again")}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
