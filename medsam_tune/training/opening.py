"""The first lines of a training: on what, with what, where to and how long, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from medsam_tune.backbone.freezing import TrainableReport, trainable_report
from medsam_tune.data.splits import PARTS
from medsam_tune.training.console import labelled, say
from medsam_tune.training.global_batch import step_line
from medsam_tune.training.module import tuned
from medsam_tune.training.schedule import batches_per_epoch, planned_epochs, planned_steps

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.training.cli import MedsamCLI
    from medsam_tune.training.module import TuningModule

_PART_NAMES = {"train": "train", "val": "validation", "test": "test"}
_MOST_GROUPS = 3


class Opening(Callback):
    """Say the first lines on rank 0.

    Args:
        cli: Knows folder, model and data.
    """

    def __init__(self, cli: MedsamCLI) -> None:
        self.cli = cli

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        module, data = tuned(pl_module), self.cli.datamodule
        lines = {
            "Data": data_line(data),
            "Split": split_line(data.describe()["splits"]),  # type: ignore[arg-type] # a mapping of JSON values
            "Device": device_line(trainer),
            "Weights": weights_line(module),
            **({"Fresh": f"start at random: {', '.join(fresh)}"} if (fresh := module.segmenter.fresh_parts()) else {}),
            "Trained": trained_line([trainable_report(module.segmenter), trainable_report(module.task)]),
            "Plan": plan_line(trainer, module, data),
            "Run folder": str(self.cli.run_folder.path),
        }
        say("\n".join(labelled(name, text) for name, text in lines.items()))


def data_line(data: SegmentationDataModule) -> str:
    """Say how many cases and images there are and what is looked for; a folder's name may name a patient, so it is not said."""
    names = list(data.label_names.values())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    place = data.root if data.root.startswith("sample:") else "your folder"
    cases = counted(len(data.case_names), "case")
    images = counted(len(data.dataset("predict")), "image")
    if data.tiles is not None:
        images = f"{counted(len(data.source), 'image')} in {counted(len(data.images), 'tile')}"
    return f"{place}: {cases}, {images}; target {data.target}" + (f" ({shown})" if shown else "")


def split_line(splits: Mapping[str, Any]) -> str:
    """Say which part has how many cases and images, and of how many patients where one has several cases.

    Example:
        >>> split_line({part: {"cases": 2, "images": 9, "patients": 2} for part in ("train", "val", "test")})
        'train 2 cases (9 images), validation 2 (9), test 2 (9)'
        >>> split_line({part: {"cases": 2, "images": 9, "patients": 1} for part in ("train", "val", "test")})
        'train 2 cases (9 images), validation 2 (9), test 2 (9); of 1, 1 and 1 patients'
    """
    counts = [(_PART_NAMES[part], splits[part]["cases"], splits[part]["images"]) for part in PARTS]
    first, *others = counts
    told = [f"{first[0]} {counted(first[1], 'case')} ({counted(first[2], 'image')})"]
    line = ", ".join(told + [f"{name} {cases} ({images})" for name, cases, images in others])
    patients = [splits[part]["patients"] for part in PARTS]
    several = sum(patients) < sum(cases for _, cases, _ in counts)
    return line + ("; of {}, {} and {} patients".format(*patients) if several else "")


def device_line(trainer: pl.Trainer) -> str:
    """Say what computes, how precisely, and with how many threads or processes."""
    device = trainer.strategy.root_device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    processes = trainer.num_devices * trainer.num_nodes
    together = f", {processes} processes" if processes > 1 else ""
    return f"{device}{name}, precision {trainer.precision}, {counted(torch.get_num_threads(), 'thread')}{together}"


def weights_line(module: TuningModule) -> str:
    """Say on which weights the training stands."""
    weights = module.segmenter.base_weights()
    return "none, from scratch" if weights is None else f"{weights.name} (sha256 {weights.sha256[:12]})"


def trained_line(reports: list[TrainableReport]) -> str:
    """Say how much is trained of how much, and where it lies; the report has the whole table."""
    trained, total = sum(report.trained for report in reports), sum(report.total for report in reports)
    groups = [(name, count) for report in reports for name, count, _ in report.rows if count]
    named = ", ".join(f"{name} {count:,}" for name, count in groups) if len(groups) <= _MOST_GROUPS else ""
    share = f"{trained:,} of {total:,} parameters ({trained / max(1, total):.2%})"
    return f"{share}: {named}" if named and len(groups) > 1 else f"{share}: {groups[0][0]}" if groups else share


def plan_line(trainer: pl.Trainer, module: TuningModule, data: SegmentationDataModule) -> str:
    """Say how many steps are planned; how long they take is known after the first of them."""
    return ", ".join(_plan(trainer, module, data))


def _plan(trainer: pl.Trainer, module: TuningModule, data: SegmentationDataModule) -> Iterator[str]:
    steps, epochs = planned_steps(trainer, data), planned_epochs(trainer, data)
    batches = counted(batches_per_epoch(trainer, data), "batch", "batches")
    yield f"epochs of {batches}" if epochs is None else f"{counted(epochs, 'epoch')} of {batches}"
    if (step := step_line(trainer, data)) is not None:
        yield step
    yield counted(int(steps), "step") if steps != float("inf") else "until max_time"
    if module.warmup_steps:
        yield f"warm-up {module.warmup_steps}"
    if (every := trainer.check_val_every_n_epoch or 1) > 1:
        yield f"validation every {every} epochs"


def counted(number: int, noun: str, several: str = "") -> str:
    """Write a number with its noun.

    Example:
        >>> counted(1, "case"), counted(2000, "case"), counted(2, "batch", "batches")
        ('1 case', '2,000 cases', '2 batches')
    """
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
