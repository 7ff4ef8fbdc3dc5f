"""Every recipe of the project on a tiny network, and a step of each in two processes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medsam_tune.training.module import TuningModule
from medsam_tune.types import SegmentationBatch
from tests.class_batches import make_class_batch
from tests.factories import make_batch

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml") if path.parent.name != "sweeps")

# What makes a part small; everything else stays as the recipe says.
_SMALLER: dict[str, dict[str, Any]] = {
    "HarDNetPromptGenerator": {"arch": "39ds", "gen_size": 64, "width": 16},
    "TaskSegmenter": {"encoder": "tu-test_resnet", "side": 64},
}


def small_module(recipe: str) -> TuningModule:
    """The recipe's module, parsed as the command line parses it, on a tiny network with random weights."""
    parser, parsed = _parsed(recipe)
    torch.manual_seed(0)
    module: TuningModule = parser.instantiate_classes(parsed).model
    return module.train()


def small_config(recipe: str) -> dict[str, Any]:
    """The resolved ``model`` section of ``small_module``, as a run's config.yaml holds it."""
    parser, parsed = _parsed(recipe)
    config: dict[str, Any] = yaml.safe_load(parser.dump(parsed, skip_none=False))["model"]
    return config


def _parsed(recipe: str) -> tuple[ArgumentParser, Namespace]:
    model = yaml.safe_load((FOLDER / recipe).read_text(encoding="utf-8"))["model"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TuningModule, "model")
    return parser, parser.parse_object({"model": _small(model)})


def _small(value: Any) -> Any:
    if isinstance(value, list):
        return [_small(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _small(item) for key, item in value.items()}
    name = str(value.get("class_path")).rpartition(".")[2]
    if name == "SamBackbone":
        given = value["init_args"]
        value["init_args"] = {"weights": "random_tiny", "trainable": given.get("trainable", [])}
    elif name in _SMALLER:
        known = value.setdefault("init_args", {})
        known.update({key: item for key, item in _SMALLER[name].items() if key in known})
    return value


def batch_of(recipe: str, *, seed: int) -> SegmentationBatch:
    """Two images with the objects that the recipe's target makes."""
    content = yaml.safe_load((FOLDER / recipe).read_text(encoding="utf-8"))
    data = content["data"]
    target = data.get("target", "binary")
    chunk: dict[str, Any] = {}
    if length := data.get("chunk"):
        # Both images are slices of one chunk, which is filled up.
        chunk = {"slice_index": torch.arange(2), "chunk_index": torch.zeros(2).long(), "chunk_length": min(length, 3)}
    if target == "per_class":
        classes = content["model"]["segmenter"]["init_args"]["classes"]
        return replace(make_class_batch(len(classes), seed=seed), training=True, **chunk)
    batch = make_batch(seed=seed, objects=(1, 1) if target == "binary" else (2, 1))
    priors = torch.rand(2, 2, 64, 64, generator=torch.Generator().manual_seed(seed)) if "priors" in data else None
    return replace(batch, training=True, priors=priors, **chunk)


class _Step(nn.Module):
    """The whole step as one module, because ddp synchronises what runs inside its forward."""

    def __init__(self, module: TuningModule) -> None:
        super().__init__()
        self.segmenter, self.loss = module.segmenter, module.loss

    def forward(self, batch: SegmentationBatch) -> Tensor:
        terms = {**self.segmenter.training_losses(batch, self.loss), **self.segmenter.auxiliary_losses()}
        return torch.stack(list(terms.values())).sum()


def run_rank(rank: int, address: str, faults: list[str]) -> None:
    """Step every recipe twice under plain ddp, each rank on images of its own, and note what goes wrong."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    for recipe in RECIPES:
        try:
            fault = _fault_of_two_steps(recipe, rank)
        except RuntimeError as error:  # an unused parameter: the ranks no longer agree on what comes next
            faults.append(f"{recipe}: {error}")
            break
        if fault is not None:
            faults.append(f"{recipe} on rank {rank}: {fault}")
    else:
        dist.barrier()  # a rank that leaves while the other still listens may abort
    dist.destroy_process_group()


def _fault_of_two_steps(recipe: str, rank: int) -> str | None:
    module = small_module(recipe)
    learning = module.trainable_parameters()
    before = torch.cat([p.detach().flatten() for p in learning])
    parallel, optimizer = DistributedDataParallel(_Step(module)), torch.optim.SGD(learning, lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        parallel(batch_of(recipe, seed=2 * step + rank)).backward()
        module.segmenter.after_backward(step)
        optimizer.step()
        module.segmenter.after_step(step)
    now = torch.cat([p.detach().flatten() for p in learning])
    if torch.equal(now, before):
        return "no weight moved"
    both = [torch.empty_like(now) for _ in range(2)]
    dist.all_gather(both, now)
    return None if torch.equal(*both) else f"weights differ by {float((both[0] - both[1]).abs().max())}"
