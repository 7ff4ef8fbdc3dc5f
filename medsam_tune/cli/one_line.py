"""The one place where whatever is left becomes one line on stderr, an exit status, and a log with the traceback."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

from medsam_tune import __version__
from medsam_tune.errors import DataFaults, MedsamTuneError, RecipeError, memory_line, own_error, ran_out_of_memory
from medsam_tune.files import write_fault, write_text
from medsam_tune.folders import state_folder
from medsam_tune.training.run_folder import RUN_FOLDER_VARIABLE, RunFolder
from medsam_tune.yaml_files import read_yaml

TRACEBACK_VARIABLE = "MEDSAM_TUNE_TRACEBACK"
LOG_FILE = "error.log"
MAX_LETTERS = 1500

_IN_A_WORKER = re.compile(r"^Caught \w+ in .*process")
_CODE = re.compile(r'\s*\|?\s*File ".*", line \d+')
_PATH = re.compile(r"(?<![\w./~])(?:[\w^~.-]*/)(?:[^\s'\",;:()\[\]{}<>]+/)*[^\s'\",;:()\[\]{}<>/]+")
_QUOTED_PATH = re.compile(r"(['\"])[^'\"\n]*/([^'\"/\n]+)\1")
_DATA_WORD = re.compile(r"(\b(?:data|data\.root|--data|--data\.root)[= ])('[^']*'|\S+)")
_LOWER = (
    "Lower data.batch_size (data.eval_batch_size where images are scored), model.objects_per_decode or the sizes in the "
    "recipe, or use a machine with more memory."
)
_NO_BATCH = "DataLoader timed out"
# gloo's and NCCL's words for a process at the other end that is gone or silent.
_OTHER_GONE = re.compile(r"Connection (?:reset|closed) by (?:remote )?peer|remote process exited|Watchdog caught collective")


class OneLine:
    """Hold a command: what it raises becomes a line on stderr and ``status``.

    What a user can mend has status 2; an interrupt 130; what nobody foresaw 1, with its traceback in ``error.log`` beside the
    run, or in the state folder where there is no run. ``MEDSAM_TUNE_TRACEBACK=1`` lets it all through instead.

    Args:
        words: The command line, for the log.

    Attributes:
        status: The exit status.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.status = 0

    def __enter__(self) -> OneLine:
        """Remember which run this process belonged to before."""
        self._run_before = os.environ.get(RUN_FOLDER_VARIABLE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        """Say what was raised in one line; True keeps it from going further."""
        if isinstance(error, KeyboardInterrupt):
            self.status = 130
        elif isinstance(error, BrokenPipeError):
            # The reader, such as head, has seen enough; the interpreter's own last flush must not complain either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.status = 141
        elif isinstance(error, SystemExit):
            self.status = _exit_status(error)
        elif isinstance(error, Exception):
            return self._say(error)
        else:
            return False  # nothing was raised, or what no command may swallow
        return True

    def _say(self, error: Exception) -> bool:
        if os.environ.get(TRACEBACK_VARIABLE):
            return False
        ours = own_error(error) or _of_the_trainer(error)
        self.status = 1 if ours is None else 2
        line = self._unforeseen(error) if ours is None else plain_message(ours)
        print(f"error: {chr(10).join(map(shortened, line.splitlines()))}", file=sys.stderr)
        return True

    def _unforeseen(self, error: Exception) -> str:
        log = self._write_log(error)
        place = f"The traceback is in {log}." if log else f"Set {TRACEBACK_VARIABLE}=1 to see the traceback."
        return f"{shortened(describe(error))} {place}"

    def _write_log(self, error: Exception) -> Path | None:
        head = f"medsam-tune {__version__}: {shlex.join(self.words)}\n{datetime.now().isoformat(timespec='seconds')}\n"
        text = head + "".join(traceback.format_exception(error))
        run = self._run_folder()
        for folder in (run, state_folder() / "errors", Path(tempfile.gettempdir())):
            if folder is not None:
                name = LOG_FILE if folder == run else f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{os.getpid()}.log"
                # A run's folder is given away; the others stay here.
                shown = without_paths(text, _data_root(folder)) if folder == run else text
                with suppress(MedsamTuneError):
                    return write_text(folder / name, shown)
        return None

    def _run_folder(self) -> Path | None:
        """Return the folder of the run that failed, if one was made and is still there."""
        named = os.environ.get(RUN_FOLDER_VARIABLE)
        # Ranks that Lightning starts inherit the variable; elsewhere an old value belongs to an earlier run.
        belongs = named is not None and (named != self._run_before or "LOCAL_RANK" in os.environ)
        return Path(named) if named is not None and belongs and Path(named).is_dir() else None


def without_paths(text: str, root: str = "") -> str:
    r"""Return a log without the folders of its paths: one may be named after a patient. Those of the code stay.

    Args:
        text: The log, the command line first.
        root: The data folder, whose name may have blanks.

    Examples:
        >>> without_paths("medsam-tune run a.yaml data=scans/DOE\nOSError: /scans/DOE^JANE/p1.png: cut off").splitlines()
        ['medsam-tune run a.yaml data=DIR', 'OSError: p1.png: cut off']
    """
    lines = (text.replace(root, "DIR") if root else text).splitlines(keepends=True)
    lines[:1] = [_DATA_WORD.sub(r"\1DIR", line) for line in lines[:1]]
    return "".join(line if _CODE.match(line) else _without_folders(line) for line in lines)


def _without_folders(line: str) -> str:
    line = _QUOTED_PATH.sub(r"\1\2\1", line)
    return _PATH.sub(lambda found: found[0].rpartition("/")[2], line)


def _data_root(run: Path) -> str:
    """Return the data folder that a run recorded, or nothing where it recorded none."""
    with suppress(MedsamTuneError):
        local = read_yaml(RunFolder(run).local) if RunFolder(run).local.is_file() else None
        return str(((local or {}).get("data") or {}).get("root") or "") if isinstance(local, Mapping) else ""
    return ""


def plain_message(error: MedsamTuneError) -> str:
    """Return the message in one line, or one for each faulty file; torch puts a loader's whole traceback into it."""
    text = str(error).strip()
    if isinstance(error, DataFaults):
        return text
    if _IN_A_WORKER.match(text):
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def describe(error: Exception) -> str:
    """Say in one line what an unforeseen error was about, where it was met, and what may help.

    Examples:
        >>> describe(ValueError("width is odd"))
        'ValueError: width is odd (elsewhere). Please report it with that file, unless a class of your own is at fault.'
    """
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    if _IN_A_WORKER.match(said):
        said = str(error).strip().splitlines()[-1]
    if ran_out_of_memory(error):
        return memory_line(error, _LOWER)
    if said.startswith(_NO_BATCH):
        return (
            f"data.num_workers: a worker gave no batch in time ({said}). It may have no room left in /dev/shm, or the disk may "
            "be slow. Set data.num_workers: 0, or lower data.batch_size."
        )
    if _OTHER_GONE.search(said):
        return (
            f"another process of this training has ended, or answers no more ({said}). What it said, or the log of its node, "
            "tells why. The same command with --ckpt_path=last goes on from the last checkpoint."
        )
    if isinstance(error, OSError) and error.filename is not None:
        return write_fault(Path(str(error.filename)), error).replace("could not be written", "cannot be used")
    if isinstance(error, ImportError):
        return f"{error.name or 'a module'}: cannot be imported ({said}). Install it, or correct the name in the recipe."
    return (
        f"{type(error).__name__}: {said} ({_place(error)}). "
        "Please report it with that file, unless a class of your own is at fault."
    )


def shortened(text: str) -> str:
    """Return a line of at most ``MAX_LETTERS`` letters: a value on the command line may have thousands."""
    half = MAX_LETTERS // 2
    return text if len(text) <= MAX_LETTERS else f"{text[:half]} ... {text[-half:]}"


def _of_the_trainer(error: Exception) -> MedsamTuneError | None:
    """Return Lightning's refusal of a trainer setting as an error of the recipe, or None for anything else."""
    frames = traceback.extract_tb(error.__traceback__)
    refused = frames and f"{os.sep}lightning{os.sep}pytorch{os.sep}" in frames[-1].filename
    return (
        RecipeError(f"trainer: {' '.join(str(error).split())} Change it.")
        if refused and isinstance(error, ValueError)
        else None
    )


def _place(error: Exception) -> str:
    """Return file and line where the package, or a class of the user's, was when it happened."""
    package = f"{os.sep}medsam_tune{os.sep}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in frame.filename]
    if not frames:
        return "elsewhere"
    return f"{frames[-1].filename.rpartition(package)[2]}, line {frames[-1].lineno}"


def _exit_status(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1
