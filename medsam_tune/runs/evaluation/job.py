"""Ask models about every case of the data, in one process or several, and keep each case as it comes."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from medsam_tune import __version__
from medsam_tune.data.names import file_name
from medsam_tune.errors import DataError, RecipeError, memory_advice
from medsam_tune.files import read_json, write_json
from medsam_tune.inference.answer_records import question_of
from medsam_tune.protocols.asking import AskableModel
from medsam_tune.protocols.base import Protocol, Row
from medsam_tune.runs.asked_model import AskedModel, open_model
from medsam_tune.runs.evaluation.data import DataPlan, EvaluationData

CASES, MARK = "cases", "evaluation.json"


@dataclass(frozen=True)
class EvaluationPlan:
    """State an evaluation in values that another process can be sent.

    Attributes:
        models: As they were named.
        data: What they are asked about.
        protocol: How.
        seed: Decides whatever is drawn.
        batch_size: Prompts decoded at once; it changes no figure.
        checkpoint: Where base weights lie that are a file of one's own.
        trusted: Whether classes from outside of ``medsam_tune`` are imported.
    """

    models: tuple[str, ...]
    data: DataPlan
    protocol: Protocol
    seed: int = 0
    batch_size: int = 0
    checkpoint: str | None = None
    trusted: bool = False

    def names(self) -> tuple[str, ...]:
        """Return what tables call the models: their last words, as many as tell them apart.

        Examples:
            >>> from medsam_tune.protocols.segment import SegmentProtocol
            >>> EvaluationPlan(("lite_medsam", "runs/a/lora/1", "runs/b/lora/1"), None, SegmentProtocol()).names()
            ('lite_medsam', 'a/lora/1', 'b/lora/1')
        """
        parts = [Path(name).parts for name in self.models]
        # A run's last word is a time, which says little alone.
        for count in range(2, max(2, *map(len, parts)) + 1):
            short = tuple("/".join(words[-count:]) for words in parts)
            if len(set(short)) == len(short):
                return short
        raise RecipeError(f"MODEL: expected each model once, got {', '.join(self.models)}.")


class Asker:
    """Hold the opened models and data of one process.

    Args:
        plan: The evaluation.
        device: Where the models work, such as ``cpu`` or ``cuda:0``.

    Raises:
        MedsamTuneError: If something cannot be used.
    """

    def __init__(self, plan: EvaluationPlan, device: str) -> None:
        self.plan, self.data = plan, EvaluationData(plan.data)
        self._opened = [open_model(name, checkpoint=plan.checkpoint, trusted=plan.trusted) for name in plan.models]
        self.models = [self._askable(*each, device) for each in zip(plan.names(), self._opened, strict=True)]
        for model in self.models:
            plan.protocol.check(model)

    def question(self, case: str) -> str:
        """Return the checksum of everything that the rows of a case follow from."""
        plan = self.plan
        identities = [[name, each.identity] for name, each in zip(plan.names(), self._opened, strict=True)]
        data = plan.data
        read = [repr(data.source), data.target, data.patient, data.slices, data.ignore_label, repr(data.colours), data.inverted]
        protocol = [plan.protocol.name, repr(plan.protocol), plan.seed, plan.protocol.columns]
        return question_of(__version__, identities, read, protocol, self.data.checksums(case))

    def record(self, case: str, question: str) -> dict[str, Any]:
        """Ask every model about a case and return what its file holds.

        Raises:
            DataError: If the case cannot be read.
        """
        images = self.data.images(case)
        rows = [row for model in self.models for row in self.plan.protocol.rows(images, model, seed=self.plan.seed)]
        shown = [sum(1 for _ in image.objects()) for image in images]
        return {
            "case": case,
            "question": question,
            "images": len(images),
            "images_without_object": sum(not count for count in shown),
            "objects": sum(shown),
            "rows": [[_kept(row.get(name)) for name in self.plan.protocol.columns] for row in rows],
        }

    def _askable(self, name: str, model: AskedModel, device: str) -> AskableModel:
        model.predictor.segmenter.to(device)
        return AskableModel(name, model.predictor, model.prior_finder(), self.plan.batch_size, model.is_untuned)


@dataclass(frozen=True)
class CaseRecord:
    """Hold what is known of one case.

    Attributes:
        case: Its name.
        images: How many it has.
        images_without_object: How many of them show nothing to ask for.
        objects: How many are asked for.
        rows: Of the table.
        stood: Whether it was there from before.
    """

    case: str
    images: int
    images_without_object: int
    objects: int
    rows: tuple[Row, ...]
    stood: bool = False


class EvaluationJob:
    """Hold an evaluation and its folder, all checked before anything is asked.

    Args:
        plan: The evaluation.
        out: Its folder; what stands there of the same questions is kept.
        devices: Where models work, one or more.
        workers: Processes; 1 works in this one. By default one for each device.
        overwrite: Ask again what was answered.

    Raises:
        MedsamTuneError: If something cannot be used, or ``out`` holds something else.
    """

    def __init__(
        self, plan: EvaluationPlan, out: Path, *, devices: Sequence[str] = ("cpu",), workers: int = 0, overwrite: bool = False
    ) -> None:
        if workers < 0:
            raise RecipeError(f"--workers: expected 1 or more, got {workers}.")
        self.plan, self.out, self.devices, self.overwrite = plan, out, tuple(devices), overwrite
        self.workers = workers or len(self.devices)
        _check_devices(self.devices)
        _check_folder(out)
        self._asker = Asker(plan, self.devices[0])
        self.cases = self._asker.data.cases
        write_json(out / MARK, {"protocol": plan.protocol.name, "models": list(plan.models), "data": plan.data.name})

    def records(self) -> Iterator[CaseRecord]:
        """Yield each case, those from before first; a second call after a kill asks about the others alone."""
        questions = {case: self._asker.question(case) for case in self.cases}
        left = []
        for case, question in questions.items():
            known = None if self.overwrite else self._stored(case, question)
            if known is None:
                left.append((case, question))
            else:
                yield self._record(known, stood=True)
        if self.workers == 1 or len(left) < 2:
            for case, question in left:
                yield self._record(_ask_and_keep(self._asker, self.out, case, question))
        elif left:
            yield from self._in_processes(left)

    def _in_processes(self, left: Sequence[tuple[str, str]]) -> Iterator[CaseRecord]:
        context = get_context("spawn")
        count = min(self.workers, len(left))
        devices: Queue[str] = context.Queue()
        for number in range(count):
            devices.put(self.devices[number % len(self.devices)])
        threads = max(1, torch.get_num_threads() // count)
        pool = ProcessPoolExecutor(count, context, _open, (self.plan, devices, threads))
        try:
            asked = [pool.submit(_ask_in_worker, self.out, case, question) for case, question in left]
            for future in as_completed(asked):
                yield self._record(future.result())
        finally:
            # After Ctrl-C or a fault: what is being asked is finished and kept, what is not begun is dropped.
            pool.shutdown(wait=True, cancel_futures=True)

    def _stored(self, case: str, question: str) -> dict[str, Any] | None:
        path = case_file(self.out, case)
        with suppress(DataError, TypeError, KeyError):
            content = read_json(path, "") if path.is_file() else {}
            if content.get("question") == question:
                return dict(content)
        return None

    def _record(self, content: dict[str, Any], *, stood: bool = False) -> CaseRecord:
        columns = self.plan.protocol.columns
        rows = tuple({name: _read(value) for name, value in zip(columns, row, strict=True)} for row in content["rows"])
        images, without, objects = (content[name] for name in ("images", "images_without_object", "objects"))
        return CaseRecord(content["case"], images, without, objects, rows, stood)


def case_file(out: Path, case: str) -> Path:
    """Return the file of a case."""
    path = out / CASES / file_name(case)
    return path.with_name(f"{path.name}.json")


_worker: list[Asker] = []


def _open(plan: EvaluationPlan, devices: Queue[str], threads: int) -> None:
    """Open models and data in a process of the pool; Ctrl-C is for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _worker[:] = [Asker(plan, devices.get())]


