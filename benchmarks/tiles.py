"""How much of a mask can a network's output show at all, whole or in tiles: the best Dice that training could reach.

The true masks are brought to the input, averaged down to the decoder's grid (a quarter of the input's side, as SAM's), and
brought back as a prediction is. No network runs.

Usage: python benchmarks/tiles.py DIR [--side 256] [--tiles 512 256]

DIR holds images/ and masks/ of one foreground value.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch.nn.functional as F

from medsam_tune.data import ImageFolder, SegmentationDataModule, Tiles
from medsam_tune.evaluation.predict import update_metric
from medsam_tune.geometry import InputRule
from medsam_tune.metrics.overlap import OverlapMetric
from medsam_tune.types import MaskPrediction


def ceiling(folder: str, side: int, tiles: Tiles | None) -> float:
    """Return the mean Dice over images of the truth seen through the decoder's grid."""
    data = SegmentationDataModule(ImageFolder(), folder, cache_embeddings=False, tiles=tiles)
    data.open(InputRule(side=side), split=False)
    metric = OverlapMetric()
    for batch in data.predict_dataloader():
        shares = F.interpolate(batch.masks.float(), (side // 4, side // 4), mode="area")
        update_metric(metric, batch, MaskPrediction(shares - 0.5), side)
    return float(metric.compute()["dice"])


def main(words: Sequence[str] | None = None) -> None:
    """Print one line for whole images and one for each size of tiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--tiles", type=int, nargs="*", default=[512, 256])
    options = parser.parse_args(words)
    print(f"whole images: {ceiling(options.folder, options.side, None):.3f}")
    for size in options.tiles:
        print(f"tiles of {size}: {ceiling(options.folder, options.side, Tiles(size)):.3f}")


if __name__ == "__main__":
    main()
