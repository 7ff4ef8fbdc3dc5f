"""What is small: an adapter's file (P10), the loader's share of a cached step (P11), a step of the tests' network (P13)."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from inputs import make_inputs
from measure import Result, Settings, Times, clocked
from sides import logits_of, training_step
from torch import nn

from medsam_tune.backbone import SamBackbone
from medsam_tune.files import write_safetensors
from medsam_tune.precompute.store import Store
from medsam_tune.tuners.samed import SamedTuner

_IDENTITY = "0" * 16
_FAST_ENOUGH_S = 0.15


def adapter_size(settings: Settings, name: str = "vit_b") -> Result:
    """P10: bytes of LoRA of rank 4 and the mask decoder, by MedSAM's checkpoint: all weights and AdamW's two moments."""
    backbone = SamBackbone(f"random_{name}", trainable=["mask_decoder"])
    n_all = sum(p.numel() for p in backbone.parameters())
    SamedTuner(4).attach(backbone)
    trained = {key: p.detach().clone() for key, p in backbone.named_parameters() if p.requires_grad}
    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            kind: write_safetensors(Path(folder, kind), {key: p.to(dtype) for key, p in trained.items()}, {}).stat().st_size
            for kind, dtype in (("float32", torch.float32), ("float16", torch.float16))
        }
    whole = 3 * 4 * n_all
    result = Result(
        "bytes of the file that is given away",
        {"median": sizes["float16"], "n": 1},
        {"median": whole, "n": 1},
        sizes["float16"] / whole,
        extra={"float32": sizes["float32"], "ratio_float32": sizes["float32"] / whole},
    )
    result.notes.append(
        "the reference's bytes are counted, 4 for each weight and each of two moments; ours is `export --to adapter --half`"
    )
    return result


def loader_share(settings: Settings, name: str = "vit_b", *, entries: int = 64) -> Result:
    """P11: seconds to read a cached embedding of 1024 px, checksum of the first read aside, by those of the decoder's step."""
    backbone = SamBackbone(f"random_{name}", trainable=["mask_decoder"])
    inputs = make_inputs(backbone, 1, "cpu")
    grid = backbone.embedding_size
    embedding = torch.randn(1, 256 if name != "tiny" else 32, grid, grid)
    step = training_step(lambda: logits_of(backbone, inputs, embedding), backbone.parameters(), inputs.masks)
    step()
    steps, reads = Times(), []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), _IDENTITY)
        keys = [f"{_IDENTITY}-{n}" for n in range(entries)]
        for begin in range(0, entries, 16):
            store.write({key: torch.randn(*embedding.shape[1:]).half() for key in keys[begin : begin + 16]})
        for key in keys:
            store.read(key)
        for key in keys:
            began = time.process_time()
            store.read(key).float()
            reads.append(time.process_time() - began)
    for _ in range(max(2, settings.repeats)):
        clocked(step, steps, device="cpu", units=1)
    theirs = steps.summary("cpu")
    read = statistics.median(reads)
    ours = {"median": read, "min": min(reads), "max": max(reads), "n": entries}
    spread = (max(steps.cpu) - min(steps.cpu)) / theirs["median"]
    return Result("read of an embedding : step of the decoder, cpu s", ours, theirs, read / theirs["median"], spread=spread)


def tests_network(settings: Settings) -> Result:
    """P13: a step of the network that the tests train, everything in it learning, against the limit that keeps them fast."""
    backbone = SamBackbone("random_tiny", trainable=["image_encoder", "mask_decoder"])
    inputs = make_inputs(backbone, 1, "cpu")
    step = training_step(lambda: logits_of(backbone, inputs), backbone.parameters(), inputs.masks)
    step()
    times = Times()
    for _ in range(max(5, settings.repeats)):
        clocked(step, times, device="cpu", units=1)
    ours = times.summary("cpu")
    spread = (ours["max"] - ours["min"]) / ours["median"]
    limit = {"median": _FAST_ENOUGH_S, "n": 1}
    result = Result("step, cpu s", ours, limit, ours["median"] / _FAST_ENOUGH_S, spread=spread)
    result.notes.append(f"the reference is the limit of {_FAST_ENOUGH_S} s")
    result.extra["parameters"] = _count(backbone)
    return result


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
