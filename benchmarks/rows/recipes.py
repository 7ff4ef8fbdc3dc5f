"""What a step of each bundled recipe costs: trained parameters, seconds, memory, and the minutes that its training takes.

On a CPU each recipe is measured in a process of its own, forked from one that has only imported the package, so that none
pays for another's memory.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import Result, Settings, Step, Times, at_most, clocked, free, resident_mb, synchronise
from PIL import Image
from sides import half
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
NETWORKS = {"256 px, LiteMedSAM": "random_lite_medsam", "1024 px, ViT-B": "random_vit_b"}
TINY = {"64 px, tiny": "random_tiny"}
SIDES = {"random_lite_medsam": 256, "random_vit_b": 1024, "random_tiny": 64}
OWN = "its own"
VIT_ALONE = "medsam_tune.tuners.SamAdapter"
"""A tuner that takes SAM's ViT alone: it is measured at that network's true size, on a CPU too."""
SMALLEST_BATCH = {"medsam_tune.tasks.Pretraining": 2}
"""Images that a task needs in a batch: e-Mix compares an image with others."""


def recipe_files() -> dict[str, Path]:
    """Return the recipes that run as they stand on bundled data, baselines included."""
    folder = REPOSITORY / "recipes"
    found = [*sorted(folder.glob("*.yaml")), *sorted((folder / "baselines").glob("*.yaml"))]
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in found}


def networks_of(file: Path, networks: dict[str, str]) -> dict[str, str]:
    """Return the weights to measure a recipe with; a recipe without a backbone trains a network of its own."""
    model = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
    if "backbone" not in model:
        return {OWN: ""}
    if model.get("tuner", {}).get("class_path") == VIT_ALONE and networks is not TINY:
        return {name: weights for name, weights in NETWORKS.items() if weights == "random_vit_b"}
    return networks


def recipe_steps(
    settings: Settings,
    *,
    names: list[str],
    report: Any,  # noqa: ANN401 - a function of a line and rows
    batch: int | None = None,
    tiny: bool = False,
    words: Sequence[str] = (),
) -> Result:
    """R: a few steps of each recipe on each network that fits the device; a recipe that fails says why and stops no other.

    Args:
        settings: Of the run; ``seconds`` holds for each recipe.
        names: Recipes by their file below ``recipes/`` without its ending; all where empty.
        report: Called with a line and all rows so far as each ends.
        batch: Images of a step; the recipe's own where None.
        tiny: Whether to take a network of 64 px, to try the command.
        words: What every recipe is given beside, as ``key=value``.
    """
    known = recipe_files()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{', '.join(unknown)}: no such recipe. There are: {', '.join(known)}.")
    on_gpu = settings.device == "cuda"
    networks = TINY if tiny else NETWORKS if on_gpu else dict(itertools.islice(NETWORKS.items(), 1))
    rows: dict[str, dict[str, Any]] = {}
    for name in names or known:
        for network, weights in networks_of(known[name], networks).items():
            each = replace(settings, started=time.monotonic())
            row = (measured if on_gpu else alone)(known[name], weights, each, batch, words)
            rows[f"{name}, {network}"] = row
            report(f"R  {name:<24} {network:<19} {line(row)}", rows)
    return Result("a step of each recipe", {}, {}, None, extra={"recipes": rows})


def alone(file: Path, weights: str, settings: Settings, batch: int | None, words: Sequence[str] = ()) -> dict[str, Any]:
    """Return a recipe's figures from a process of its own."""
    import medsam_tune.training.cli  # noqa: F401 - imported once, for all processes

    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: sending.send(measured(file, weights, settings, batch, words)))
    process.start()
    sending.close()
    try:
        row: dict[str, Any] = receiving.recv()
    except EOFError:
        process.join()
        return {"failed": f"its process ended with status {process.exitcode}"}
    process.join()
    return row


