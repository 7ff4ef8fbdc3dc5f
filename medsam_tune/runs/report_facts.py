"""What a report says about a run beside its figures: parts, settings, machine, files, and whom to cite."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medsam_tune.data.sample import SAMPLE_PREFIX, sample_folder
from medsam_tune.evaluation.citations import OF_SAMPLES, OF_WEIGHTS, bibtex, method_keys
from medsam_tune.evaluation.instances import instance_line
from medsam_tune.training.places import split_places
from medsam_tune.training.record import flat, git_commit

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.training.cli import MedsamCLI
    from medsam_tune.training.run_folder import RunFolder

_PARTS = ("backbone", "tuner", "prompts", "prompt_encoder", "fusion", "side", "segmenter", "loss")
_TRAINING = (
    "model.optimizer",
    "model.schedule",
    "model.warmup_steps",
    "model.views_at_test",
    "model.smallest_part",
    "trainer.",
    "data.batch_size",
    "data.global_batch",
    "data.views",
    "seed",
)


def data_name(data: SegmentationDataModule) -> str:
    """Return what the data are called; a folder of one's own has no name here, since it may be a patient's."""
    root = data.root
    return f"the bundled sample {root.removeprefix(SAMPLE_PREFIX)}" if root.startswith(SAMPLE_PREFIX) else "data of your own"


def method_title(comment: str) -> str:
    r"""Return what a recipe's comment says of its method: the first paragraph, without the data that the recipe brings.

    Example:
        >>> method_title("LoRA (Hu et al.) in SAM's encoder, on the bundled hippocampus MR sample.\n\nTrained: ...")
        "LoRA (Hu et al.) in SAM's encoder"
    """
    paragraph = " ".join(comment.partition("\n\n")[0].split())
    return re.split(r",? on [^.]*?\bbundled\b", paragraph)[0].rstrip(" .:,")


def recipe_comment(recipe: Path | None) -> str:
    """Return the comment that a recipe opens with, without its marks."""
    if recipe is None or not recipe.is_file():
        return ""
    lines: list[str] = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines).strip()


def described_parts(cli: MedsamCLI) -> dict[str, str]:
    """Return the method and each part of the network with its settings, as this run has them."""
    title = method_title(recipe_comment(cli.recipe_file))
    parts = {"method": title} if title else {}
    model = _shared(cli)["model"]
    for name in _PARTS:
        if isinstance(part := model.get(name), Mapping) and "class_path" in part:
            values = _short(part.get("init_args") or {})
            parts[name] = part["class_path"].rpartition(".")[2] + (f" ({values})" if values else "")
    return parts


def training_settings(cli: MedsamCLI) -> dict[str, object]:
    """Return the keys that decide how the training went; those without a value are left out."""
    values = flat(_shared(cli))
    return {key: value for key, value in values.items() if key.startswith(_TRAINING) and value not in (None, [], {})}


def data_facts(described: Mapping[str, Any]) -> dict[str, object]:
    """Return what the source says about itself, without what the report's tables hold."""
    return {name: value for name, value in described.items() if name not in ("splits", "images", "cases") and value is not None}


def attribution(root: str) -> str:
    """Return where a bundled sample comes from and under which licence; nothing for other data."""
    if not root.startswith(SAMPLE_PREFIX):
        return ""
    lines = (sample_folder(root.removeprefix(SAMPLE_PREFIX)) / "ATTRIBUTION.md").read_text(encoding="utf-8")
    paragraphs = lines.partition("\n\n")[2].strip().split("\n\n")
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs[:1]) + "\n" + _licence(lines)


def run_facts(cli: MedsamCLI) -> dict[str, dict[str, object]]:
    """Return facts by block: the run, the seconds of its stages, the machine, and the versions of what it ran on."""
    summary = cli.results.summary
    weights = summary.get("base_weights") or {"name": "none", "sha256": ""}
    inference = {"inference": summary["inference"]["chosen"]} if summary.get("inference") else {}
    automatic = summary.get("automatic") or {}
    networks = [name for name in ("tuned", "untuned") if name in automatic]
    found = {f"found without a prompt, {name}": instance_line(automatic[name]) for name in networks}
    return {
        "Run": {
            "date": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
            "base weights": f"{weights['name']} {weights['sha256'][:12]}".strip(),
            "optimizer steps": summary["steps"],
            "tested weights of step": summary["tested_step"],
            "git commit": git_commit() or "not in a repository",
            **inference,
            **found,
        },
        "Machine": {**device_facts(cli), "peak memory": f"{summary['peak_memory_gb']} GB"},
        "Time": {name: f"{value:,.1f} s" for name, value in cli.clock.seconds.items()},
        "Versions": dict(summary["versions"]),
    }


def device_facts(cli: MedsamCLI) -> dict[str, object]:
    """Return on what the run was computed; no name of the machine."""
    device = next(cli.model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type}, {name}",
        "devices": cli.trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(cli.trainer.precision),
        "system": f"{platform.system()} {platform.machine()}",
    }


@functools.cache
def installed_packages() -> str:
    """Return what ``pip freeze`` would name: each installed package with its version, one a line, without places."""
    # Each look at a distribution's metadata reads its file anew.
    metadata = [each.metadata for each in importlib.metadata.distributions()]
    found = {(each["Name"] or "", each["Version"]) for each in metadata}
    return "\n".join(f"{name}=={version}" for name, version in sorted(found, key=lambda each: each[0].lower()) if name)


def run_files(folder: RunFolder) -> dict[str, str]:
    """Return the addresses of the run's files from its report, by name."""
    files = (
        *(folder.config, folder.splits, folder.summary, folder.test_cases, folder.metrics_csv, folder.epochs_csv),
        *([folder.certainty] if folder.certainty.is_file() else []),
        *(folder.checkpoints / "best.ckpt", folder.export),
    )
    return {path.relative_to(folder.path).as_posix(): f"../{path.relative_to(folder.path).as_posix()}" for path in files}


def citations(cli: MedsamCLI) -> str:
    """Return BibTeX of method, weights, data and this software."""
    comment = recipe_comment(cli.recipe_file).partition("\n\n")[0]
    weights = cli.results.summary.get("base_weights") or {}
    sample = cli.datamodule.root.removeprefix(SAMPLE_PREFIX)
    keys = (*method_keys(comment), *OF_WEIGHTS.get(weights.get("name", ""), ()))
    return bibtex((*keys, *(OF_SAMPLES.get(sample, ()) if cli.datamodule.root.startswith(SAMPLE_PREFIX) else ())))


def _shared(cli: MedsamCLI) -> dict[str, Any]:
    """Return the resolved recipe without the paths of this machine."""
    return split_places(cli.recipe_values())[0]


def _short(values: Mapping[str, Any]) -> str:
    """Write the settings of a part on one line; what is unset is left out, and a class goes by its own name."""
    shown = {
        key: str(value).rpartition(".")[2] if isinstance(value, str) and value.startswith("medsam_tune.") else value
        for key, value in flat(values).items()
        if value not in (None, [], {}, "")
    }
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _licence(text: str) -> str:
    lines = [" ".join(item.split()) for item in text.split("\n- ")[1:]]
    return "\n".join(line.partition("\n\n")[0] for line in lines if line.startswith(("Source", "Licence", "Cite")))


def _processor() -> str:
    """Return the processor's model where the system tells it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
