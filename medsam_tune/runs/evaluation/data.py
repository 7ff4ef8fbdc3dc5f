"""The data that models are evaluated on: a folder that ``init`` understands, a bundled sample, or the test cases of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.fingerprint import take_fingerprint
from medsam_tune.data.layouts import detect
from medsam_tune.data.own_data import data_settings, target_of, write_needed
from medsam_tune.data.pairing import first_names
from medsam_tune.data.patients import patient_rule, patients_of
from medsam_tune.data.sample import data_folder
from medsam_tune.data.stored_images import evenly
from medsam_tune.data.targets import Target, apply_target
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.export.parts import PartReader
from medsam_tune.files import sha256_of
from medsam_tune.protocols.asking import StudiedImage
from medsam_tune.runs.listing import run_or_folder
from medsam_tune.runs.run import Run
from medsam_tune.training.run_folder import RunFolder


@dataclass(frozen=True)
class DataPlan:
    """State which data are read and how, in plain values that another process can be sent.

    Attributes:
        name: As it was named.
        root: The folder.
        source: ``class_path`` and ``init_args`` of what reads it.
        target: What one object is.
        patient: As ``data.patient``.
        ignore_label: As ``data.ignore_label``.
        colours: As ``data.colours``.
        inverted: As ``data.inverted_masks``.
        cases: The cases that are asked about; None for all.
        faults: Files that cannot be used and are left out.
        slices: Slices of a case at most, evenly spread; 0 for all.
        trusted: Whether classes from outside of ``medsam_tune`` are imported.
    """

    name: str
    root: Path
    source: dict[str, Any]
    target: Target
    patient: str | None = None
    ignore_label: int | None = None
    colours: dict[str, list[int]] | None = None
    inverted: bool = False
    cases: tuple[str, ...] | None = None
    faults: tuple[str, ...] = ()
    slices: int = 0
    trusted: bool = field(default=False, compare=False)


def plan_data(
    name: str, out: Path, *, target: Target | None = None, together: bool = False, slices: int = 0, trusted: bool = False
) -> DataPlan:
    """Look at what is named, and say how it is read.

    Args:
        name: A folder, ``sample:NAME``, or a run: its data as it reads them, its test cases alone.
        out: The folder of the evaluation, where a table of pairs goes if one is needed.
        target: What one object is; by default each instance where masks number instances, else each label.
        together: All instances of an image are one object by default.
        slices: Slices of a case at most.
        trusted: Import classes from outside of ``medsam_tune`` that a run names.

    Raises:
        MedsamTuneError: If the data cannot be used.
    """
    folder = data_folder(name) if name.startswith("sample:") else run_or_folder(name, "DATA")
    if slices < 0:
        raise RecipeError(f"--slices: expected 0 or more, got {slices}.")
    if RunFolder(folder).config.is_file():
        return _of_run(name, folder, target=target, slices=slices, trusted=trusted)
    pairing = detect(folder)
    found = take_fingerprint(folder, pairing)
    wanted = target or target_of(found, "box")
    if target is None and together and wanted == "per_instance":
        wanted = "binary"
    beside = out / "data"
    settings = data_settings(found, wanted, beside=beside)
    write_needed(found, beside)
    return DataPlan(
        name,
        folder,
        {"class_path": settings.class_path, "init_args": settings.init_args},
        wanted,
        patient=settings.keys.get("patient"),
        ignore_label=settings.keys.get("ignore_label"),
        colours=settings.keys.get("colours"),
        faults=found.faults,
        slices=slices,
    )


def _of_run(name: str, folder: Path, *, target: Target | None, slices: int, trusted: bool) -> DataPlan:
    run = Run.open(folder, trusted=trusted)
    data = run.config.get("data") or {}
    source = data.get("source")
    return DataPlan(
        name,
        data_folder(str(data.get("root"))),
        source if isinstance(source, dict) else {"class_path": str(source)},
        target or data.get("target", "binary"),
        patient=data.get("patient"),
        ignore_label=data.get("ignore_label"),
        colours=data.get("colours"),
        inverted=bool(data.get("inverted_masks")),
        cases=run.splits.test,
        slices=slices,
        trusted=trusted,
    )


class EvaluationData:
    """Hold opened data, case by case.

    Args:
        plan: What is read.

    Attributes:
        cases: The cases that are asked about, sorted.

    Raises:
        MedsamTuneError: If the data cannot be used.
    """

    def __init__(self, plan: DataPlan) -> None:
        self.plan = plan
        reader = PartReader(trusted=plan.trusted)
        source: SegmentationSource = reader.part(plan.source, SegmentationSource, "data.source").build()
        source.ignore_label, source.target = plan.ignore_label, plan.target
        if plan.colours is not None:
            source.use_colours(plan.colours)
        if plan.inverted:
            source.invert_masks()
        source.open(plan.root)
        self._source = source
        self._indices: dict[str, list[int]] = defaultdict(list)
        for index in source.select(range(len(source)), "evaluate"):
            self._indices[source.case_ids()[index]].append(index)
        named = dict(zip(source.case_ids(), source.patient_ids(), strict=True))
        self._patients = patients_of(named, patient_rule(named, plan.patient))
        # A binary target has one label; of others the files say their names.
        self._names = {1: "object"} if plan.target == "binary" else source.label_names()
        gone = sorted(set(plan.cases or ()) - set(self._indices))
        if gone:
            raise DataError(f"{plan.root}: {len(gone)} test cases of {plan.name} are gone: {first_names(gone)}. Put them back.")
        self.cases = tuple(sorted(self._indices if plan.cases is None else plan.cases))

    def patient(self, case: str) -> str:
        """Return the patient of a case."""
        return self._patients.get(case, case)

    def images(self, case: str) -> list[StudiedImage]:
        """Read the images of a case.

        Raises:
            DataError: If one cannot be read.
        """
        indices = self._indices[case]
        if self.plan.slices:
            indices = list(evenly(indices, self.plan.slices))
        found = []
        for index in indices:
            classes = tuple(self._names) if self.plan.target == "per_class" else ()
            sample = apply_target(self._source[index], self.plan.target, classes=classes)
            found.append(StudiedImage(sample, case, self.patient(case), self._names, self._source.voxel_size(index)))
        return found

    def checksums(self, case: str) -> list[str]:
        """Return the checksum of every file that a case is read from."""
        files = dict.fromkeys(path for index in self._indices[case] for path in self._source.files(index))
        return [sha256_of(path) for path in files]


def check_not_trained_on(models: Sequence[str], plan: DataPlan) -> None:
    """Refuse a folder that a run was trained on, for the run as for its export: they know by heart what is measured there.

    Raises:
        RecipeError: If one was; naming the run as the data takes its test cases alone.
    """
    if plan.cases is not None:
        return
    for name in models:
        folder, run = run_or_folder(name, "MODEL"), name
        if RunFolder(folder.parent).export.resolve() == folder.resolve():
            folder, run = folder.parent, str(folder.parent)
        if not RunFolder(folder).config.is_file():
            continue
        root = (Run.open(folder, trusted=plan.trusted).config.get("data") or {}).get("root")
        if root is not None and data_folder(str(root)).resolve() == plan.root.resolve():
            raise RecipeError(
                f"{name}: was trained on cases of {plan.name}. Give {run} as DATA too, which takes its test cases alone, or "
                "--training-too to evaluate on all of them."
            )
