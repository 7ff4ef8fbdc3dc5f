"""What a training will cost on this machine: a few real passes of its own network on its own images, timed."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medsam_tune.inference.flipped_views import VIEWS
from medsam_tune.runs.first_recipe.length import Length
from medsam_tune.training.opening import counted

if TYPE_CHECKING:
    from medsam_tune.training.cli import MedsamCLI

_PASSES = 2


@dataclass(frozen=True)
class Cost:
    """Hold what was timed, and what it comes to.

    Attributes:
        device: ``cpu`` or the GPU's name.
        threads: Of the CPU.
        encode_seconds: One image through the frozen encoder.
        step_seconds: One optimizer step.
        minutes: The whole training with its validations and test, estimated.
        memory_gb: The largest memory of the process, or of the GPU, during the passes.
    """

    device: str
    threads: int
    encode_seconds: float
    step_seconds: float
    minutes: float
    memory_gb: float

    def told(self) -> str:
        """Return one sentence that says it is an estimate."""
        place = self.device if self.device != "cpu" else f"this CPU ({counted(self.threads, 'thread')})"
        return (
            f"about {_duration(self.minutes)} and {self.memory_gb:.1f} GB on {place}: an estimate from {_PASSES} timed passes, "
            f"{self.encode_seconds:.2f} s an image and {self.step_seconds:.2f} s a step"
        )


def measure_cost(cli: MedsamCLI, length: Length) -> Cost:
    """Time encoder and training step of a built recipe on the first training batch; nothing is trained or kept.

    Args:
        cli: Built, its data opened.
        length: How long the training will be.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = cli.model.to(device)
    batch = next(iter(cli.datamodule.train_dataloader()))
    batch = model.segmenter.drawn(batch).to(device)
    model.eval()
    with torch.no_grad():
        encode = _timed(lambda: model.segmenter.encode(batch.images[:1], batch.frames[:1]), device)
        if cli.datamodule.cache_embeddings:
            batch = model.segmenter.embedded(batch)
    model.train()
    step = _timed(lambda: _step(cli, batch), device)
    model.zero_grad(set_to_none=True)
    cached = cli.datamodule.cache_embeddings
    # Half of what is evaluated is tested, in every view but the first for itself.
    views_at_test = len(VIEWS[model.segmenter.views_at_test])
    seen = length.images * length.views + length.evaluated + length.evaluated / 2 * (views_at_test - 1)
    validations = max(1, length.epochs // length.validate_every)
    # Validation and test ask once, without a backward pass; the untuned network and the box of the whole image are scored too.
    asked = length.evaluated / 2 * (validations + 3)
    ask = step / length.batch / 2 if cached else encode
    seconds = (seen * encode if cached else 0.0) + length.steps * step + asked * ask
    return Cost(_name(device), torch.get_num_threads(), encode, step, seconds / 60, _memory_gb(device))


def _step(cli: MedsamCLI, batch: object) -> None:
    losses = cli.model.segmenter.training_losses(batch, cli.model.loss)  # type: ignore[arg-type]
    torch.stack([value for value in losses.values() if value.requires_grad]).sum().backward()  # type: ignore[no-untyped-call]


def _timed(work: object, device: torch.device) -> float:
    """Return the seconds of the last of a few passes: the first one warms up."""
    seconds = 0.0
    for _ in range(_PASSES):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1024**3
    # Kilobytes, but bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1024**3


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def _duration(minutes: float) -> str:
    if minutes < 1:
        return "a minute"
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
