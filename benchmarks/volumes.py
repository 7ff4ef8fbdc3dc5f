"""What does it cost, and what does it gain, that the slices of a volume see each other?

Usage: python benchmarks/volumes.py cost [--weights random_tiny] [--side 64]      a training step of each against its 2-D form
       python benchmarks/volumes.py compare [--weights lite_medsam] [--side 64] [--seeds 3] [--seconds 60] [--stride 1]
       python benchmarks/volumes.py table [--folder runs/volumes]                 print what has been compared, as Markdown

``compare`` trains each way on the bundled hippocampus MR volumes for the same CPU seconds (of the process, reading included)
and predicts all slices of every test volume: a network slice by slice, with neighbours as colours (2.5-D), with MA-SAM's
adapters, with SD-Trans, and a 3-D U-Net of MONAI from scratch. All but the U-Net are one network, asked for one mask without a
prompt: released weights with the mask decoder learning, or fresh ones (``random_...``) that learn as a whole. Slice by
slice and 2.5-D have MA-SAM's adapters too, on chunks of one slice, so that what differs is depth alone. Seeds change fresh
weights, order and slices, the split stays. Dice is that of the volume: pixels of all slices are counted together. The mean
over seeds is a patient's number; intervals are Student's t over patients, and of differences they are paired by patient.
What was measured is not repeated; delete its file to repeat it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.segmenters.sam import SamSegmenter
    from medsam_tune.tuners.base import Tuner

CHUNK, WIDTH, LEARNING_RATE = 5, 32, 1e-3
UNET_GRID = (48, 64, 48)
SLICES, UNET = "slice by slice", "3-D U-Net"
Dice = dict[str, float]


@dataclass(frozen=True)
class Way:
    """Name a way of showing a network its neighbours: slices that travel together, colours, and what is inserted."""

    name: str
    chunk: int
    channels: str
    tuner: str


WAYS = (
    Way(SLICES, 1, "stored", "volume"),
    Way("2.5-D", 1, "neighbours", "volume"),
    Way("MA-SAM's adapters", CHUNK, "stored", "volume"),
    Way("SD-Trans", CHUNK, "stored", "space_depth"),
)


def make_tuner(kind: str) -> Tuner:
    """Return a fresh tuner, of one width for all."""
    from medsam_tune.tuners import BottleneckAdapter, DepthwiseAdapter, SpaceDepthAdapter, VolumeAdapter

    made: dict[str, Callable[[], Tuner]] = {
        "volume": lambda: VolumeAdapter(WIDTH),
        "space_depth": lambda: SpaceDepthAdapter(rank=WIDTH, decoder="none"),
        "depthwise": lambda: DepthwiseAdapter(rank=WIDTH),
        "plane": lambda: BottleneckAdapter(rank=WIDTH, decoder="none"),
    }
    return made[kind]()


def make_network(weights: str, side: int, tuner: str, *, seed: int = 0) -> SamSegmenter:
    """Return a network that gives every pixel to the object or the background."""
    from medsam_tune.backbone import SamBackbone
    from medsam_tune.segmenters import SamParts, SemanticSegmenter

    learning = ["mask_decoder", "prompt_encoder.no_mask_embed"]
    if weights.startswith("random_"):
        learning = ["image_encoder", *learning]
    backbone = SamBackbone(weights, side=side, trainable=learning, seed=seed)
    return SemanticSegmenter(SamParts(backbone, tuner=make_tuner(tuner)), ["hippocampus"])


def open_data(way: Way, network: SamSegmenter, *, seed: int, stride: int) -> SegmentationDataModule:
    """Return the hippocampus volumes as a way shows them: five slices a step, whether they travel together or not."""
    from medsam_tune.data import NiftiVolumes, SegmentationDataModule
    from medsam_tune.data.splits import SplitSettings

    data = SegmentationDataModule(
        NiftiVolumes(axis="coronal", percentiles=(0.5, 99.5), labels={"hippocampus": [1, 2]}),
        "sample:hippocampus",
        "per_class",
        batch_size=CHUNK // way.chunk,
        eval_batch_size=8,
        split=SplitSettings(seed=0, val_fraction=0.15, test_fraction=0.15),
        cache_embeddings=False,
        seed=seed,
        chunk=way.chunk,
        chunk_stride=min(stride, way.chunk),
        channels=way.channels,  # type: ignore[arg-type]
    )
    data.open(network.input_rule)
    return data


def endless(data: SegmentationDataModule) -> Iterator[Any]:
    """Yield training batches, epoch after epoch."""
    epoch = 0
    while True:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader
        epoch += 1


def train_for(seconds: float, step: Callable[[], torch.Tensor], parameters: list[Any]) -> int:
    """Train by AdamW until the process has used so many CPU seconds; return the steps taken."""
    import torch

    optimizer, begun, steps = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01), time.process_time(), 0
    while time.process_time() - begun < seconds:
        optimizer.zero_grad(set_to_none=True)
        step().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steps += 1
    return steps


def run_way(way: Way, *, seed: int, seconds: float, weights: str, side: int, stride: int) -> dict[str, Any]:
    """Train one way and return its steps, its seconds of prediction and the Dice of each test volume."""
    import torch

    from medsam_tune.inference.stitching import answer
    from medsam_tune.losses import SoftmaxDiceLoss

    torch.manual_seed(seed)
    network = make_network(weights, side, way.tuner, seed=seed)
    data = open_data(way, network, seed=seed, stride=stride)
    network.backbone.train()
    batches, loss = endless(data), SoftmaxDiceLoss()

    def step() -> torch.Tensor:
        return torch.stack(list(network.training_losses(next(batches), loss).values())).sum()

    steps = train_for(seconds, step, [p for p in network.parameters() if p.requires_grad])
    network.eval()
    begun, counts = time.process_time(), Counts()
    with torch.no_grad():
        for batch in data.test_dataloader():
            counts.add_batch(batch, answer(network, batch), side)
    return {"steps": steps, "predict_seconds": time.process_time() - begun, "dice": counts.dice()}


class Counts:
    """Count the voxels of each volume over its slices: predicted and true, predicted, true."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}

    def add(self, case: str, predicted: torch.Tensor, true: torch.Tensor) -> None:
        """Add masks of any shape."""
        found = self._counts.setdefault(case, [0, 0, 0])
        for place, value in enumerate((predicted & true, predicted, true)):
            found[place] += int(value.sum())

    def add_batch(self, batch: Any, prediction: Any, side: int) -> None:  # noqa: ANN401 - types are imported late here
        """Add the slices of a batch at their own size."""
        from medsam_tune.evaluation.predict import predict_masks

        for row, masks in enumerate(predict_masks(prediction, batch, side)):
            self.add(batch.case_ids[row], masks[0].cpu(), batch.original_masks[row].dense()[0])

    def dice(self) -> Dice:
        """Return 2 |A and B| / (|A| + |B|) of each volume; every volume of the sample shows the object."""
        return {case: 2 * both / (first + second) for case, (both, first, second) in self._counts.items()}


