"""Time two ways of doing the same in turn, in one process, and say whether the machine was calm enough to judge."""

from __future__ import annotations

import gc
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Tensor]
LARGEST_SPREAD = 0.15


@dataclass(frozen=True)
class Settings:
    """Hold what holds for every row.

    Attributes:
        device: ``cpu`` or ``cuda``.
        repeats: Timed repetitions of each side at most; at least 2 are made.
        seconds: Time a row may take; no repetition starts after it.
        started: When the row began, by ``time.monotonic``.
    """

    device: str
    repeats: int
    seconds: float
    started: float

    @property
    def is_over(self) -> bool:
        """Return whether the row's time is up."""
        return time.monotonic() - self.started > self.seconds

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.seconds - (time.monotonic() - self.started)


@dataclass
class Times:
    """Hold seconds of one side per unit (an image, a step), one entry a repetition, and its peak memory.

    Attributes:
        wall: Wall-clock seconds.
        cpu: CPU seconds of this process.
        peak_mb: On CUDA the largest allocation, what the side holds between steps included; None on a CPU.
        held_mb: What of it is held between steps (weights, optimizer state); None on a CPU.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    held_mb: float | None = None

    def summary(self, clock: str) -> dict[str, Any]:
        """Return median, least and greatest seconds by ``clock``, their number, CPU seconds and peak memory."""
        seconds = getattr(self, clock)
        return {
            "median": statistics.median(seconds),
            "min": min(seconds),
            "max": max(seconds),
            "n": len(seconds),
            "median_wall_s": statistics.median(self.wall),
            "median_cpu_s": statistics.median(self.cpu),
            "peak_mb": self.peak_mb,
            "held_mb": self.held_mb,
        }


@dataclass
class Result:
    """Hold what a row found; all of it goes into the JSON file.

    Attributes:
        metric: What is compared.
        ours: Our side's figures.
        reference: The reference's.
        ratio: Ours by the reference's; the goal is at most ``target``.
        error: Relative distance of both sides' outputs, compared before anything was timed.
        spread: Greatest less least ratio of a pair of repetitions, by their median; None where memory is compared.
        extra: Further figures by name.
        notes: What a reader must know.
    """

    metric: str
    ours: dict[str, Any]
    reference: dict[str, Any]
    ratio: float | None
    error: float | None = None
    spread: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def synchronise(device: str) -> None:
    """Wait until the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the distance of two tensors by the length of the second."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def clocked(step: Step, times: Times, *, device: str, units: int) -> None:
    """Run a step and add its seconds per unit."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    synchronise(device)
    times.wall.append((time.perf_counter() - wall) / units)
    times.cpu.append((time.process_time() - cpu) / units)


def warmed(make: Callable[[], Step], *, device: str, warm_up: int) -> tuple[Step, Times]:
    """Build a side, run it ``warm_up`` times and note the memory it takes on CUDA."""
    times = Times()
    before = 0
    if device == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
    step = make()
    for _ in range(warm_up):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times.held_mb = (torch.cuda.memory_allocated() - before) / 2**20
        step()
        torch.cuda.synchronize()
        times.peak_mb = (torch.cuda.max_memory_allocated() - before) / 2**20
    return step, times


def alternate(
    ours: Callable[[], Step],
    reference: Callable[[], Step],
    settings: Settings,
    *,
    metric: str,
    units: tuple[int, int] = (1, 1),
    warm_up: int = 1,
) -> Result:
    """Time both sides in turn and return the ratio of their medians.

    On a CPU the clock counts CPU seconds, which other processes disturb less; on CUDA it counts wall-clock seconds.

    Args:
        ours: Builds our side; what it returns is one repetition.
        reference: Builds the other.
        settings: Of the run.
        metric: What is compared.
        units: Images (or whatever the metric counts) in one repetition of ours and of the reference.
        warm_up: Repetitions that are not timed.
    """
    device = settings.device
    our_step, our_times = warmed(ours, device=device, warm_up=warm_up)
    their_step, their_times = warmed(reference, device=device, warm_up=warm_up)
    for n in range(settings.repeats):
        if n >= 2 and settings.is_over:
            break
        clocked(our_step, our_times, device=device, units=units[0])
        clocked(their_step, their_times, device=device, units=units[1])
    clock = "wall" if device == "cuda" else "cpu"
    mine, theirs = our_times.summary(clock), their_times.summary(clock)
    pairs = [a / b for a, b in zip(getattr(our_times, clock), getattr(their_times, clock), strict=True)]
    spread = (max(pairs) - min(pairs)) / statistics.median(pairs)
    return Result(f"{metric}, {clock} s", mine, theirs, mine["median"] / theirs["median"], spread=spread)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where the block takes longer; within another such block the sooner end counts."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    if 0 < outer < seconds:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, outer)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(0.01, outer - (time.monotonic() - started)))


def free() -> None:
    """Give memory of what is no longer used back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def variant(make: Callable[[], Step], settings: Settings, *, units: int, repeats: int = 3) -> dict[str, Any]:
    """Return units per second and memory of one more way, or why there is none."""
    if settings.is_over:
        return {"skipped": "no time left"}
    try:
        with at_most(settings.left):
            step, times = warmed(make, device=settings.device, warm_up=1)
            for _ in range(repeats):
                clocked(step, times, device=settings.device, units=units)
    except (RuntimeError, TimeoutError) as error:
        free()
        return {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    return {"per_s": 1 / min(times.wall), "peak_mb": times.peak_mb, "held_mb": times.held_mb}


def per_second(result: Result) -> None:
    """Add both sides' units per second to the result's extra figures."""
    result.extra["ours_per_s"] = 1 / result.ours["median"]
    result.extra["reference_per_s"] = 1 / result.reference["median"]


def resident_mb(name: str) -> float:
    """Return VmRSS (now) or VmHWM (peak) of this process in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def verdict(result: Result, target: float | None, load: float) -> str:
    """Return ``met``, ``not met``, or why nothing can be said."""
    if result.ratio is None or target is None:
        return "no verdict: nothing to compare with"
    cores = os.cpu_count() or 1
    if result.spread is not None and load > cores:
        return f"no verdict: load {load:.1f} on {cores} cores"
    if result.spread is not None and result.spread > LARGEST_SPREAD:
        return f"no verdict: spread {result.spread:.0%}"
    return "met" if result.ratio <= target else "not met"
