"""A split that the folders themselves make: ``train``, ``val`` and ``test``."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping

from medsam_tune.data.splits import Splits

_WORDS = {
    "train": ("train", "training", "tr", "trainval"),
    "val": ("val", "valid", "validation", "dev", "va"),
    "test": ("test", "testing", "ts"),
}
_PART = {word: part for part, words in _WORDS.items() for word in words}
_DRAWN = 0.2
# imagesTr is two words, train2017 and TRAIN one.
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def held_out(folder: str) -> bool:
    """Tell whether a folder's path says that its images are not for training.

    Example:
        >>> held_out("test/images"), held_out("stage1_test/7"), held_out("imagesTs"), held_out("train/images")
        (True, True, True, False)
    """
    return any(_PART.get(word.lower()) in ("val", "test") for word in _WORD.findall(folder))


def parts_of_folders(names: Iterable[str]) -> dict[str, str]:
    """Return the part of each image by the first folder that says it; empty unless each has one and they are not all the same.

    Example:
        >>> parts_of_folders(["train/1", "Validation/2"])
        {'train/1': 'train', 'Validation/2': 'val'}
        >>> parts_of_folders(["images/train2017/1", "images/val2017/2"])
        {'images/train2017/1': 'train', 'images/val2017/2': 'val'}
        >>> parts_of_folders(["train/1", "p1/2"])
        {}
    """
    found = {name: _part(name) for name in names}
    held = set(found.values())
    return found if "" not in held and "train" in held and len(held) > 1 else {}


def _part(name: str) -> str:
    words = (word.lower() for folder in name.split("/")[:-1] for word in _WORD.findall(folder))
    return next((_PART[word] for word in words if word in _PART), "")


def split_by_folders(parts: Mapping[str, str], patients: Mapping[str, str], *, seed: int = 0) -> Splits:
    """Return the split that folders make; a part that has none gets a fifth of the training patients.

    Args:
        parts: Case to part, from ``parts_of_folders``.
        patients: The patient of each case.
        seed: Of the draw.
    """
    of_part = {part: {case for case, each in parts.items() if each == part} for part in _WORDS}
    drawn = [part for part in ("val", "test") if not of_part[part]]
    for part in drawn:
        trained = sorted({patients[case] for case in of_part["train"]})
        chosen = set(random.Random(seed).sample(trained, max(1, round(_DRAWN * len(trained)))))
        of_part[part] = {case for case in of_part["train"] if patients[case] in chosen}
        of_part["train"] -= of_part[part]
    train, val, test = (tuple(sorted(of_part[part])) for part in ("train", "val", "test"))
    return Splits(train, val, test, how={"by": "folders", "drawn": drawn, "seed": seed})
