"""The two studies as protocols: every question about every object, and its scores under each rule of selection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from medsam_tune.protocols import huang, mazurowski
from medsam_tune.protocols.asking import AskableModel, AskedImage, StudiedImage, StudiedObject
from medsam_tune.protocols.attributes import attributes_of
from medsam_tune.protocols.base import CLICKS, OBJECT_COLUMNS, SCORE_COLUMNS, Protocol, Row, finite, named, scored
from medsam_tune.protocols.clicking import click_rows
from medsam_tune.protocols.questions import object_generator
from medsam_tune.protocols.selection import Rule


@dataclass(frozen=True)
class HuangProtocol(Protocol):
    """Ask as Huang et al.; attributes: ``settings`` says what."""

    settings: huang.HuangSettings = field(default_factory=huang.HuangSettings)
    name: ClassVar[str] = "huang"
    axes: ClassVar[tuple[str, ...]] = ("strategy", "displacement")
    columns: ClassVar[tuple[str, ...]] = (
        *OBJECT_COLUMNS,
        *("strategy", "displacement", "draw"),
        *SCORE_COLUMNS,
        *("area", "aspect", "contrast", "fourier_order"),
    )

    def rows(self, images: Sequence[StudiedImage], model: AskableModel, *, seed: int) -> Iterator[Row]:
        """Yield a row for each object, question and rule of selection."""
        for image in images:
            objects = list(image.objects())
            if not objects:
                continue
            asked, grey = AskedImage(model, image.sample), image.sample.image.mean(dim=0).numpy()
            known = [{**named(model, image, each), **finite(asdict(attributes_of(each.mask, grey)))} for each in objects]
            if huang.EVERYTHING in self.settings.strategies:
                yield from self._everything(asked, objects, known)
            for each, facts in zip(objects, known, strict=True):
                questions = list(
                    huang.questions(each.mask, self.settings, seed=seed, image_id=image.sample.image_id, object_name=each.name)
                )
                for question, answer in zip(questions, asked.answers(questions, name=each.label), strict=True):
                    told = {"strategy": question.strategy, "displacement": question.displacement, "draw": question.draw}
                    yield from ({**facts, **told, **row} for row in scored(answer, each))

    def _everything(self, asked: AskedImage, objects: Sequence[StudiedObject], known: Sequence[Row]) -> Iterator[Row]:
        """Yield what everything mode found: the mask most like each object, which is an oracle, and the surest of all."""
        found = asked.everything(self.settings.points_per_side)
        masks = list(found.masks.numpy())
        matches = huang.best_matches(masks, [each.mask for each in objects])
        told = {"strategy": huang.EVERYTHING, "displacement": "", "draw": 0}
        for each, facts, match in zip(objects, known, matches, strict=True):
            taken: dict[Rule, int | None] = {"pred_iou": 0 if masks else None, "oracle": match}
            for rule, place in taken.items():
                dice, iou = (0.0, 0.0) if place is None else each.overlap(masks[place])
                estimate = None if place is None else float(found.predicted_iou[place])
                yield {**facts, **told, "selection": rule, "dice": dice, "iou": iou, "predicted_iou": estimate}


@dataclass(frozen=True)
class MazurowskiProtocol(Protocol):
    """Ask as Mazurowski et al.; attributes: ``settings`` says what, ``click_rules`` which output clicks correct."""

    settings: mazurowski.MazurowskiSettings = field(default_factory=mazurowski.MazurowskiSettings)
    click_rules: tuple[Rule, ...] = ("token0", "first", "oracle")
    name: ClassVar[str] = "mazurowski"
    axes: ClassVar[tuple[str, ...]] = ("strategy", "clicks", "error_map")
    columns: ClassVar[tuple[str, ...]] = (*OBJECT_COLUMNS, "strategy", "clicks", "error_map", *SCORE_COLUMNS)

    def rows(self, images: Sequence[StudiedImage], model: AskableModel, *, seed: int) -> Iterator[Row]:
        """Yield a row for each object, mode and rule, and for each number of clicks, error map and rule."""
        for image in images:
            asked: AskedImage | None = None
            for each in image.objects():
                asked = asked or AskedImage(model, image.sample)
                facts = named(model, image, each)
                # Each mode draws for itself, so that none depends on which others are asked.
                questions = [
                    mazurowski.ask(each.mask, mode, object_generator(seed, image.sample.image_id, each.name, "mazurowski"))
                    for mode in self.settings.modes
                ]
                for question, answer in zip(questions, asked.answers(questions, name=each.label), strict=True):
                    told = {"strategy": question.strategy, "clicks": None, "error_map": ""}
                    yield from ({**facts, **told, **row} for row in scored(answer, each))
                for step in click_rows(
                    asked,
                    each,
                    clicks=self.settings.clicks,
                    error_maps=self.settings.error_maps,
                    rules=self.click_rules,
                    seed=seed,
                    image_id=image.sample.image_id,
                ):
                    yield {**facts, "strategy": CLICKS, **step}
