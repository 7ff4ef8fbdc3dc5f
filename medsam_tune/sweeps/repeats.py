"""One recipe trained several times, over seeds or folds, and the test figures of all of them as one."""

from __future__ import annotations

import csv
import itertools
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError, RecipeError
from medsam_tune.evaluation.case_tables import CaseTable, pool, read_case_table
from medsam_tune.files import read_json, write_json, write_text
from medsam_tune.training.console import say
from medsam_tune.training.run_folder import RunFolder
from medsam_tune.yaml_files import read_yaml

_SEEDS = re.compile(r"--seeds=(.*)")
_FOLDS = re.compile(r"--folds=(.*)")
_ONE_FOLD = re.compile(r"--(data\.split\.)?fold=.*")
_NAME = re.compile(r"--(?:run\.)?name=(.*)")
_FOLDER = re.compile(r"--run\.folder=(.*)")


@dataclass(frozen=True)
class Repetition:
    """Name one training of several.

    Attributes:
        label: Such as ``seed0`` or ``fold2-seed0``; it stands behind the run's name.
        words: What it sets.
    """

    label: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Repeats:
    """Say which trainings of one recipe belong together.

    Attributes:
        over: Such as ``seeds`` or ``folds-seeds``; the pooled folder carries it.
        repetitions: The trainings.
        words: What all of them set.
    """

    over: str
    repetitions: tuple[Repetition, ...]
    words: tuple[str, ...]


def find_repeats(words: Sequence[str]) -> Repeats | None:
    """Return the repetitions that a command line asks for with ``--seeds=0,1,2`` or ``--folds=5``; None for a single run.

    Raises:
        RecipeError: If the seeds or folds cannot be used.
    """
    seeds = [found[1] for found in map(_SEEDS.fullmatch, words) if found]
    # With a fold the number of folds is a key of the split, as ever.
    one_fold = any(_ONE_FOLD.fullmatch(word) for word in words)
    folds = [] if one_fold else [found[1] for found in map(_FOLDS.fullmatch, words) if found]
    if not seeds and not folds:
        return None
    axes = [*([_fold_axis(folds[-1])] if folds else []), *([_seed_axis(seeds[-1])] if seeds else [])]
    repetitions = tuple(
        Repetition("-".join(part.label for part in parts), tuple(word for part in parts for word in part.words))
        for parts in itertools.product(*axes)
    )
    rest = tuple(word for word in words if not _SEEDS.fullmatch(word) and (one_fold or not _FOLDS.fullmatch(word)))
    return Repeats("-".join([*(["folds"] if folds else []), *(["seeds"] if seeds else [])]), repetitions, rest)


def run_repeats(recipe: Path, repeats: Repeats) -> int:
    """Run every repetition as a process of its own and pool what they tested.

    Returns:
        0, or the exit status of the repetition that failed, after which no other is begun.

    Raises:
        DataError: If a repetition left no table of test cases.
    """
    root, name = _runs_root(recipe, repeats.words), _name(repeats.words)
    runs: dict[str, Path] = {}
    for number, repetition in enumerate(repeats.repetitions, 1):
        say(f"[{number}/{len(repeats.repetitions)}] {repetition.label}")
        label = f"{name}-{repetition.label}" if name else repetition.label
        place = f"*/{recipe.stem}-{label}/*"
        before = set(root.glob(place))
        status = _run([str(recipe), *_without_name(repeats.words), *repetition.words, f"--run.name={label}"])
        if status != 0:
            return status
        found = sorted(set(root.glob(place)) - before)
        if not found or not RunFolder(found[-1]).test_cases.is_file():
            raise DataError(f"{root / place}: {repetition.label} left no test_cases.csv, so there is nothing to pool.")
        runs[repetition.label] = found[-1]
        say("")
    folder = _pooled_folder(runs, recipe.stem, "-".join([*([name] if name else []), repeats.over]))
    say(pooled_text(write_pooled(runs, folder), folder))
    return 0


