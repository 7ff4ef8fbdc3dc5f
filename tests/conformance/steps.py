"""One training step of a tuner, as the training loop takes it, and the two-process run of all tuners."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medsam_tune.losses.bce_dice import BceDiceLoss
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import SegmentationBatch
from tests.backbones import BACKBONES
from tests.conformance.tuner_cases import CASES, RUNS
from tests.factories import make_batch


def make_segmenter(name: str, family: str) -> SamSegmenter:
    """A fresh segmenter with the tuner of that name on a tiny backbone of that family, equal for equal arguments."""
    torch.manual_seed(0)
    segmenter = SamSegmenter(SamParts(BACKBONES[family](), BoxPrompt(), tuner=CASES[name].make()))
    segmenter.backbone.train()
    return segmenter


def total_loss(segmenter: SamSegmenter, batch: SegmentationBatch) -> Tensor:
    """The loss of a training step, the tuner's own included."""
    terms = {**BceDiceLoss()(segmenter(batch), batch), **segmenter.auxiliary_losses()}
    return torch.stack(list(terms.values())).sum()


def learning(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def take_step(segmenter: SamSegmenter, batch: SegmentationBatch, *, lr: float = 1e-2) -> None:
    """One step of AdamW without weight decay."""
    optimizer = torch.optim.AdamW(learning(segmenter).values(), lr=lr, weight_decay=0)
    total_loss(segmenter, batch).backward()
    segmenter.after_backward(0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class _Loss(nn.Module):
    """The whole step as one module, because ddp synchronises what runs inside its forward."""

    def __init__(self, segmenter: SamSegmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, batch: SegmentationBatch) -> Tensor:
        return total_loss(self.segmenter, batch)


def run_rank(rank: int, address: str, faults: list[str]) -> None:
    """Take a step of every tuner under plain ddp and note whoever does not end with the ranks' mean gradient."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    batch = make_batch(seed=rank)
    for name, family in RUNS:
        try:
            gap = _gap_to_mean_gradient(name, family, batch)
        except RuntimeError as error:
            faults.append(f"{name} on {family}: {error}")
            break
        if not gap < 1e-5:
            faults.append(f"{name} on {family}: gradient is {gap} from the mean of the ranks")
    else:
        dist.barrier()  # a rank that leaves while the other still listens may abort
    dist.destroy_process_group()


def _gap_to_mean_gradient(name: str, family: str, batch: SegmentationBatch) -> float:
    alone, together = make_segmenter(name, family), make_segmenter(name, family)
    torch.manual_seed(1)
    total_loss(alone, batch).backward()
    mean = _gradient(alone)
    dist.all_reduce(mean)
    parallel = DistributedDataParallel(_Loss(together))
    torch.manual_seed(1)
    parallel(batch).backward()
    return float((_gradient(together) - mean / 2).abs().max())


def _gradient(segmenter: SamSegmenter) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in learning(segmenter).values()])
