"""The prompt encoders and samplers that the conformance suite runs over, at a size for tests, and their two-process run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import medsam_tune.prompt_encoders as encoders
import medsam_tune.prompts as prompts
from medsam_tune.backbone import SamBackbone
from medsam_tune.losses import BceDiceLoss
from medsam_tune.prompt_encoders.base import PromptEncoder
from medsam_tune.prompts.base import PromptSampler
from medsam_tune.segmenters.base import SamParts, Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.task import TaskSegmenter
from medsam_tune.types import SegmentationBatch
from tests.factories import make_batch

LEARNED: Mapping[str, Callable[[], PromptEncoder]] = {
    "HarDNetPromptGenerator": lambda: encoders.HarDNetPromptGenerator("39ds", gen_size=64, width=8),
    "HarDNetPromptGenerator-neutral": lambda: encoders.HarDNetPromptGenerator("39ds", gen_size=64, width=8, init="neutral"),
    "TimmPromptGenerator": lambda: encoders.TimmPromptGenerator("test_resnet", gen_size=64, width=8, use_stride32=True),
    "ImagePromptGenerator": lambda: encoders.ImagePromptGenerator(
        encoders.HarDNetFeatures("39ds"), gen_size=64, width=8, norm="group", prompt_mode="dense_plus_no_mask"
    ),
    "EmbeddingPromptGenerator": lambda: encoders.EmbeddingPromptGenerator(8, dilations=(1, 2)),
    "EmbeddingPromptGenerator-batch": lambda: encoders.EmbeddingPromptGenerator(8, dilations=(1,), norm="batch"),
    "FusedPromptGenerator": lambda: encoders.FusedPromptGenerator("test_resnet", gen_size=64, width=8, dilations=(1, 2)),
}
DRAWN: Mapping[str, Callable[[], PromptSampler]] = {
    "BoxPrompt": prompts.BoxPrompt,
    "BoxPrompt-whole": lambda: prompts.BoxPrompt("whole_image"),
    "PointPrompt": lambda: prompts.PointPrompt(2, 1),
    "MaskPrompt": lambda: prompts.MaskPrompt(shift_px=3, eval_shift_px=2),
    "CombinedPrompt": lambda: prompts.CombinedPrompt([prompts.BoxPrompt(), prompts.PointPrompt()]),
    "OneOfPrompt": lambda: prompts.OneOfPrompt([prompts.BoxPrompt(), prompts.PointPrompt()]),
}
CASES = (*LEARNED, *DRAWN, "SamPromptEncoder")


def concrete_classes() -> set[str]:
    """The names of the prompt encoders and samplers a recipe can name."""
    offered = [getattr(room, name) for room in (encoders, prompts) for name in room.__all__]
    return {
        found.__name__
        for found in offered
        if isinstance(found, type) and issubclass(found, (PromptEncoder, PromptSampler)) and not inspect.isabstract(found)
    }


def make_segmenter(name: str, *, seed: int = 0) -> Segmenter:
    """A fresh segmenter that asks in that way on a frozen tiny SAM, or the U-Net; equal for equal arguments."""
    torch.manual_seed(seed)
    if name == "U-Net":
        return TaskSegmenter(SamParts(), encoder="tu-test_resnet", side=64)
    prompts = DRAWN[name]() if name in DRAWN else None
    encoder = LEARNED[name]() if name in LEARNED else None
    return SamSegmenter(SamParts(SamBackbone("random_tiny"), prompts, encoder))


def loss_of(segmenter: Segmenter, batch: SegmentationBatch) -> Tensor:
    """The training loss of a batch."""
    return torch.stack(list(BceDiceLoss()(segmenter(batch), batch).values())).sum()


def trained(segmenter: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in segmenter.named_parameters() if p.requires_grad}


def take_step(segmenter: Segmenter, batch: SegmentationBatch) -> None:
    """One step of plain gradient descent; the gradients stay."""
    segmenter.zero_grad(set_to_none=True)
    loss_of(segmenter, batch).backward()
    with torch.no_grad():
        for parameter in trained(segmenter).values():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


class _Loss(nn.Module):
    """The whole step as one module, because ddp synchronises what runs inside its forward."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, batch: SegmentationBatch) -> Tensor:
        return loss_of(self.segmenter, batch)


def run_rank(rank: int, address: str, faults: list[str]) -> None:
    """Train every learned source for two steps under plain ddp, each rank on images of its own, and note what goes wrong."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    batches = [make_batch(seed=2 * step + rank) for step in range(2)]
    for name in (*LEARNED, "U-Net"):
        try:
            fault = _fault_of_two_steps(name, batches)
        except RuntimeError as error:  # an unused parameter: the ranks no longer agree on what comes next
            faults.append(f"{name}: {error}")
            break
        if fault is not None:
            faults.append(f"{name} on rank {rank}: {fault}")
    else:
        dist.barrier()  # a rank that leaves while the other still listens may abort
    dist.destroy_process_group()


def _fault_of_two_steps(name: str, batches: list[SegmentationBatch]) -> str | None:
    segmenter = make_segmenter(name)
    before = {key: p.detach().clone() for key, p in trained(segmenter).items()}
    parallel = DistributedDataParallel(_Loss(segmenter.train()))
    optimizer = torch.optim.SGD(trained(segmenter).values(), lr=0.1)
    for batch in batches:
        optimizer.zero_grad()
        parallel(batch).backward()
        optimizer.step()
    now = torch.cat([p.detach().flatten() for p in trained(segmenter).values()])
    if torch.equal(now, torch.cat([p.flatten() for p in before.values()])):
        return "no weight moved"
    both = [torch.empty_like(now) for _ in range(2)]
    dist.all_gather(both, now)
    return None if torch.equal(*both) else f"weights differ by {float((both[0] - both[1]).abs().max())}"