def write_pooled(runs: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Write ``summary.json`` and ``test_cases.csv`` of several runs as one; return the summary.

    Args:
        runs: Tested runs by label, two or more.
        folder: Where both go. `medsam-tune compare` takes it as a run.
    """
    tables = {label: read_case_table(RunFolder(run).test_cases) for label, run in runs.items()}
    pooled, means = pool(tables.values()), {label: table.mean for label, table in tables.items()}
    interval = pooled.interval()
    dice = {
        "mean": pooled.mean if pooled.dice else None,
        "std": statistics.stdev(pooled.dice.values()) if len(pooled.dice) > 1 else None,
        "ci95": None if interval is None else [interval.low, interval.high],
        "ci95_method": None if interval is None else interval.method,
    }
    summary = {
        "test": {"dice": dice, "n_cases": len(pooled.dice)},
        "runs": {label: {"folder": str(run), "dice": means[label], "verdict": _verdict(run)} for label, run in runs.items()},
        "std_over_runs": statistics.stdev(means.values()),
    }
    write_json(RunFolder(folder).summary, summary)
    write_text(RunFolder(folder).test_cases, _table_text(pooled))
    return summary


def pooled_text(summary: Mapping[str, Any], folder: Path) -> str:
    """Return the last lines of a repeated run: each run's figure, their spread, and the mean over cases with its interval."""
    runs, dice, spread = summary["runs"], summary["test"]["dice"], summary["std_over_runs"]
    ends = dice["ci95"]
    shown = "one case has no interval" if ends is None else f"95 % interval {ends[0]:.3f} to {ends[1]:.3f}"
    return "\n".join(
        [
            *(f"{label:<14} Dice {values['dice']:.4f}  {values['verdict']}".rstrip() for label, values in runs.items()),
            f"Standard deviation over {len(runs)} runs {spread:.4f}",
            f"Test Dice {dice['mean']:.4f} ({shown}) over {summary['test']['n_cases']} cases, each over its runs",
            f"Pooled in   {folder}",
        ]
    )


def _seed_axis(text: str) -> list[Repetition]:
    seeds = text.strip("[] ").replace(" ", "").split(",")
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or not all(seed.isdecimal() for seed in seeds):
        raise RecipeError(f"seeds: expected two numbers or more, such as seeds=0,1,2, got {text!r}. One run takes seed=0.")
    return [Repetition(f"seed{seed}", (f"--seed_everything={seed}",)) for seed in seeds]


def _fold_axis(text: str) -> list[Repetition]:
    if not text.isdecimal() or int(text) < 2:
        raise RecipeError(f"folds: expected a number of at least 2, such as folds=5, got {text!r}.")
    words = f"--data.split.folds={text}"
    return [Repetition(f"fold{fold}", (words, f"--data.split.fold={fold}")) for fold in range(int(text))]


def _run(words: Sequence[str]) -> int:
    with _passing_on(subprocess.Popen([sys.executable, "-m", "medsam_tune", "run", *words])) as process:
        return process.wait()


@contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Let a training answer the signals: Ctrl-C reaches it from the terminal, SIGTERM from here."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(signal.SIGTERM)),
    }
    try:
        yield process
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pooled_folder(runs: Mapping[str, Path], recipe: str, name: str) -> Path:
    first = next(iter(runs.values()))
    return first.parents[1] / f"{recipe}-{name}" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def _runs_root(recipe: Path, words: Sequence[str]) -> Path:
    given = [found[1] for found in map(_FOLDER.fullmatch, words) if found]
    content = read_yaml(recipe)
    section = content.get("run") if isinstance(content, Mapping) else None
    stated = section.get("folder") if isinstance(section, Mapping) else None
    return Path(given[-1] if given else stated or "runs").expanduser()


def _name(words: Sequence[str]) -> str:
    return next((found[1] for found in map(_NAME.fullmatch, reversed(words)) if found), "")


def _without_name(words: Sequence[str]) -> list[str]:
    return [word for word in words if not _NAME.fullmatch(word)]


def _verdict(run: Path) -> str:
    summary = read_json(RunFolder(run).summary, "Test the run again.")
    return str((summary.get("verdict") or {}).get("verdict", ""))


def _table_text(pooled: CaseTable) -> str:
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("case", "label", "dice", "excluded"))
    # A case's mean over its labels is what is known here, so it stands for each of them.
    for case, label in itertools.product(sorted(pooled.cases), sorted(pooled.labels)):
        value = pooled.dice.get(case)
        writer.writerow((case, label, "" if value is None else f"{value:.6f}", str(value is None).lower()))
    return buffer.getvalue()
