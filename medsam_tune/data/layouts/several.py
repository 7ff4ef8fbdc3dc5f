"""Several mask files of one image: one for each class, or one for each object."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

from medsam_tune.data.layouts.words import IMAGE_WORDS, MASK_WORDS, SAYS_NOTHING, tokens
from medsam_tune.data.patterns import INSTANCE, LABEL, PathPattern

_SEPARATORS = " _-./"


def joined_masks(masks: Mapping[str, int]) -> PathPattern | None:
    """Return the one pattern of which several patterns of the same images' masks are parts; None where they are alternatives.

    Args:
        masks: Pattern to the images that have such a mask.

    Example:
        >>> joined_masks({"masks/{name}_liver": 5, "masks/{name}_lung": 5})
        PathPattern(text='masks/{name}_{label}', choices={'label': ('liver', 'lung')})
        >>> joined_masks({"{name}_mask": 5, "{name}_mask_1": 2})
        PathPattern(text='{name}_mask{instance}', choices={'instance': ('', '_1')})
        >>> joined_masks({"{name}_seg0": 5, "{name}_seg1": 4})
        PathPattern(text='{name}_seg{instance}', choices={'instance': ('0', '1')})
        >>> joined_masks({"masks/{name}": 5, "labels/{name}": 5}) is None
        True
    """
    texts = sorted(masks)
    if len(texts) < 2:
        return None
    shortest = min(texts, key=len)
    counted = [text.removeprefix(shortest) for text in texts]
    if all(
        re.fullmatch(r"(?:[ _\-]?\d+)?", rest) and text.startswith(shortest) for text, rest in zip(texts, counted, strict=True)
    ):
        return PathPattern(f"{shortest}{{{INSTANCE}}}", {INSTANCE: tuple(counted)})
    if objects := _numbered(texts):
        return objects
    head, tail = _frame(texts)
    middles = tuple(text[len(head) : len(text) - len(tail)] for text in texts)
    if not all(middles) or any(sign in middle for middle in middles for sign in "{}") or _are_alternatives(middles):
        return None
    return PathPattern(f"{head}{{{LABEL}}}{tail}", {LABEL: middles})


def _numbered(texts: Sequence[str]) -> PathPattern | None:
    """Return the pattern of texts that differ by a number at their ends alone: objects, unless it counts who drew."""
    found = [re.fullmatch(r"(.*\}[^/]*?)(\d+)", text) for text in texts]
    heads = {each[1] for each in found if each is not None}
    if None in found or len(heads) != 1:
        return None
    head = heads.pop()
    if any(word in SAYS_NOTHING | {"manual"} for word, _ in tokens(head)[-1:]):
        return None
    return PathPattern(f"{head}{{{INSTANCE}}}", {INSTANCE: tuple(each[2] for each in found if each is not None)})


def _frame(texts: Sequence[str]) -> tuple[str, str]:
    """Return what all texts begin and end with, cut where a word begins or ends."""
    head = _begin(texts)
    while head and head[-1] not in _SEPARATORS and head[-1] != "}":
        head = head[:-1]
    tail = _begin([text[len(head) :][::-1] for text in texts])[::-1]
    while tail and tail[0] not in _SEPARATORS and tail[0] != "{":
        tail = tail[1:]
    return head, tail


def _begin(texts: Sequence[str]) -> str:
    """Return the letters that all texts begin with."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def _are_alternatives(middles: Sequence[str]) -> bool:
    """Tell whether what differs are only words for masks, images or people: two annotations of the same thing."""
    known = MASK_WORDS | IMAGE_WORDS | SAYS_NOTHING
    return any(all(word in known or word.isdigit() for word, _ in tokens(middle)) for middle in middles)
