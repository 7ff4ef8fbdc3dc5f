"""What a run leaves that must not depend on kills, and a run that is killed and typed again."""

import csv
import shutil

import torch
from safetensors.torch import load_file

from medsam_tune.training.run_folder import RunFolder
from medsam_tune.training.run_place import RUNS


def newest(root):
    """Return the newest run below ``root``."""
    return RunFolder(max(root.glob(RUNS), key=lambda path: path.stat().st_ctime_ns))


def go_on(deadly, place, root, *settings, **moment):
    """Continue the newest run below ``root``, or begin where none has a checkpoint."""
    begun = list(root.glob(f"{RUNS}/checkpoints/last.ckpt"))
    words = (*settings, f"--run.folder={root.name}", *(["--ckpt_path=last"] if begun else []))
    return deadly.run(*words, folder=place, **moment)


def recorded(run):
    """Return everything that must not depend on kills."""
    with run.metrics_csv.open(newline="") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    last = torch.load(run.last_checkpoint, weights_only=True)
    return {
        "rows": sorted(tuple(sorted(row.items())) for row in rows),
        "best": torch.load(run.checkpoints / "best.ckpt", weights_only=True)["state_dict"],
        "last": {name: last[name] for name in ("state_dict", "optimizer_states", "global_step", "epoch")},
        "schedulers": last["lr_schedulers"],
        "test": run.test_cases.read_text(),
        "export": {path.name: load_file(path) for path in run.export.rglob("*.safetensors")},
        "leftovers": leftovers(run.path),
    }


def leftovers(folder):
    """Return the hidden and temporary files below a folder."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(".") or ".tmp" in path.name
    )


def same_tensors(found, expected):
    """Tell whether two trees of tensors and numbers are equal to the bit."""
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, expected)
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(same_tensors(found[k], expected[k]) for k in found)
        )
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same_tensors, found, expected))
    return found == expected


def differences(found, expected):
    """Return the names of what differs between two records."""
    return [name for name in expected if not same_tensors(found[name], expected[name])]


def killed_at_the_disk(deadly, place, root, settings, call):
    """Kill a run just before its ``call``-th change of the disk, with an empty cache, type it again, and return its folder.

    Returns:
        The exit statuses of both, the run that ended, and what is left over below the workplace.
    """
    for folder in (root, place / "cache"):
        shutil.rmtree(folder, ignore_errors=True)
    statuses = go_on(deadly, place, root, *settings, at="disk", call=call), go_on(deadly, place, root, *settings)
    return statuses, newest(root), leftovers(root) + leftovers(place / "cache")
