"""Measure ours against stock segment_anything: ratios of time and memory, outputs compared first.

Usage: python benchmarks/run.py P5 P6 --json results.json            on a CPU, in CPU seconds of one thread
       python benchmarks/run.py G1 G2 G3 --device cuda --json ...    on a CUDA device
       python benchmarks/run.py recipes [--only lora msa] ...        a step of each bundled recipe
       python benchmarks/run.py all ...                              every row that the device can measure

Both sides run in turn in one process, with random weights of true shape. A row ends with one line and is written to the JSON
file at once; a row that fails, or takes longer than --seconds, says why and stops no other. No verdict is given when the load
is above the number of cores, or the ratios of the pairs spread by more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Result, Settings, at_most, free, verdict

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Row:
    """Name a row of the table in benchmarks/RESULTS.md.

    Attributes:
        goal: What it is about.
        target: Largest ratio of ours to the reference that meets it; None where there is no reference.
        device: Where it is measured.
        measure: Measures it.
        seconds: Limit of its own instead of the command's.
    """

    goal: str
    target: float | None
    device: str
    measure: Callable[[Settings], Result]
    seconds: float | None = None


def rows(*, tiny: bool = False) -> dict[str, Row]:
    """Return every row by name; with ``tiny`` on a network of 64 px, to try the command."""
    from rows import cached, cpu, gpu, small

    decoder, autosam = cached.decoder_cached, cached.autosam_cached
    base, huge = ("tiny", "tiny") if tiny else ("vit_b", "vit_h")
    late = partial(cached.late_blocks, name=base)
    fast = partial(decoder, name=base, batch=64, reference_batch=8, dtype=BF16, warm_up=2)
    prompted = partial(autosam, name=huge, batch=8, reference_batch=3, dtype=BF16, warm_up=2)
    return {
        "P1": Row("decoder alone, cached, vit_b 1024", 1 / 60, "cpu", partial(decoder, name=base)),
        "P3": Row("AutoSAM cached, vit_b", 0.29, "cpu", partial(autosam, name=base)),
        "P4": Row("8 boxes of an image, one pass of the encoder", 0.18, "cpu", partial(cpu.boxes_of_an_image, name=base)),
        "P5": Row("encoder forward, vit_b 1024", 0.70, "cpu", partial(cpu.encoder_forward, name=base)),
        "P6": Row("window block with backward at 256 px", 0.80, "cpu", cpu.window_blocks),
        "P7": Row("memory of LoRA on all blocks, vit_b 1024", 0.30, "cpu", partial(cpu.lora_memory, name=base)),
        "P8": Row("LoRA on the last 3 blocks, cached : on all, stock", 0.30, "cpu", late),
        "P8O": Row("LoRA on the last 3 blocks, cached : on all, ours", 0.30, "cpu", partial(late, stock=False)),
        "P10": Row("file of an adapter, LoRA of rank 4 and decoder", 0.01, "cpu", partial(small.adapter_size, name=base)),
        "P11": Row("loader's share of a cached step", 0.01, "cpu", partial(small.loader_share, name=base)),
        "P13": Row("step of the tests' network", 1.0, "cpu", small.tests_network),
        "P14": Row("frozen LiteMedSAM encoder by oneDNN", 0.60, "cpu", partial(cpu.fast_encoder, engine="onednn")),
        "P14T": Row("frozen LiteMedSAM encoder by PyTorch's modules", 1.0, "cpu", partial(cpu.fast_encoder, engine="torch")),
        "P14V": Row("frozen LiteMedSAM encoder by OpenVINO", 0.60, "cpu", partial(cpu.fast_encoder, engine="openvino")),
        "P15": Row("8 boxes decoded by fours : together", 1.0, "cpu", cpu.micro_batches),
        "P16": Row("8 boxes of an image, first layer shared : apart", 0.95, "cpu", cpu.shared_layer),
        "P17": Row("decoder step, tokens up-scaled by products : convolutions", 0.95, "cpu", cpu.token_upscaling_step),
        "G1": Row(
            "encoder forward, vit_b, bf16 batch 8 : float32 batch 1", 1 / 8, "cuda", partial(gpu.encoder_forward, name=base)
        ),
        "G2": Row("MedSAM's full step, bf16 : float32", 1 / 4, "cuda", partial(gpu.medsam_full, name=base)),
        "G3": Row("LoRA step, vit_b, both bf16", 1.0, "cuda", partial(gpu.lora, name=base, batch=4)),
        "G3H": Row("LoRA step, vit_h, both bf16", 1.0, "cuda", partial(gpu.lora, name=huge, batch=2)),
        "G4": Row("decoder alone, cached on the device", 1 / 10, "cuda", fast),
        "G5": Row("AutoSAM, vit_h, cached", 1 / 10, "cuda", prompted),
        "G6": Row("memory of LoRA, vit_h 1024, batch 4", 0.35, "cuda", partial(gpu.lora_memory, name=huge)),
        "G7": Row("several GPUs", None, "cuda", gpu.several_gpus),
        "A": Row("attention, each way", None, "cuda", partial(gpu.attention_kernels, names=(base, huge))),
    }


def machine(device: str) -> dict[str, Any]:
    """Return where and with what the measurement was made."""
    here = Path(__file__).resolve().parent
    asked = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": asked.stdout.strip() or "unknown",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def measure_row(name: str, row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one row, whatever happens; return what goes into the file."""
    started = time.monotonic()
    # The last tenths are for what cannot be interrupted: a repetition that has begun, and its release.
    settings = Settings(arguments.device, arguments.repeats, 0.7 * arguments.seconds, started)
    found: dict[str, Any] = {"goal": row.goal, "target": row.target}
    try:
        with at_most(row.seconds or arguments.seconds):
            result = row.measure(settings)
        load = os.getloadavg()[0]
        found |= {**result.as_dict(), "verdict": verdict(result, row.target, load), "load": load}
    except Exception as error:  # a row that fails must not cost the rest of a lent machine's time
        found["failed"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    free()
    found["took_s"] = time.monotonic() - started
    print(line(name, found), flush=True)
    return found


def line(name: str, found: dict[str, Any]) -> str:
    """Return one row as text."""
    if "failed" in found:
        return f"{name:<4}{found['goal']}: failed: {found['failed']} ({found['took_s']:.0f} s)"
    parts = [f"{name:<4}{found['goal']}: {found['metric']}"]
    if found["ratio"] is not None:
        goal = "" if found["target"] is None else f", goal {found['target']:.3g}"
        parts.append(f"ratio {found['ratio']:.3f}{goal}")
    for side in ("ours", "reference"):
        if "median" in found[side]:
            figures = found[side]
            peak = "" if figures.get("peak_mb") is None else f", peak {figures['peak_mb']:,.0f} MB"
            parts.append(
                f"{side} {figures['median']:.4g} (min {figures.get('min', figures['median']):.4g}, n={figures['n']}{peak})"
            )
    if found["error"] is not None:
        parts.append(f"outputs differ by {found['error']:.1e}")
    parts.append(found["verdict"])
    more = [f"     {key}: {_short(value)}" for key, value in found["extra"].get("variants", {}).items()]
    return "\n".join([f"{'; '.join(parts)} (load {found['load']:.1f}, {found['took_s']:.0f} s)", *more])


def _short(figures: dict[str, Any]) -> str:
    if "per_s" not in figures:
        return str(next(iter(figures.items())))
    peak = "" if figures["peak_mb"] is None else f", peak {figures['peak_mb']:,.0f} MB"
    return f"{figures['per_s']:.1f} a second{peak}"


def save(path: Path | None, found: dict[str, Any]) -> None:
    """Write everything so far, whole or not at all."""
    if path is not None:
        beside = path.with_name(f"{path.name}.partial")
        beside.write_text(json.dumps(found, indent=1, default=str))
        beside.replace(path)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help="rows of benchmarks/RESULTS.md, recipes, or all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where everything is written, after each row")
    parser.add_argument("--repeats", type=int, help="timed repetitions of each side; 3 on a CPU, 10 on CUDA")
    parser.add_argument("--seconds", type=float, help="limit of a row; 900 on a CPU, 40 on CUDA")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads on a CPU")
    parser.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help="recipes by name")
    parser.add_argument("--batch", type=int, metavar="N", help="images of a recipe's step; as the recipe says by default")
    parser.add_argument(
        "--with", nargs="+", default=[], dest="words", metavar="KEY=VALUE", help="what recipes are given beside"
    )
    parser.add_argument("--tiny", action="store_true", help="networks of 64 px, to try the command")
    parser.add_argument("--alone", choices=["ours", "reference"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    arguments.repeats = arguments.repeats or (10 if on_gpu else 3)
    arguments.seconds = arguments.seconds or (40 if on_gpu else 900)
    return arguments


def main() -> int:
    """Measure what was asked for; exit with 1 where a row failed."""
    arguments = parse_arguments()
    if arguments.device == "cpu":
        torch.set_num_threads(arguments.threads)
    elif not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no CUDA device. Leave the option out, or install a build of torch for it.")
    if arguments.alone:
        from rows import cpu

        print(json.dumps(cpu.lora_alone(arguments.alone, "tiny" if arguments.tiny else "vit_b")))
        return 0
    known = rows(tiny=arguments.tiny)
    names = [name for name, row in known.items() if row.device == arguments.device] if "all" in arguments.names else []
    names += ["recipes"] if "all" in arguments.names else arguments.names
    if unknown := [name for name in names if name not in known and name != "recipes"]:
        sys.exit(f"{', '.join(unknown)}: no such row. There are: {', '.join(known)}, recipes, all.")
    if elsewhere := [name for name in names if name in known and known[name].device != arguments.device]:
        sys.exit(f"{', '.join(elsewhere)}: not measured on {arguments.device}. Set --device {known[elsewhere[0]].device}.")
    torch.manual_seed(0)
    found: dict[str, Any] = {"machine": machine(arguments.device), "rows": {}}
    print(" ".join(f"{key}={value}" for key, value in found["machine"].items()), flush=True)
    for name in names:
        row = known.get(name) or recipes_row(arguments, found)
        found["rows"][name] = measure_row(name, row, arguments)
        save(arguments.json, found)
    return int(any("failed" in row for row in found["rows"].values()))


def recipes_row(arguments: argparse.Namespace, found: dict[str, Any]) -> Row:
    """Return the row of all recipes, whose limit is each recipe's; each is written to the file as it ends."""
    from rows.recipes import recipe_steps

    few = 3 if arguments.device == "cuda" else 1

    def report(text: str, recipes: dict[str, Any]) -> None:
        print(text, flush=True)
        found["rows"]["recipes"] = {"goal": "a step of each recipe", "extra": {"recipes": recipes}}
        save(arguments.json, found)

    def measure(settings: Settings) -> Result:
        each = Settings(settings.device, few, arguments.seconds, settings.started)
        asked = {"batch": arguments.batch, "tiny": arguments.tiny, "words": arguments.words}
        return recipe_steps(each, names=arguments.only, report=report, **asked)

    # --seconds holds for each recipe.
    return Row("a step of each recipe", None, arguments.device, measure, seconds=6 * 3600)


if __name__ == "__main__":
    raise SystemExit(main())
