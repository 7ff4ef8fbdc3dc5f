"""Shard a SAM encoder, all of it learning, over two processes as ``trainer.strategy: fsdp`` does, and print what each holds.

Usage: python benchmarks/sharded.py [WEIGHTS]

WEIGHTS is ``random_tiny``, or ``random_vit_b`` and its like. PyTorch's gloo on a CPU; one step of AdamW on a random image.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from medsam_tune.backbone import SamBackbone
from medsam_tune.prompts import BoxPrompt
from medsam_tune.training.module import TuningModule
from medsam_tune.training.sharded import units
from medsam_tune.tuners import FullTuning

PROCESSES = 2


def held(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of what this process holds of tensors."""
    return sum(t.to_local().nbytes if isinstance(t, DTensor) else t.nbytes for t in tensors)


def work(rank: int, weights: str) -> None:
    """Take a step whole or sharded, and print what this process holds of weights, gradients and moments."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    module = TuningModule(backbone=SamBackbone(weights), prompts=BoxPrompt(), tuner=FullTuning())
    *blocks, encoder = units(module)
    total = 4 * held(encoder.parameters())
    for unit in (*blocks, encoder):
        fully_shard(unit, mesh=mesh)
    optimizer = torch.optim.AdamW(encoder.parameters(), foreach=False)
    encoder(torch.randn(1, 3, module.side_px, module.side_px)).square().mean().backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    mine = held(encoder.parameters()) + held(p.grad for p in encoder.parameters()) + held(moments)
    print(f"process {rank}: {mine / 1e6:,.2f} MB of {total / 1e6:,.2f} MB", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29517")
    mp.spawn(work, args=(sys.argv[1] if len(sys.argv) > 1 else "random_tiny",), nprocs=PROCESSES)