def _ask_in_worker(out: Path, case: str, question: str) -> dict[str, Any]:
    return _ask_and_keep(_worker[0], out, case, question)


def _ask_and_keep(asker: Asker, out: Path, case: str, question: str) -> dict[str, Any]:
    lower = f"{case}: set --batch-size=1 or fewer --workers, or cut its images into tiles; the same command goes on there."
    with memory_advice(lower):
        content = asker.record(case, question)
    write_json(case_file(out, case), content)
    return content


def _check_devices(devices: Sequence[str]) -> None:
    for device in devices:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise RecipeError(f"--devices: {device} cannot be used ({reason}). Name cpu, or a GPU that is there.") from error


def _check_folder(out: Path) -> None:
    if out.is_file():
        raise RecipeError(f"{out}: is a file; an evaluation needs a folder. Give another with -o.")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file() and not _only_pairs(out):
        raise RecipeError(f"{out}: holds something else than an evaluation. Give another folder with -o.")


def _only_pairs(out: Path) -> bool:
    # What reading the data needed, written before the models were opened.
    return all(path.name.startswith("data.") for path in out.iterdir())


def _kept(value: Any) -> Any:  # noqa: ANN401 - a cell
    # JSON has no infinity.
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _read(value: Any) -> Any:  # noqa: ANN401 - a cell
    return math.inf if value == "inf" else value
