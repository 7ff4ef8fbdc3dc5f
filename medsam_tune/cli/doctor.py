"""``medsam-tune doctor``: what is installed, found and measured here, and who owns the ``lightning`` command."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from medsam_tune import __version__
from medsam_tune.cli.cache import format_bytes
from medsam_tune.cli.lightning_owner import describe_owner, take_back
from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import RecipeError
from medsam_tune.runs.recipe_files import bundled_recipes, recipes_folder
from medsam_tune.training.half_precision import FIRST_WITH_BF16

DESCRIPTION = """\
Say what is installed and found here, and who owns the `lightning` command. Changes nothing without --fix.

--fix reads every entry of the cache and removes what is damaged, of other origin or left by a killed process, so that only
that is computed again; and it takes the `lightning` command of this environment back where another package wrote over it."""
# Malicious uploads, advisory GHSA-w37p-236h-pfx3.
MALICIOUS_LIGHTNING = ("2.6.2", "2.6.3")
MEMINFO = Path("/proc/meminfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def main(arguments: list[str]) -> int:
    """Print the report, and mend what can be mended where ``arguments`` ask for it.

    Raises:
        DataError: If something in the cache may not be read or changed.
    """
    options = parser().parse_args(arguments)
    print(f"medsam-tune {__version__}, Python {platform.python_version()} in {sys.prefix}, {platform.platform()}")
    for title, lines in (
        ("packages", package_lines()),
        ("devices", device_lines()),
        ("memory", memory_lines()),
        ("weights", weight_lines()),
        ("recipes", recipe_lines()),
        ("cache", cache_lines()),
        ("the `lightning` command", iter(describe_owner())),
    ):
        print(f"\n{title}")
        for line in lines:
            print(f"  {line}")
    if options.fix:
        print("\nfixed")
        for line in fix_lines() or ["nothing needed it"]:
            print(f"  {line}")
    return 0


def fix_lines() -> list[str]:
    """Mend the cache and the ``lightning`` command, and say what was done."""
    from medsam_tune.precompute import cache_root
    from medsam_tune.precompute.mending import mend

    return [*mend(cache_root()), *take_back()]


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune doctor``."""
    parser = OptionParser("medsam-tune doctor", DESCRIPTION)
    parser.add_argument("--fix", action="store_true", help="mend the cache and the `lightning` command")
    return parser


def package_lines() -> Iterator[str]:
    """Yield each package we need with its version here and the one asked for."""
    try:
        requirements = requires("medsam-tune") or []
    except PackageNotFoundError:
        yield f"medsam-tune itself is not installed; running from {Path(__file__).parents[2]}"
        return
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        name, *wanted = re.split(r"(?=[^\w.\-])", requirement, maxsplit=1)
        installed = _version(name)
        yield f"{name:<30}{installed or 'MISSING':<14}{''.join(wanted)}".rstrip()
        if name == "lightning" and installed in MALICIOUS_LIGHTNING:
            yield f"  {installed} was a malicious upload (GHSA-w37p-236h-pfx3). Type: pip install 'lightning>=2.6.6,<3'"


def device_lines() -> Iterator[str]:
    """Yield the processor and the accelerators torch sees, with the precision that suits each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        import torch
    except (ImportError, OSError) as error:
        yield f"cpu: {cores} cores"
        yield f"torch cannot be imported: {error}"
        return
    yield f"cpu: {cores} cores, {torch.get_num_threads()} torch threads, {torch.backends.cpu.get_cpu_capability()}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        precision = "bf16-mixed" if properties.major >= FIRST_WITH_BF16 else "16-mixed"
        memory = format_bytes(properties.total_memory)
        yield f"cuda:{index}: {properties.name}, {memory}; --trainer.precision={precision} suits it"
    if torch.backends.mps.is_available():
        yield "mps: --trainer.accelerator=mps"


def memory_lines() -> Iterator[str]:
    """Yield the memory of this machine, and the container's limit where one is set."""
    if MEMINFO.is_file():
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in MEMINFO.read_text().splitlines()}
        yield f"{format_bytes(kilobytes['MemTotal'] * 1024)} in all, {format_bytes(kilobytes['MemAvailable'] * 1024)} available"
    elif hasattr(os, "sysconf"):
        yield f"{format_bytes(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))} in all"
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    if limit.isdigit():
        yield f"this container may use {format_bytes(int(limit))}"


def weight_lines() -> Iterator[str]:
    """Yield the file of each released weight that is found here."""
    from medsam_tune.backbone.weights import WEIGHTS, find_weights

    missing = []
    for name in WEIGHTS:
        if path := find_weights(name):
            yield f"{name}: {path}"
        else:
            missing.append(name)
    if missing:
        yield f"not here: {', '.join(missing)}; medsam-tune weights get NAME"


def recipe_lines() -> Iterator[str]:
    """Yield where the bundled recipes lie."""
    try:
        yield f"{recipes_folder()}: {len(bundled_recipes())}; medsam-tune recipes list"
    except RecipeError as error:
        yield str(error)


def cache_lines() -> Iterator[str]:
    """Yield where embeddings are cached and how much of it is used."""
    from medsam_tune.precompute import cache_root, entries

    stores = entries()
    size = format_bytes(sum(store.bytes for store in stores))
    counts = {kind: sum(store.images for store in stores if store.kind == kind) for kind in ("embeddings", "priors")}
    held = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    yield f"{cache_root()}: {held}, {size}; $MEDSAM_TUNE_CACHE moves it"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
