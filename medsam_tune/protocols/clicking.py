"""Click by click: what is scored after each click on the error of the mask before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from medsam_tune.protocols import mazurowski
from medsam_tune.protocols.asking import AskedImage, StudiedObject
from medsam_tune.protocols.base import CLICKS, Row, taken
from medsam_tune.protocols.mazurowski import ErrorMap
from medsam_tune.protocols.questions import Question, object_generator
from medsam_tune.protocols.selection import Rule


def click_rows(
    asked: AskedImage,
    each: StudiedObject,
    *,
    clicks: int,
    error_maps: Sequence[ErrorMap],
    rules: Sequence[Rule],
    seed: int,
    image_id: str,
) -> Iterator[Row]:
    """Yield the scores after each click, for every error map and every rule whose mask is corrected.

    All clicks are sent anew each time, and no earlier mask is fed back. A mask without a fault gets no further click and keeps
    its score.

    Args:
        asked: The image.
        each: The object.
        clicks: At most.
        error_maps: Where the next click goes.
        rules: Whose masks are corrected; those that the network has no candidates for are left out.
        seed: As everywhere.
        image_id: As everywhere.
    """
    if not clicks:
        return
    generator = object_generator(seed, image_id, each.name, "click/1")
    start = Question(CLICKS, points=(mazurowski.middle(each.mask, generator),))
    ways = {(error_map, rule): start for error_map in error_maps for rule in rules}
    last: dict[tuple[ErrorMap, Rule], Row] = {}
    for number in range(1, clicks + 1):
        distinct = list(dict.fromkeys(ways.values()))
        answers = dict(zip(distinct, asked.answers(distinct, name=each.label), strict=True)) if distinct else {}
        for way, question in list(ways.items()):
            error_map, rule = way
            if rule not in answers[question].rules():
                del ways[way]
                continue
            row, mask = taken(answers[question], each, rule)
            last[way] = {**row, "error_map": error_map}
            rng = object_generator(seed, image_id, each.name, f"click/{number + 1}/{error_map}")
            known = mask if each.known is None else mask & each.known
            click = mazurowski.next_click(known, each.mask, rng, error_map=error_map)
            if click is None:
                del ways[way]
            else:
                ways[way] = replace(question, points=(*question.points, click))
        yield from ({**row, "clicks": number} for row in last.values())
