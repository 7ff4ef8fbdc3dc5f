"""Words of file and folder names that tell an image from a mask."""

from __future__ import annotations

import re
from dataclasses import dataclass


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MASK_WORDS = _words(
    "mask masks msk seg segs segm segmentation segmentations segmented label labels lbl lbls labelmap labelmaps gt gts truth "
    "groundtruth groundtruths annotation annotations annotated anno annos annot annots ann manual target targets roi rois dseg "
    "delineation delineations contour contours maske masken segmentierung segmentierungen masque masques mascara mascaras "
    "segmentacion segmentaciones maschera maschere segmentazione segmentazioni masker maskers"
)
"""Words that say that a file is a mask."""
DRAWN_WORDS = _words("manual gt gts truth groundtruth annotation annotations seg segmentation segmentations")
"""Words that say that somebody drew a mask, which beside them may be anything."""
IMAGE_WORDS = _words(
    "image images img imgs imaging im scan scans volume volumes vol vols raw original originals orig input inputs photo photos "
    "picture pictures data bild bilder aufnahme aufnahmen imagen imagenes immagine immagini"
)
"""Words that say that a file is an image."""
CHANNEL_WORDS = _words("flair t1 t1w t1ce t1c t1n t1gd t2 t2w t2f dwi adc pd pdw ct pet pt suv cbf cbv mtt tmax")
"""Contrasts of one patient that lie as files beside each other."""
SAYS_NOTHING = _words(
    "class classes object objects instance instances semantic expert observer rater reader annotator ho st nd rd"
)
"""Words for who drew a mask, or in which form: masks that differ by them alone show the same thing."""
# Words that only say more about the word before or after them: imagesTr, 1st_manual, manual1, ground truth, _final.
_COMPANIONS = _words("tr ts ground st nd rd final png jpg")
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_SEPARATORS = " _-."


@dataclass(frozen=True)
class Span:
    """Hold the part [start, end) of a path that plays a role."""

    start: int
    end: int


def tokens(part: str) -> list[tuple[str, Span]]:
    """Split a name into lower-case words and numbers, with their places.

    Examples:
        >>> [word for word, _ in tokens("ManualMask_01 labelsTr T1w")]
        ['manual', 'mask', '01', 'labels', 'tr', 't', '1', 'w']
    """
    return [(found[0].lower(), Span(found.start(), found.end())) for found in _TOKEN.finditer(part)]


def role_spans(part: str, words: frozenset[str]) -> list[Span]:
    """Return the places of role words in a name, their companions included; empty where there is none.

    Examples:
        >>> role_spans("21_manual1", MASK_WORDS)
        [Span(start=2, end=10)]
        >>> role_spans("mask_03", MASK_WORDS)
        [Span(start=0, end=5)]
    """
    found = tokens(part)
    is_word = [word in words for word, _ in found]
    if not any(is_word):
        return []
    taken = list(is_word)
    for position, (word, span) in enumerate(found):
        beside = [other for other in (position - 1, position + 1) if 0 <= other < len(found) and is_word[other]]
        # The 1 of manual1 belongs to the word; that of mask1 is the image's number.
        counts = word.isdigit() and position == len(found) - 1 > 1 and found[position - 1][1].end == span.start
        taken[position] |= bool(beside) and (word in _COMPANIONS or counts)
    return _with_separators(part, [span for (_, span), role in zip(found, taken, strict=True) if role])


def channel_span(part: str) -> Span | None:
    """Return the place of the channel at the end of a name, such as ``_0000`` or ``_flair``, or None.

    Examples:
        >>> channel_span("BraTS_01_t1ce"), channel_span("case_0001")
        (Span(start=8, end=13), Span(start=4, end=9))
    """
    found = re.search(r"[ _\-.]+(0\d{3}|[A-Za-z]+\d?[A-Za-z]*)$", part)
    if found is None or not (found[1].isdigit() or found[1].lower() in CHANNEL_WORDS):
        return None
    return Span(found.start(), found.end())


def channel_rank(name: str) -> int:
    """Prefer a contrast that shows most: FLAIR before T1 with contrast agent, then T2, then by name; less is better.

    Examples:
        >>> sorted(["x_t1", "x_t1ce", "x_flair"], key=channel_rank)
        ['x_flair', 'x_t1ce', 'x_t1']
    """
    preferred = ("flair", "t2f", "0000", "t1ce", "t1c", "t1gd", "t2w", "t2")
    return next((rank for rank, word in enumerate(preferred) if name.lower().endswith(word)), len(preferred))


def _with_separators(part: str, spans: list[Span]) -> list[Span]:
    """Join spans that only separators part, and take one separator before each, or behind it at the start of the name."""
    joined: list[Span] = []
    for span in spans:
        if joined and not part[joined[-1].end : span.start].strip(_SEPARATORS):
            joined[-1] = Span(joined[-1].start, span.end)
        else:
            joined.append(span)
    widened = []
    for span in joined:
        start, end = span.start, span.end
        if start > 0 and part[start - 1] in _SEPARATORS:
            start -= 1
        elif start == 0 and end < len(part) and part[end] in _SEPARATORS:
            end += 1
        widened.append(Span(start, end))
    return widened