def line(row: dict[str, Any]) -> str:
    """Return a recipe's figures as text."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    return (
        f"trained {row['trained']:>11,}  batch {row['batch']:>2}  {row['step_s']:>8.3f} s a step  "
        f"peak {row['peak_mb']:>8,.0f} MB  {row['minutes']:>7.1f} min for {row['steps']} steps"
    )


def measured(
    file: Path, weights: str, settings: Settings, batch: int | None = None, words: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a recipe's figures, or why there are none."""
    from medsam_tune.errors import MedsamTuneError

    faults = (RuntimeError, ValueError, OSError, SystemExit, ImportError, AttributeError, TypeError, KeyError, MedsamTuneError)
    try:
        with tempfile.TemporaryDirectory() as folder, at_most(settings.seconds):
            return _measure(_built(file, "" if weights == OWN else weights, Path(folder), batch, words), settings)
    except faults as error:
        return {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"}
    finally:
        free()


def _measure(cli: Any, settings: Settings) -> dict[str, Any]:  # noqa: ANN401 - MedsamCLI, imported late
    device = settings.device
    module, data = cli.model, cli.datamodule
    if data.priors is not None:
        _find_priors(data)
    loader = data.train_dataloader()
    steps_an_epoch, epochs = len(loader), int(cli.trainer.max_epochs or 1)
    module.to(device)
    free()
    dtype = torch.bfloat16 if device == "cuda" else None
    batches = [batch.to(device) for batch in itertools.islice(itertools.cycle(loader), 1 + settings.repeats)]
    if data.cache_embeddings:
        module.eval()
        with torch.no_grad(), half(device, dtype):
            batches = [replace(b, image_embeddings=module.segmenter.encode(b.images, b.frames).float()) for b in batches]
    module.train()
    trained = module.trainable_parameters()
    optimizer = module.optimizer_factory(trained)
    times, feed = Times(), iter(batches)
    before = _reset(device)
    _step(module, optimizer, feed, dtype, device)()
    faults = {}
    for _ in range(settings.repeats):
        clocked(_step(module, optimizer, feed, dtype, device), times, device=device, units=1)
        faults = _hygiene(module, optimizer)
    seconds = statistics.median(times.wall if device == "cuda" else times.cpu)
    return {
        "trained": sum(p.numel() for p in trained),
        "batch": batches[0].n_images,
        "cached": bool(data.cache_embeddings),
        "step_s": seconds,
        "step_wall_s": statistics.median(times.wall),
        "peak_mb": _peak(device, before),
        "held_mb": before if device == "cuda" else None,
        "steps": steps_an_epoch * epochs,
        "minutes": steps_an_epoch * epochs * seconds / 60,
        **faults,
    }


def _built(file: Path, weights: str, folder: Path, batch: int | None, more: Sequence[str]) -> Any:  # noqa: ANN401 - MedsamCLI
    from medsam_tune.training.cli import MedsamCLI

    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    if batch is not None:
        batch = max(batch, SMALLEST_BATCH.get(content["model"].get("task", {}).get("class_path"), 1))
    words = [
        *([f"--model.backbone.init_args.weights={weights}"] if weights else []),
        # A recipe for any folder names none.
        *([] if "root" in content["data"] else [f"--data.root={write_folder(folder / 'images', _side(content, weights))}"]),
        # How many prompts made a prior changes nothing of a step.
        *(["--data.priors.points_per_side=1"] if "priors:" in file.read_text(encoding="utf-8") else []),
        *([] if batch is None else [f"--data.batch_size={batch}"]),
        f"--data.cache_folder={folder / 'cache'}",
        "--trainer.accelerator=cpu",
        "--trainer.logger=false",
        "--data.num_workers=0",
        f"--run.folder={folder}",
        *(f"--{word}" for word in more),
    ]
    cli = MedsamCLI(["--config", str(file), *words], recipe_file=file, command="", run=False)
    cli.discard_unused_folder()
    return cli


def write_folder(root: Path, side: int) -> Path:
    """Write 12 images of the network's input size, each of 16 bright discs on noise, with their masks, and return the folder.

    Args:
        root: The new folder; ``images`` and ``masks`` come below it.
        side: Of the images, in pixels.
    """
    random = np.random.default_rng(0)
    cell = side // 4
    rows, columns = np.mgrid[:side, :side] % cell - (cell - 1) / 2
    disc = np.hypot(rows, columns) < 0.3 * cell
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(12):
        pixels = random.integers(0, 60, (side, side, 3)) + 150 * disc[..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"i{number}.png")
        Image.fromarray((255 * disc).astype(np.uint8)).save(root / "masks" / f"i{number}.png")
    return root


def _side(content: dict[str, Any], weights: str) -> int:
    """Return the side of what a recipe's network sees, in pixels."""
    return SIDES[weights] if weights else int(content["model"]["segmenter"]["init_args"]["side"])


def _find_priors(data: Any) -> None:  # noqa: ANN401 - SegmentationDataModule, imported late
    from medsam_tune.precompute import open_store
    from medsam_tune.precompute.fill import fill, lookup
    from medsam_tune.training.precompute_stage import prior_items, prior_precompute

    precompute = prior_precompute(data, device=torch.device("cpu"))
    store = open_store(precompute, Path(data.cache_folder))
    filled = fill(store, precompute, prior_items(data, ("train",)), progress=False)
    data.use_priors(lookup(store, precompute, filled.keys))


def _step(module: Any, optimizer: torch.optim.Optimizer, feed: Iterator[Any], dtype: torch.dtype | None, device: str) -> Step:  # noqa: ANN401
    batch = next(feed)

    def step() -> Tensor:
        with half(device, dtype):
            terms = {**module.task.training_losses(module.segmenter, batch, module.loss), **module.segmenter.auxiliary_losses()}
        total = torch.stack([term.float() for term in terms.values()]).sum()
        optimizer.zero_grad()
        total.backward()
        module.segmenter.after_backward(0)
        optimizer.step()
        return total.detach()

    return step


def _hygiene(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return how many tensors learn without a gradient, are frozen with one, or are frozen in the optimizer."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        "learn_without_gradient": sum(p.requires_grad and p.grad is None for p in module.parameters()),
        "frozen_with_gradient": sum(not p.requires_grad and p.grad is not None for p in module.parameters()),
        "frozen_in_optimizer": sum(not p.requires_grad for p in held),
    }


def _reset(device: str) -> float:
    if device == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mb("VmRSS")


def _peak(device: str, before: float) -> float:
    """Return the largest allocation on CUDA, the network among it; on a CPU what the steps took beyond it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident_mb("VmHWM") - before
