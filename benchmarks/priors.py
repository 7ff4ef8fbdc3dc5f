"""How much faster are automatic masks made here than by segment-anything's own generator, with the same masks?

Usage: python benchmarks/priors.py [--weights lite_medsam] [--images 3] [--points-per-side 8] [--threads 2]

Both find the masks of the same bundled ultrasound images with the same weights and thresholds, in one process and in turn, so
that a busy machine slows both alike. A time holds one encoder pass and everything after it; the library's generator reads and
normalises an image as the weights expect, which its own predictor does for SAM's weights alone. Kept masks are compared pixel
by pixel, and scores. Two sets of thresholds: SAMAug's, and loose ones that many masks pass, since under points LiteMedSAM,
trained with boxes alone, has low scores. On a busy machine read the CPU seconds, best with --threads 1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from torch import Tensor

from medsam_tune.backbone import SamBackbone
from medsam_tune.data import ImageFolder
from medsam_tune.data.sample import sample_folder
from medsam_tune.geometry import image_to_input
from medsam_tune.inference.automatic import AutomaticMaskGenerator
from medsam_tune.precompute.prior_settings import PriorSettings
from medsam_tune.types import AutomaticMasks, EncoderInput

Result = TypeVar("Result")
SCORE_TOLERANCE = 1e-4
THRESHOLDS: dict[str, dict[str, float]] = {
    "SAMAug's thresholds": {},
    "loose thresholds": {"pred_iou_thresh": 0.15, "stability_score_thresh": 0.0},
}
WIDTHS = (6, 5, 12, 10, 9, 7, 7, 9, 7, 7)


@dataclass(frozen=True)
class Timed:
    """Hold one image's (wall, CPU) seconds by the library and by us, and how the masks compare."""

    library: tuple[float, float]
    ours: tuple[float, float]
    masks: tuple[int, int]
    different_pixels: int | None
    largest_score_difference: float

    def cells(self) -> list[str]:
        """Return one line of the table."""
        pixels = "other masks" if self.different_pixels is None else str(self.different_pixels)
        times = [(theirs, ours, ours / theirs) for theirs, ours in zip(self.library, self.ours, strict=True)]
        return [
            *(str(count) for count in self.masks),
            pixels,
            f"{self.largest_score_difference:.1e}",
            *(f"{value:.2f}" for time_ in times for value in time_),
        ]


def library_generator(backbone: SamBackbone, settings: PriorSettings) -> SamAutomaticMaskGenerator:
    """Return segment_anything's generator around the backbone's modules; only its reading of an image is replaced."""
    sam = Sam(backbone.image_encoder, backbone.prompt_encoder, backbone.mask_decoder)
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=settings.points_per_side,
        pred_iou_thresh=settings.pred_iou_thresh,
        stability_score_thresh=settings.stability_score_thresh,
        stability_score_offset=settings.stability_score_offset,
        box_nms_thresh=settings.box_nms_thresh,
    )
    predictor = generator.predictor

    def set_image(image: np.ndarray) -> None:
        image_in, frame = image_to_input(torch.from_numpy(image).permute(2, 0, 1).float(), backbone.input_rule)
        predictor.original_size, predictor.input_size = frame.original_size, frame.input_size
        predictor.features = backbone.encode(EncoderInput(image_in[None], (frame,))).main
        predictor.is_image_set = True

    predictor.set_image = set_image
    return generator


def timed(work: Callable[[], Result]) -> tuple[Result, tuple[float, float]]:
    """Return what ``work`` returns and its (wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def compare(ours: AutomaticMasks, theirs: list[dict[str, Any]]) -> tuple[int | None, float]:
    """Return the number of pixels that differ over all masks and the largest difference of a score; None if not as many."""
    if len(ours.masks) != len(theirs):
        return None, float("nan")
    if not theirs:
        return 0, 0.0
    theirs = sorted(theirs, key=lambda record: -record["predicted_iou"])
    pixels = int((ours.masks.numpy() != np.stack([record["segmentation"] for record in theirs])).sum())
    ious = ours.predicted_iou - torch.tensor([record["predicted_iou"] for record in theirs])
    stability = ours.stability_score - torch.tensor([record["stability_score"] for record in theirs])
    return pixels, float(torch.stack([ious, stability]).abs().max())


def measure(image: Tensor, library: SamAutomaticMaskGenerator, generator: AutomaticMaskGenerator, *, ours_first: bool) -> Timed:
    """Make one image's masks both ways and compare them."""
    array = image.permute(1, 2, 0).to(torch.uint8).numpy()
    if ours_first:
        found, ours_seconds = timed(lambda: generator.generate(image))
    theirs, library_seconds = timed(lambda: library.generate(array))
    if not ours_first:
        found, ours_seconds = timed(lambda: generator.generate(image))
    # The library keeps masks without a pixel where the stability threshold is 0; we drop them.
    theirs = [record for record in theirs if record["area"]]
    return Timed(library_seconds, ours_seconds, (len(theirs), len(found.masks)), *compare(found, theirs))


def sample_images(count: int) -> list[Tensor]:
    """Return the first bundled ultrasound images (3, H, W), rounded to 8 bits, which the library needs."""
    source = ImageFolder()
    source.open(sample_folder("carotid"), require_masks=False)
    return [source[index].image.round() for index in range(count)]


def print_table(name: str, rows: list[Timed]) -> None:
    """Print one line an image, and the medians of the ratios."""
    wall, cpu = (statistics.median(row.ours[i] / row.library[i] for row in rows) for i in range(2))
    equal = all(row.different_pixels == 0 and row.largest_score_difference < SCORE_TOLERANCE for row in rows)
    heads = [
        ["masks", "", "different", "score", "wall s", "", "", "CPU s", "", ""],
        ["theirs", "ours", "pixels", "difference", *("theirs", "ours", "ratio") * 2],
    ]
    print(f"\n{name}")
    for cells in [*heads, *(row.cells() for row in rows)]:
        print(" ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)))
    print(f"median ratio, ours to theirs: wall {wall:.2f}, CPU {cpu:.2f}; masks and scores equal: {'yes' if equal else 'NO'}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="lite_medsam", help="a name of `medsam-tune weights list`, or random_vit_b")
    parser.add_argument("--images", type=int, default=3, help="different images")
    parser.add_argument("--points-per-side", type=int, default=8, help="side of the grid of points; SAMAug's is 32")
    parser.add_argument("--prompts-per-batch", type=int, default=None, help="ours; the library's is 64")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    return parser.parse_args()


def main() -> None:
    """Measure each image under each set of thresholds and print the tables."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    backbone = SamBackbone(arguments.weights).eval()
    images = sample_images(arguments.images)
    for name, thresholds in THRESHOLDS.items():
        settings = replace(PriorSettings(arguments.weights, points_per_side=arguments.points_per_side), **thresholds)
        library = library_generator(backbone, settings)
        generator = AutomaticMaskGenerator(backbone, settings, prompts_per_batch=arguments.prompts_per_batch)
        generator.generate(images[0])
        rows = [measure(image, library, generator, ours_first=bool(number % 2)) for number, image in enumerate(images)]
        print_table(name, rows)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{arguments.weights}, {arguments.points_per_side} points a side, {torch.get_num_threads()} threads, load {load}")


if __name__ == "__main__":
    main()
