"""The fingerprint of a data folder: what every image and mask is, read once, and all that is wrong with them."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from medsam_tune.data.class_tables import find_class_table
from medsam_tune.data.coco_files import CocoContent
from medsam_tune.data.facts import PairFacts, read_pair
from medsam_tune.data.folder_parts import parts_of_folders
from medsam_tune.data.layouts.base import Pair, Pairing
from medsam_tune.data.mask_rules import MaskRule, mask_rule, named_by_table
from medsam_tune.data.patient_tables import PatientTable, find_patient_table
from medsam_tune.data.patients import HEADER, likely_patients, patients_of
from medsam_tune.data.patterns import INSTANCE, LABEL
from medsam_tune.errors import DataError, data_error, memory_line
from medsam_tune.terminal import is_watched

_BAR_FROM = 20
FEW_PIXELS = 4.0
"""Objects whose thickness at the input side is below this many pixels are counted as small: a decoder's mask has cells of 4."""

THIN_PIXELS = 6.0
"""The middle object's thickness at the input side, in pixels, below which images are cut into tiles."""
_THICK_ENOUGH = 8.0


@dataclass(frozen=True)
class Fingerprint:
    """Hold what a folder is.

    Attributes:
        root: The folder.
        pairing: How images and masks belong together.
        facts: What each pair that could be read tells.
        faults: What is wrong with the others, one message each.
        faulty: Their names.
        rule: What mask values mean.
        table: The patients that a table in the folder tells; None where none does, or folders make the split.
    """

    root: Path
    pairing: Pairing
    facts: tuple[PairFacts, ...]
    faults: tuple[str, ...]
    faulty: tuple[str, ...]
    rule: MaskRule
    table: PatientTable | None = None

    @property
    def is_volume(self) -> bool:
        """Tell whether most files are volumes."""
        return 2 * sum(each.is_volume for each in self.facts) > len(self.facts)

    @property
    def patient(self) -> str | None:
        """Return a ``data.patient`` that groups files of one patient, or None where each file is a patient of its own.

        Of a table it is the table's name; what ``data.patient`` reads is written from it.
        """
        if self.table is not None:
            return self.table.file
        names = list(self._cases())
        ids = [each.patient_id for each in self.facts]
        if all(ids) and len(set(ids)) < len(ids):
            return HEADER
        if self.pairing.shard_cases and len(names) < len(self.facts):
            return None  # its records join the images of a case already
        found = likely_patients(names)
        # A folder for each part of a split, with numbered images, is no patient.
        if found is not None and found.n_patients > len(set(self.parts().values())):
            return found.pattern
        if (
            not self.parts()
            and "folder" in self.pairing.images.fields
            and len({name.rpartition("/")[0] for name in names}) < len(names)
        ):
            return "^(.+)/[^/]+$"
        return None

    def parts(self) -> dict[str, str]:
        """Return which part of a split each image belongs to by its folder; empty where folders say nothing."""
        return parts_of_folders(self._cases())

    def patients(self) -> dict[str, str]:
        """Return the patient of each image, by ``patient``."""
        if self.table is not None:
            return dict(self.table.patients)
        return patients_of(self._cases(), self.patient)

    def _cases(self) -> dict[str, str | None]:
        """Return the patient that its files name, or None, of each case: an image, unless records of shards say more."""
        cases = self.pairing.shard_cases or {}
        return {cases.get(each.name, each.name): each.patient_id for each in self.facts}

    def n_patients(self) -> int:
        """Return how many patients there are, by ``patient``."""
        return len(set(self.patients().values()))

    def n_slices(self) -> int:
        """Return how many slices all images have along the axis across which they are thickest."""
        return sum(each.n_slices for each in self.facts)

    def scale(self, side: int, fact: PairFacts) -> float:
        """Return by what an image is enlarged or shrunk to the input side."""
        return side / max(fact.slice_size)

    def small_objects(self, side: int) -> tuple[int, int]:
        """Return how many objects are thinner than a few pixels at the input side, and how many there are."""
        thickness = [each.thickness * self.scale(side, fact) for fact in self.facts for each in fact.objects]
        return sum(size < FEW_PIXELS for size in thickness), len(thickness)

    def median_thickness(self, side: int) -> float:
        """Return the thickness of the middle object at the input side, weighted by its area; infinite where there is none."""
        sized = [
            (each.thickness * self.scale(side, fact), each.area)
            for fact in self.facts
            for each in fact.objects
            if each.area > 1
        ]
        half, total = sum(area for _, area in sized) / 2, 0
        for size, area in sorted(sized):
            total += area
            if total >= half:
                return size
        return math.inf

    def tile_size(self, side: int) -> int | None:
        """Return the side of tiles in pixels of the original where objects would be too thin at the input; None where not.

        Tiles are the largest multiple of the input in which the middle object is still 8 pixels thick.
        """
        longest = max((max(fact.slice_size) for fact in self.facts), default=0)
        thin = self.median_thickness(side)
        if thin >= THIN_PIXELS or longest < 1.5 * side:
            return None
        whole = thin * longest / side
        return side * max(1, math.floor(whole / _THICK_ENOUGH))

    def objects_an_image(self) -> float:
        """Return the median number of objects in a slice that shows any."""
        counts = [len(each.objects) / max(1, each.measured_slices - each.empty_slices) for each in self.facts if each.objects]
        return median(counts) if counts else 0.0

    def empty_share(self) -> float:
        """Return the share of looked-at slices, or images, whose mask is empty."""
        looked = sum(each.measured_slices for each in self.facts)
        return sum(each.empty_slices for each in self.facts) / looked if looked else 0.0

    def as_json(self, side: int) -> dict[str, Any]:
        """Return the fingerprint as JSON values; ``side`` is the input side that small objects refer to."""
        small, n_objects = self.small_objects(side)
        pairing = self.pairing
        return {
            "layout": pairing.layout,
            "format": type(pairing.format).__name__,
            "images": pairing.images.text,
            "masks": pairing.masks.text,
            "pairs": len(pairing.pairs),
            "readable": len(self.facts),
            "images_without_mask": [file.stem for file in pairing.without_mask],
            "masks_without_image": [file.stem for file in pairing.without_image],
            "new_images": pairing.new_images,
            "parts": dict(Counter(self.parts().values())),
            "patients": {"pattern": self.patient, "count": self.n_patients() if self.facts else 0},
            "sizes": _counted(" x ".join(map(str, each.shape)) for each in self.facts),
            "spacing_mm": _counted(" x ".join(f"{size:.3g}" for size in each.voxel_mm) for each in self.facts),
            "channels": _counted(str(each.channels) for each in self.facts),
            "dtype": _counted(each.dtype for each in self.facts),
            "mask_values": {"kind": self.rule.kind, "labels": self.rule.labels, "ignore_label": self.rule.ignore_label},
            "objects_in_a_slice": round(self.objects_an_image(), 2),
            "small_objects": {"below_px": FEW_PIXELS, "input_side": side, "count": small, "of": n_objects},
            "share_of_empty_slices": round(self.empty_share(), 4),
            "faults": list(self.faults),
            "notes": list(pairing.notes),
            "cases": [each.as_json() for each in self.facts],
        }


