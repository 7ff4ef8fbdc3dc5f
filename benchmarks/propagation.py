"""How well does one box on one slice segment an organ, before and after tuning?

Usage: python benchmarks/propagation.py RUN [--untuned lite_medsam] [--cases N] [--to FILE.json]

On each test volume of RUN (one kind of object) the true box on the slice with the largest area is followed by the rules of
``predict --box-on-slice``: as they stand, with ``--connected``, and within the true first and last slice (``--slices``). Beside
it stands what the true box on every slice gives. Dice is of the whole volume; intervals are over volumes, differences paired.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_tune import Predictor, Run
from medsam_tune.data.formats import format_of
from medsam_tune.data.intensity import AS_STORED
from medsam_tune.data.sample import data_folder
from medsam_tune.inference.asked_slices import answer_slice
from medsam_tune.inference.new_files import find_files
from medsam_tune.inference.propagation import PropagationRules, Step, propagate
from medsam_tune.inference.slice_prompts import NO_PROMPTS, SliceAnswer, SlicePrompts
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.metrics.interval import mean_interval
from medsam_tune.runs.asked_model import open_model

Masks = dict[int, NDArray[np.bool_]]
Ask = Callable[[int, SlicePrompts], SliceAnswer]
RULES = PropagationRules()


def box_of(mask: NDArray[np.bool_]) -> SlicePrompts:
    """Return the tight box of a mask."""
    rows, columns = np.nonzero(mask)
    return NO_PROMPTS.with_box((float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max())))


def dice(found: Masks, truth: Masks) -> float:
    """Return Dice of a volume, given by its slices."""
    both = sum(int((mask & truth[position]).sum()) for position, mask in found.items())
    sizes = sum(int(mask.sum()) for mask in (*found.values(), *truth.values()))
    return 2 * both / sizes


def variants(ask: Ask, truth: Masks) -> dict[str, float]:
    """Return Dice of each way to ask."""
    shown = [position for position, mask in truth.items() if mask.any()]
    middle = max(shown, key=lambda position: int(truth[position].sum()))
    first = Step(middle, box_of(truth[middle]), ask(middle, box_of(truth[middle])))
    ways = {
        "one box": RULES,
        "one box, connected": replace(RULES, connected=True),
        "one box, true range": replace(RULES, slices=(shown[0], shown[-1])),
    }
    found = {name: dice(propagate(ask, len(truth), first, rules).masks, truth) for name, rules in ways.items()}
    return found | {"a box on every slice": dice({each: ask(each, box_of(truth[each])).mask for each in shown}, truth)}


def asks(models: list[Predictor], slices: SlicedFile) -> list[Ask]:
    """Return one that asks for each model; models whose encoders are equal share what is encoded."""
    encoders = [model.segmenter.backbone.image_encoder.state_dict() for model in models]
    shared = all(torch.equal(value, encoders[-1][name]) for name, value in encoders[0].items())

    @cache
    def encoded(number: int, position: int) -> Predictor:
        return models[number].with_image(slices.levels(position).astype(np.uint8), intensity=AS_STORED)

    @cache
    def answer(number: int, position: int, prompts: SlicePrompts) -> SliceAnswer:
        predictor = encoded(0 if shared else number, position)
        asked = Predictor(models[number].segmenter)
        asked._images = predictor._images
        return answer_slice(asked, prompts)

    return [lambda position, prompts, number=number: answer(number, position, prompts) for number in range(len(models))]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--untuned", default="lite_medsam")
    parser.add_argument("--cases", type=int)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    run, tuned, untuned = Run.open(options.run), open_model(str(options.run)), open_model(options.untuned)
    root = data_folder(run.config["data"]["root"])
    scores: dict[str, dict[str, list[float]]] = {"untuned": {}, "tuned": {}}
    for case in sorted(run.splits.test)[: options.cases]:
        (file,) = [each for each in find_files(root / "images") if each.name == case]
        slices = SlicedFile(file, tuned.data)
        (labels,) = (root / "labels").glob(f"{case}.*")
        stored = format_of(labels).read_labels_on(labels, slices.header) > 0
        truth = {position: slices.cut(stored, position) for position in range(len(slices))}
        for name, ask in zip(scores, asks([untuned.predictor, tuned.predictor], slices), strict=True):
            for way, value in variants(ask, truth).items():
                scores[name].setdefault(way, []).append(value)
                print(f"{case}  {name:8} {way:22} {value:.3f}", flush=True)
    report(scores)
    if options.to is not None:
        options.to.write_text(json.dumps(scores, indent=1))


def report(scores: dict[str, dict[str, list[float]]]) -> None:
    """Print means with their intervals, and the differences by case."""
    for way in scores["tuned"]:
        for name, values in scores.items():
            print(f"{way:22} {name:8} {told(values[way])}, worst {min(values[way]):.3f}")
        gains = np.subtract(scores["tuned"][way], scores["untuned"][way])
        print(f"{way:22} gain     {told(list(gains), bounds=(-1.0, 1.0))}")


def told(values: list[float], bounds: tuple[float, float] = (0.0, 1.0)) -> str:
    """Return the mean with its 95 % interval."""
    found = mean_interval(values, bounds=bounds)
    return f"{np.mean(values):.3f}" + ("" if found is None else f" ({found.low:.3f} to {found.high:.3f})")


if __name__ == "__main__":
    main()
