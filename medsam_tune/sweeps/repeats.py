"""One recipe trained several times, over seeds or folds, and the test figures of all of them as one."""

from __future__ import annotations

import hashlib
import itertools
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medsam_tune.errors import DataError, RecipeError
from medsam_tune.files import read_json, write_json
from medsam_tune.training.console import say
from medsam_tune.training.pooling import pooled_folder, pooled_text, write_pooled
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

    The same command goes on where it was stopped: what was finished is kept, and a training that has a checkpoint is continued.

    Returns:
        0, or the exit status of the repetition that failed, after which no other is begun.

    Raises:
        DataError: If a repetition left no table of test cases.
    """
    root, name = _runs_root(recipe, repeats.words), _name(repeats.words)
    log = RepeatLog(root, recipe, repeats)
    runs: dict[str, Path] = {}
    for number, repetition in enumerate(repeats.repetitions, 1):
        label = f"{name}-{repetition.label}" if name else repetition.label
        place = f"*/{recipe.stem}-{label}/*"
        begun = log.run_of(repetition.label, place)
        head = f"[{number}/{len(repeats.repetitions)}] {repetition.label}"
        if begun is not None and _is_tested(begun):
            say(f"{head}: finished earlier in {begun}")
            runs[repetition.label] = begun
            continue
        say(head)
        words = [str(recipe), *_without_name(repeats.words), *repetition.words, f"--run.name={label}"]
        if begun is not None and RunFolder(begun).last_checkpoint.is_file():
            words.append(f"--ckpt_path={RunFolder(begun).last_checkpoint}")
        else:
            log.begin(repetition.label, place)
        status = _run(words)
        if status != 0:
            return status
        found = log.run_of(repetition.label, place)
        if found is None or not _is_tested(found):
            raise DataError(f"{root / place}: {repetition.label} left no test_cases.csv, so there is nothing to pool.")
        runs[repetition.label] = found
        say("")
    folder = pooled_folder(next(iter(runs.values())), "-".join([recipe.stem, *([name] if name else []), repeats.over]))
    say(pooled_text(write_pooled(runs, folder), folder))
    return 0


class RepeatLog:
    """Remember which runs a command began, so that the same command goes on with them.

    Args:
        root: The folder of all runs; the log lies in ``.repeats`` below it.
        recipe: The recipe; another text of it is another command.
        repeats: What the command asks for.
    """

    def __init__(self, root: Path, recipe: Path, repeats: Repeats) -> None:
        asked = [*repeats.words, repeats.over, *(repetition.label for repetition in repeats.repetitions)]
        text = "\0".join([recipe.stem, recipe.read_text(encoding="utf-8"), *asked])
        self._root = root
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        self._path = root / ".repeats" / f"{digest}.json"
        kept = read_json(self._path, "Remove it, and all is trained anew.") if self._path.is_file() else {}
        self._before: dict[str, list[str]] = kept

    def begin(self, label: str, place: str) -> None:
        """Note which runs there are at a place before a repetition begins."""
        self._before[label] = self._runs(place)
        write_json(self._path, self._before)

    def run_of(self, label: str, place: str) -> Path | None:
        """Return the run that a repetition began, the newest where there are several; None where it has begun none."""
        if label not in self._before:
            return None
        new = sorted(set(self._runs(place)) - set(self._before[label]))
        return self._root / new[-1] if new else None

    def _runs(self, place: str) -> list[str]:
        return sorted(found.relative_to(self._root).as_posix() for found in self._root.glob(place) if found.is_dir())


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


def _is_tested(run: Path) -> bool:
    return RunFolder(run).test_cases.is_file() and RunFolder(run).summary.is_file()