def whole_volumes(data: SegmentationDataModule, stage: str) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield name, grey values (D, H, W) in 0..1 and mask (D, H, W) of each volume of a stage."""
    import torch

    source, cases = data.source, data.source.case_ids()
    for case in getattr(data.splits, stage):
        samples = [source[index] for index, name in enumerate(cases) if name == case]
        yield (
            case,
            torch.stack([sample.image[0] for sample in samples]) / 255,
            torch.stack([sample.masks.union() for sample in samples]),
        )


def run_unet(*, seed: int, seconds: float) -> dict[str, Any]:
    """Train MONAI's 3-D U-Net from scratch on whole volumes, padded or cut to one grid, for the same CPU seconds."""
    import torch
    from monai.losses.dice import DiceCELoss
    from monai.networks.nets.unet import UNet
    from monai.transforms.croppad.array import ResizeWithPadOrCrop

    torch.manual_seed(seed)
    data = open_data(WAYS[0], make_network("random_tiny", 64, "volume"), seed=0, stride=1)
    network = UNet(3, 1, 2, channels=(8, 16, 32, 64), strides=(2, 2, 2), num_res_units=2)
    loss, fit = DiceCELoss(to_onehot_y=True, softmax=True), ResizeWithPadOrCrop(UNET_GRID)
    volumes = list(whole_volumes(data, "train"))
    generator = torch.Generator().manual_seed(seed)

    def step() -> torch.Tensor:
        rows = torch.randint(len(volumes), (2,), generator=generator).tolist()
        images = torch.stack([torch.as_tensor(fit(volumes[row][1][None])) for row in rows])
        masks = torch.stack([torch.as_tensor(fit(volumes[row][2][None].float())) for row in rows])
        found: torch.Tensor = loss(network(images.float()), masks)
        return found

    steps, counts = train_for(seconds, step, list(network.parameters())), Counts()
    network.eval()
    begun = time.process_time()
    with torch.no_grad():
        for case, image, mask in whole_volumes(data, "test"):
            inside = torch.as_tensor(network(torch.as_tensor(fit(image[None]))[None].float())).argmax(dim=1)
            back = torch.as_tensor(ResizeWithPadOrCrop(tuple(mask.shape))(inside))[0].bool()
            counts.add(case, back, mask)
    return {"steps": steps, "predict_seconds": time.process_time() - begun, "dice": counts.dice()}


