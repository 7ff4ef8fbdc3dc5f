"""The text of a first recipe: a bundled recipe's model, the folder's data, and the reasons as comments."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam_tune.data.fingerprint import FEW_PIXELS, Fingerprint
from medsam_tune.data.inverted import suspicion
from medsam_tune.data.layouts.base import Pairing
from medsam_tune.data.own_data import DataSettings
from medsam_tune.data.pairing import first_names
from medsam_tune.data.split_file import NNUNET_SPLITS
from medsam_tune.runs.first_recipe.length import Length
from medsam_tune.runs.first_recipe.method import Method
from medsam_tune.runs.recipe_files import bundled_recipe
from medsam_tune.training.opening import counted

FEW_PATIENTS = 10
"""Below that many patients a first recipe says how all of them are tested."""

_WIDTH = 118
_PLAIN = re.compile(r"[A-Za-z_][\w\-/]*")
_TRUTH_WORDS = {"on", "off", "yes", "no", "y", "n", "true", "false", "null", "nan", "inf"}


@dataclass(frozen=True)
class RecipeParts:
    """Hold what a first recipe is written from."""

    name: str
    found: Fingerprint
    method: Method
    data: DataSettings
    length: Length
    side: int
    split_file: Path | None = None


def recipe_text(parts: RecipeParts, *, start: str, cost: str | None) -> str:
    """Return the recipe.

    Args:
        parts: What it says.
        start: The command that runs it.
        cost: One sentence on time and memory; None where nothing was timed.
    """
    return "\n".join(
        [
            *_opening(parts, start, cost),
            "seed_everything: 0",
            *_model(parts),
            *_data(parts),
            "trainer:",
            "  accelerator: auto",
            f"  max_epochs: {parts.length.epochs}",
            *([f"  check_val_every_n_epoch: {parts.length.validate_every}"] if parts.length.validate_every > 1 else []),
            "",
        ]
    )


def predict_command(found: Fingerprint) -> str:
    """Return how new images are predicted, those of the folder where it has any."""
    fresh = found.pairing.new_images
    return shlex.join(
        ["medsam-tune", "predict", "RUN", "NEW_IMAGES" if fresh is None else str(found.root / fresh), "-o", "OUT"]
    )


def few_cases(found: Fingerprint, start: str) -> str:
    """Say how a few patients are all tested, in one sentence."""
    count = found.n_patients()
    tested = max(1, round(count * 0.2))
    return (
        f"{tested} of {count} patients {'is' if tested == 1 else 'are'} tested, which shows little; `{start} "
        f"folds={min(5, count)}` trains once a part and tests each of them"
    )


def has_few_cases(found: Fingerprint) -> bool:
    """Tell whether a first recipe should say how all patients are tested; where folders make the split they cannot be."""
    return found.n_patients() < FEW_PATIENTS and not found.parts()


def describe(found: Fingerprint, side: int) -> list[str]:
    """Return what a folder is, in a few lines; the first word of each is its heading."""
    facts, pairing = found.facts, found.pairing
    small, n_objects = found.small_objects(side)
    names = ", ".join(found.rule.labels)
    kinds = {
        "one object": "one kind of object",
        "classes": f"class{'es' * (len(found.rule.labels) > 1)} {names}",
        "colours": f"colours {names}",
    }
    many = counted(len(facts), "volume" if found.is_volume else "image")
    many = f"{counted(found.n_slices(), 'slice')} of {many}" if found.is_volume else many
    lines = [
        f"Data: {many} with masks ({pairing.layout}){_places(pairing)}",
        f"Patients: {_patients(found)}",
        f"Images: {_most(' x '.join(map(str, each.shape)) for each in facts)} pixels, "
        f"{_most(f'{each.dtype}, {each.channels} channel' + 's' * (each.channels > 1) for each in facts)}"
        + (f", {_most(' x '.join(f'{mm:.3g}' for mm in each.voxel_mm) for each in facts)} mm" if found.is_volume else ""),
        f"Masks: {kinds.get(found.rule.kind, found.rule.kind)}: {found.rule.why}",
        f"Objects: {found.objects_an_image():.3g} in a slice; {small} of {n_objects} are thinner than {FEW_PIXELS:.0f} pixels "
        f"at the input's {side} x {side}; {found.empty_share():.0%} of the masks looked at are empty",
    ]
    return lines + [f"Note: {note}" for note in _notes(found)]


def _places(pairing: Pairing) -> str:
    """Say where images and masks lie; of pairs that no pattern describes, show the first."""
    if pairing.annotations is not None:
        return ""
    if not pairing.listed:
        return f": images at {pairing.images.text}, masks at {pairing.masks.text}"
    first = pairing.pairs[0]
    return f", such as {first.image.path.name} with {first_names([mask.path.name for mask in first.masks])}"


def _notes(found: Fingerprint) -> list[str]:
    pairing = found.pairing
    notes = list(pairing.notes)
    for files, what, lacks in ((pairing.without_mask, "image", "mask"), (pairing.without_image, "mask", "image")):
        if files:
            left = f"{counted(len(files), what)} without {'an' if lacks == 'image' else 'a'} {lacks}"
            notes.append(f"left out: {left}: {first_names([file.stem for file in files])}")
    if found.parts():
        sizes = Counter(found.parts().values())
        notes.append(f"the folders make the split: {', '.join(f'{count} {part}' for part, count in sizes.items())}")
    if found.rule.kind in ("one object", "lossy") and (
        said := suspicion([each.labels_rim for each in found.facts if each.counts])
    ):
        notes.append(said)
    if pairing.new_images:
        notes.append(f"{pairing.new_images} holds images to predict")
    return notes


def _opening(parts: RecipeParts, start: str, cost: str | None) -> list[str]:
    length, method = parts.length, parts.method
    trained = f"{method.told[0].upper()}{method.told[1:]}"
    lines = [
        f"{trained}, on the images of {parts.name}.",
        "",
        "Written by `medsam-tune init`; change what you like.",
        "",
        *describe(parts.found, parts.side),
        f"Method: {method.recipe}, because: {method.why}. Trained: {method.told}; the rest of SAM stays frozen",
        f"Length: {length.steps} steps of {length.batch} images ({length.epochs} epochs of {length.images}), of which "
        f"{length.warmup_steps} warm up the learning rate",
        *([f"Cost: {cost}"] if cost else []),
        f"Start: {start}",
        *([f"Few: {few_cases(parts.found, start)}"] if has_few_cases(parts.found) else []),
        f"Predict: {predict_command(parts.found)}",
    ]
    return [wrapped for line in lines for wrapped in _comment(line)]


def _comment(line: str) -> list[str]:
    heading = re.match(r"[A-Z][a-z]+: ", line)
    hanging = "#" + " " * 11
    text = line if heading is None else f"{heading[0].strip():<10}{line[heading.end() :]}"
    if heading and heading[0] in ("Start: ", "Predict: "):
        return [f"# {text}"]
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent=hanging if heading else "# ") or ["#"]


def _model(parts: RecipeParts) -> list[str]:
    """Return the bundled recipe's model section with the folder's classes and warm-up."""
    lines = bundled_recipe(parts.method.recipe).read_text(encoding="utf-8").splitlines()
    begin = lines.index("model:")
    end = next(place for place in range(begin + 1, len(lines)) if lines[place] and not lines[place].startswith(" "))
    section: list[str] = []
    for line in lines[begin:end]:
        if line.strip().startswith("warmup_steps:"):
            line = f"  warmup_steps: {parts.length.warmup_steps}"
        elif line.strip().startswith("classes:"):
            line = f"{line[: line.index('classes:')]}classes: {_flow(list(parts.found.rule.labels))}"
        elif line.strip().startswith(("views_at_test:", "smallest_part:")) and parts.length.views == 1:
            # What training never flips no test flips, and a scan's specks may be its lesions; a comment goes with its key.
            while section[-1].strip().startswith("#"):
                section.pop()
            continue
        section.append(line)
    return section


def _data(parts: RecipeParts) -> list[str]:
    data, length = parts.data, parts.length
    settings = {**data.init_args, **length.slices}
    lines = ["data:", f"  root: {_flow(str(parts.found.root))}", "  source:", f"    class_path: {data.class_path}"]
    if settings:
        lines.append("    init_args:")
        for key, value in settings.items():
            lines += [f"      # {reason}" for reason in [data.why.get(key)] if reason]
            lines.append(f"      {key}: {_flow(value)}")
    for key, value in data.keys.items():
        lines += [f"  # {reason}" for reason in [data.why.get(key)] if reason]
        lines.append(f"  {key}: {_flow(value)}")
    split = f"{{seed: 0, val_fraction: {length.split.val_fraction}, test_fraction: {length.split.test_fraction}}}"
    if parts.split_file is not None and parts.split_file.name == NNUNET_SPLITS:
        split = (
            f"{{file: {_flow(str(parts.split_file))}, fold: 0, val_fraction: {length.split.val_fraction}}}  # nnU-Net's folds"
        )
    elif parts.split_file is not None:
        split = f"{{file: {_flow(str(parts.split_file))}}}  # as the folders say"
    lines += [f"  batch_size: {length.batch}", f"  split: {split}"]
    if length.views > 1:
        lines += [*bundled_lines(parts.method.recipe, "augmentation"), f"  views: {length.views}"]
    return lines + (bundled_lines(parts.method.recipe, "cache_embeddings") or ["  cache_embeddings: true"])


def bundled_lines(recipe: str, key: str) -> list[str]:
    """Return the lines of a key of a bundled recipe's data section, those below it and the comment above; none without it."""
    text = bundled_recipe(recipe).read_text(encoding="utf-8")
    found = re.search(rf"^(?:  #.*\n)*  {key}:.*(?:\n    .*)*", text, re.MULTILINE)
    return found[0].splitlines() if found else []


def _flow(value: Any) -> str:  # noqa: ANN401 - what YAML holds
    """Write a value in YAML's flow form; a text is quoted where YAML could read something else."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(name)}: {_flow(item)}" for name, item in value.items()) + "}"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value.replace(".", "_")) and value.lower() not in _TRUTH_WORDS
        return value if plain else "'" + value.replace("'", "''") + "'"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return json.dumps(value)


def _most(values: Any) -> str:  # noqa: ANN401 - any iterable of texts
    held = list(values)
    common = max(sorted(set(held)), key=held.count)
    different = len(set(held))
    return common if different == 1 else f"{common} (and {counted(different - 1, 'other')})"


def _patients(found: Fingerprint) -> str:
    if found.patient is None and found.pairing.shard_cases:
        return f"{found.n_patients()}, if each case of the shards is another patient; else set data.patient"
    if found.patient is None:
        return (
            f"{len(found.facts)}, if each {'volume' if found.is_volume else 'image'} is another patient; else set data.patient"
        )
    if found.table is not None:
        return f"{found.n_patients()}, told by column {found.table.column} of {found.table.file}"
    return f"{found.n_patients()}, told from the names by data.patient"
