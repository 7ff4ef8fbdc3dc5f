"""Tune a whole tiny encoder over two processes that each hold half of it, and compare its weights with one process's.

Usage: python benchmarks/sharded.py

PyTorch's ``fully_shard`` over gloo on a CPU, each process on an image of its own, two steps of SGD. It shows that nothing in
the encoder stands in the way of sharding; recipes refuse it, because a run's checkpoint and export are those of one network.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from medsam_tune.backbone import SamBackbone

PROCESSES, STEPS = 2, 2


def encoder() -> Any:  # noqa: ANN401 - segment_anything carries no types
    """Return the encoder of the tests' network, all of it learning."""
    return SamBackbone("random_tiny", trainable=["image_encoder"]).image_encoder


def train(network: nn.Module, images: Tensor) -> None:
    """Take two steps on the mean of the squared embedding."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()


def work(rank: int) -> None:
    """Train whole and sharded, and print what this process holds and how far the weights differ."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    images = torch.randn(PROCESSES, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole, sharded = encoder(), encoder()
    train(whole, images)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    train(sharded, images[rank : rank + 1])
    pairs = zip(sharded.parameters(), whole.parameters(), strict=True)
    with torch.no_grad():
        error = max(float((mine.full_tensor() - theirs).abs().max()) for mine, theirs in pairs)
    held = sum(parameter.to_local().numel() for parameter in sharded.parameters())
    total = sum(parameter.numel() for parameter in whole.parameters())
    print(f"process {rank}: holds {held:,} of {total:,} parameters, weights differ by {error:.1e}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29517")
    mp.spawn(work, nprocs=PROCESSES)