def compare(*, seeds: int, seconds: float, weights: str, side: int, stride: int, folder: Path) -> None:
    """Run what is missing, seed by seed, so that a stopped comparison has whole seeds."""
    for seed in range(seeds):
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            way.name: partial(run_way, way, seed=seed, seconds=seconds, weights=weights, side=side, stride=stride)
            for way in WAYS
        }
        runs[UNET] = partial(run_unet, seed=seed, seconds=seconds)
        for name, run in runs.items():
            target = folder / f"{name.replace(' ', '_')}_{seed}.json"
            if target.is_file():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            print(f"seed {seed}: {name}", flush=True)
            settings = {"way": name, "seed": seed, "weights": weights, "seconds": seconds, "side": side, "stride": stride}
            target.write_text(json.dumps({**settings, **run()}))


def table(folder: Path) -> str:
    """Return the comparison as Markdown: means over the patients, with intervals, and paired differences to slice by slice."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        found.setdefault(row["way"], []).append(row)
    names = [name for name in (*(way.name for way in WAYS), UNET) if name in found]
    by_patient = {name: _by_patient(found[name]) for name in names}
    lines = [
        "| Way | Seeds | Steps | Dice of the volume | Difference to slice by slice, paired |",
        "|---|---:|---:|---|---|",
    ]
    for name in names:
        dice, rows = by_patient[name], found[name]
        steps = statistics.mean(row["steps"] for row in rows)
        gap = [dice[case] - by_patient[SLICES][case] for case in dice] if SLICES in by_patient and name != SLICES else []
        lines.append(f"| {name} | {len(rows)} | {steps:.0f} | {_told(list(dice.values()))} | {_told(gap) if gap else '-'} |")
    return "\n".join(lines)


def _by_patient(rows: list[dict[str, Any]]) -> Dice:
    return {case: statistics.mean(row["dice"][case] for row in rows) for case in rows[0]["dice"]}


def _told(values: list[float]) -> str:
    from medsam_tune.metrics.interval import mean_interval

    interval = mean_interval(values)
    ends = "" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})"
    return f"{statistics.mean(values):.3f}{ends}"


def cost(*, weights: str, side: int, repeats: int) -> None:
    """Print the seconds of a training step of the encoder on a chunk, each tuner against its 2-D form, turn by turn."""
    import torch

    from medsam_tune.geometry import make_frame
    from medsam_tune.types import EncoderInput

    networks = {kind: make_network(weights, side, kind) for kind in ("plane", "volume", "space_depth", "depthwise")}
    images = torch.rand(CHUNK, 3, side, side) * 255
    frames = tuple(make_frame((side, side), networks["plane"].input_rule) for _ in images)
    together = EncoderInput(
        images, frames, slice_index=torch.arange(CHUNK), chunk_index=torch.zeros(CHUNK).long(), chunk_length=CHUNK
    )
    apart = EncoderInput(images, frames)
    pairs = {
        "SD-Trans / Medical SAM Adapter": (("space_depth", together), ("plane", apart)),
        "MA-SAM's adapters, 5 slices / 1": (("volume", together), ("volume", apart)),
        "3DSAM-adapter's, 5 slices / 1": (("depthwise", together), ("depthwise", apart)),
    }
    seconds: dict[tuple[str, int], list[float]] = {}
    for turn in range(repeats + 1):
        for name, sides in pairs.items():
            for place, (kind, inputs) in enumerate(sides):
                backbone = networks[kind].backbone.train()
                begun = time.process_time()
                backbone.encode(inputs).main.sum().backward()  # type: ignore[no-untyped-call]
                if turn:
                    seconds.setdefault((name, place), []).append(time.process_time() - begun)
    print(f"{weights} at {side} px, {CHUNK} slices, encoder forward and backward, CPU seconds, median of {repeats}")
    for name in pairs:
        three, two = (statistics.median(seconds[(name, place)]) for place in (0, 1))
        print(f"{name}: {three:.3f} s / {two:.3f} s = {three / two:.2f}")


def main(words: list[str]) -> int:
    """Run the command that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("cost", "compare", "table"))
    parser.add_argument("--weights", default="random_tiny", help="the network, a name of SamBackbone")
    parser.add_argument("--side", type=int, default=64, help="pixels of the network's input")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of training each")
    parser.add_argument("--stride", type=int, default=CHUNK, help="slices from one window to the next at test")
    parser.add_argument("--repeats", type=int, default=5, help="for cost")
    parser.add_argument("--folder", type=Path, default=Path("runs/volumes"))
    given = parser.parse_args(words)
    if given.command == "cost":
        cost(weights=given.weights, side=given.side, repeats=given.repeats)
    elif given.command == "compare":
        settings = {"weights": given.weights, "side": given.side, "stride": given.stride}
        compare(seeds=given.seeds, seconds=given.seconds, **settings, folder=given.folder)
    if given.command != "cost":
        print(table(given.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
