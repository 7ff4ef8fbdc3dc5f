"""BIDS: ``sub-01/anat/sub-01_T1w.nii.gz`` and masks of the same subject below ``derivatives/``."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pairing
from medsam_tune.data.layouts.roles import chosen_pairing
from medsam_tune.data.layouts.words import MASK_WORDS, role_spans

_SUBJECT = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)(?:/|_)")
_SESSION = re.compile(r"(?:^|[/_])(ses-[A-Za-z0-9]+)(?:/|_)")


class BidsFolders(Layout):
    """Pair the images of a subject and session with the masks of its derivatives."""

    name = "BIDS"

    def find(self, listing: Listing) -> Pairing | str:
        """Pair each mask with the image whose name its own begins with, else with the subject's commonest kind of image."""
        named = [file for file in listing.files if _SUBJECT.search(file.stem)]
        if len(named) * 2 < len(listing.files) or not named:
            return ""
        masks = [file for file in named if role_spans(file.stem.rpartition("/")[2].rpartition("_")[2], MASK_WORDS)]
        images = [file for file in named if file not in masks and "derivatives/" not in f"/{file.stem}"]
        if not masks or not images:
            return "no file of a subject ends in _mask, _dseg, _seg or _label"
        found: dict[tuple[str, str], list[tuple[DataFile, DataFile]]] = defaultdict(list)
        kinds = Counter(_kind(file) for file in images)
        of_visit: dict[tuple[str, str], list[DataFile]] = defaultdict(list)
        for image in images:
            of_visit[_visit(image)].append(image)
        for mask in masks:
            partner = _image_of(mask, of_visit.get(_visit(mask), []), kinds)
            if partner is not None:
                found[_patterns(partner, mask)].append((partner, mask))
        if not found:
            return f"{len(images)} images and {len(masks)} masks have no subject in common"
        return chosen_pairing(self.name, listing, dict(found))


def _image_of(mask: DataFile, images: list[DataFile], kinds: Counter[str]) -> DataFile | None:
    name = mask.stem.rpartition("/")[2]
    begun = [image for image in images if name.startswith(image.stem.rpartition("/")[2])]
    return max(begun or images, key=lambda image: (kinds[_kind(image)], _kind(image)), default=None)


def _visit(file: DataFile) -> tuple[str, str]:
    subject, session = _SUBJECT.search(file.stem), _SESSION.search(file.stem)
    return subject[1] if subject else "", session[1] if session else ""


def _kind(file: DataFile) -> str:
    return file.stem.rpartition("_")[2]


def _patterns(image: DataFile, mask: DataFile) -> tuple[str, str]:
    """Write subject and session as fields; the rest of both names stays as it is."""
    subject, session = _visit(image)

    def pattern(stem: str) -> str:
        text = stem.replace(subject, "{name}")
        return text.replace(session, "{session}") if session else text

    return pattern(image.stem), pattern(mask.stem)