def take_fingerprint(root: Path, pairing: Pairing) -> Fingerprint:
    """Read every image and mask once.

    Args:
        root: The data folder.
        pairing: From ``detect``.

    Raises:
        DataError: If no pair can be read; all faults are listed.
    """
    facts: list[PairFacts] = []
    faults: dict[str, str] = {}
    for pair in with_bar(pairing.pairs, "Read data"):
        try:
            facts.append(read_pair(pair, pairing.format, pairing.mask_format, pairing.annotations))
        except DataError as error:
            faults[pair.name] = str(error)
        except OSError as error:
            faults[pair.name] = f"{error.filename}: cannot be read ({error.strerror}). Allow it, or remove the case."
        except MemoryError as error:
            faults[pair.name] = (
                f"{pair.image.path}: {memory_line(error, 'Cut it into tiles or reduce it, and its mask alike.')}"
            )
    if not facts:
        raise data_error(f"{root}: none of {len(pairing.pairs)} pairs can be read", list(faults.values()))
    rule = (
        _of_annotations(pairing.annotations, facts)
        if pairing.annotations is not None
        else mask_rule(
            facts,
            named=pairing.labels,
            ignore_label=pairing.ignore_label,
            classes_of_files=pairing.masks.choices.get(LABEL, ()),
            object_files=INSTANCE in pairing.masks.fields,
        )
    )
    rule = named_by_table(rule, find_class_table(root))
    names = [each.name for each in facts]
    table = None if parts_of_folders(names) else find_patient_table(root, names)
    return Fingerprint(root, pairing, tuple(facts), tuple(faults.values()), tuple(faults), rule, table)


def _of_annotations(content: CocoContent, facts: Sequence[PairFacts]) -> MaskRule:
    used = content.used()
    if len(used) > 1:
        return MaskRule("classes", {name: [name] for name in used}, None, "the annotation files name their categories")
    several = any(len(each.objects) > 1 for each in facts)
    return MaskRule("instances" if several else "one object", {}, None, f"each annotation is one {''.join(used)}")


def with_bar(pairs: Sequence[Pair], told: str) -> Iterable[Pair]:
    """Return the pairs, with a bar on a terminal where there are many."""
    from rich.console import Console
    from rich.progress import track

    shown = len(pairs) >= _BAR_FROM and is_watched(sys.stderr) and os.environ.get("LOCAL_RANK", "0") == "0"
    return track(pairs, told, console=Console(stderr=True, force_jupyter=False), transient=True, disable=not shown)


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())
