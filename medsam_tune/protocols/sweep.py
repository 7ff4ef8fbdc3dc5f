"""How much prompts matter: boxes drawn worse, clicks nearer the border, more clicks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from medsam_tune.errors import RecipeError
from medsam_tune.prompts.sampling import Mask
from medsam_tune.protocols import mazurowski
from medsam_tune.protocols.asking import AskableModel, AskedImage, StudiedImage, StudiedObject
from medsam_tune.protocols.base import CLICKS, OBJECT_COLUMNS, SCORE_COLUMNS, Protocol, Row, named, scored
from medsam_tune.protocols.clicking import click_rows
from medsam_tune.protocols.questions import Question, jittered, object_generator, tight_box
from medsam_tune.protocols.selection import Rule


@dataclass(frozen=True)
class PromptsProtocol(Protocol):
    """Ask with prompts that get worse, or more.

    Attributes:
        jitter: By which share of the box each side moves, in or out.
        depths: How deep inside the object the click lies: 1 farthest from its border, 0 at it.
        clicks: Clicks on the error at most.
        draws: Draws of each jitter and depth.
        click_rule: Which output clicks correct.
    """

    jitter: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    depths: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.0)
    clicks: int = 9
    draws: int = 3
    click_rule: Rule = "token0"
    name: ClassVar[str] = "prompts"
    axes: ClassVar[tuple[str, ...]] = ("strategy", "level")
    columns: ClassVar[tuple[str, ...]] = (*OBJECT_COLUMNS, "strategy", "level", "draw", *SCORE_COLUMNS)

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in (*self.jitter, *self.depths)) or self.draws < 1 or self.clicks < 0:
            raise RecipeError(
                f"--jitter, --depths, --draws, --clicks: expected shares from 0 to 1, at least one draw and 0 clicks or more, "
                f"got {self.jitter}, {self.depths}, {self.draws} and {self.clicks}."
            )

    def rows(self, images: Sequence[StudiedImage], model: AskableModel, *, seed: int) -> Iterator[Row]:
        """Yield a row for each object, kind of prompt, level, draw and rule."""
        for image in images:
            asked: AskedImage | None = None
            for each in image.objects():
                asked = asked or AskedImage(model, image.sample)
                facts, image_id = named(model, image, each), image.sample.image_id
                questions = list(self._questions(each, seed=seed, image_id=image_id))
                for question, answer in zip(questions, asked.answers(questions, name=each.label), strict=True):
                    told = {"strategy": question.strategy, "level": question.level, "draw": question.draw}
                    yield from ({**facts, **told, **row} for row in scored(answer, each))
                steps = click_rows(
                    asked,
                    each,
                    clicks=self.clicks,
                    error_maps=("separate",),
                    rules=(self.click_rule,),
                    seed=seed,
                    image_id=image_id,
                )
                for step in steps:
                    scores = {name: step[name] for name in SCORE_COLUMNS}
                    yield {**facts, "strategy": CLICKS, "level": float(step["clicks"]), "draw": 0, **scores}

    def _questions(self, each: StudiedObject, *, seed: int, image_id: str) -> Iterator[Question]:
        box, depths = tight_box(each.mask), mazurowski.depths(each.mask)
        for level in self.jitter:
            for draw in range(self.draws if level else 1):
                rng = object_generator(seed, image_id, each.name, f"jitter/{level}/{draw}")
                moved = jittered(box, level, (int(each.mask.shape[0]), int(each.mask.shape[1])), rng)
                yield Question("box", boxes=(moved,), level=level, draw=draw)
        for level in self.depths:
            for draw in range(self.draws):
                rng = object_generator(seed, image_id, each.name, f"depth/{level}/{draw}")
                yield Question("click", points=((*_at_depth(each.mask, depths, level, rng), 1),), level=level, draw=draw)


def _at_depth(mask: Mask, depths: np.ndarray[Any, Any], level: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return a pixel (x, y) of the mask whose depth is nearest to ``level`` of the greatest one."""
    away = np.where(mask, np.abs(depths - level * depths.max()), np.inf)
    rows, columns = np.nonzero(away == away.min())
    chosen = rng.integers(len(rows))
    return float(columns[chosen]), float(rows[chosen])
