"""``data=DIR`` on any recipe that was written for a sample: the folder is looked at as ``medsam-tune init`` does.

What it is found to be takes the place of the recipe's source, unless the command line says how the data are read. So a recipe
needs no key for folders of another layout, file format, or label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medsam_tune.data.folder_memory import beside_folder, remembered
from medsam_tune.data.own_data import data_settings, write_needed
from medsam_tune.data.pairing import first_names
from medsam_tune.data.sample import SAMPLE_PREFIX, sample_folder
from medsam_tune.errors import DataError
from medsam_tune.folders import expand
from medsam_tune.training.sample_settings import ROOT, SOURCE, given_value
from medsam_tune.yaml_files import read_yaml

TARGET, CLASSES = "data.target", "model.segmenter.classes"
WEIGHTS, AUTOMATIC = "model.backbone.weights", "run.automatic"
_READING = (SOURCE, f"{SOURCE}.images", f"{SOURCE}.masks", f"{SOURCE}.class_path")


def own_folder_words(recipe: Path, words: Sequence[str]) -> tuple[list[str], str]:
    """Return the words that make a recipe read the folder of the command line, and what was found, as a sentence.

    Args:
        recipe: The recipe's file.
        words: The command line, keys written out.

    Returns:
        No words and no sentence unless the recipe was written for a sample or for no data, and the command line names a folder
        and not how it is read; the reason where no layout was found.
    """
    content: Any = read_yaml(recipe)
    data = content.get("data") if isinstance(content, Mapping) else None
    root = given_value(words, ROOT)
    if not isinstance(data, Mapping) or root is None or root == data.get("root"):
        return [], ""
    stated = str(data.get("root") or SAMPLE_PREFIX)
    source = data.get("source")  # a class with its settings, or its name alone
    if str(source.get("class_path") if isinstance(source, Mapping) else source).endswith("UnlabelledFolder"):
        return [], ""  # it reads whatever there is
    says_how = any(given_value(words, key) is not None for key in _READING)
    # Another sample than the recipe's own is laid out otherwise too; one that is none is refused by the data module.
    folder = sample_folder(root.removeprefix(SAMPLE_PREFIX)) if root.startswith(SAMPLE_PREFIX) else expand(root, ROOT)
    if not stated.startswith(SAMPLE_PREFIX) or says_how or not folder.is_dir():
        return [], ""
    target = given_value(words, TARGET) or str(data.get("target") or "binary")
    try:
        side = _side(content, words)
        found = remembered(folder, f"settings {target} {side}", lambda: _look(folder, target, side))
    except DataError as error:
        return [], f"{str(error).splitlines()[0].rstrip(':')}; the recipe's own source is tried."
    settings = {SOURCE: found["class_path"], **{f"{SOURCE}.{key}": value for key, value in found["init_args"].items()}}
    settings |= {f"data.{key}": value for key, value in found["keys"].items() if key != "target"}
    if given_value(words, f"{SOURCE}.case_pattern") is not None:
        settings.pop("data.patient", None)  # it was told from the names of files, not of these cases
    classes = _said_classes(words) or found["labels"]
    if target == "per_class" and _names_classes(content) and classes:
        settings[CLASSES] = classes
    return [_word(key, value) for key, value in settings.items() if given_value(words, key) is None], f"{root}: {found['told']}"


def _side(content: Mapping[str, Any], words: Sequence[str]) -> int | None:
    """Return the input side of the recipe's weights, for tiles; None where it is not known or images stay whole."""
    from medsam_tune.backbone.input_rules import INPUT_RULES

    data, run = content.get("data") or {}, content.get("run") or {}
    if "tiles" in data or int(data.get("chunk") or 1) > 1 or (run.get("automatic") and given_value(words, AUTOMATIC) is None):
        return None
    backbone = (content.get("model") or {}).get("backbone") or {}
    stated = (backbone.get("init_args") or {}).get("weights") if isinstance(backbone, Mapping) else None
    rule = INPUT_RULES.get(str(given_value(words, WEIGHTS) or stated))
    return None if rule is None else rule.side


def _look(folder: Path, target: Any, side: int | None) -> dict[str, Any]:  # noqa: ANN401 - the parser refuses other targets
    from medsam_tune.data.fingerprint import take_fingerprint
    from medsam_tune.data.layouts import detect

    pairing = detect(folder)
    found = take_fingerprint(folder, pairing)
    # What is faulty is refused as ever: nobody has looked at a list of it.
    beside = beside_folder(folder)
    data = data_settings(found, target, side=side, leave_out_faulty=False, beside=beside)
    write_needed(found, beside)
    told = f"{len(pairing.pairs)} images with masks ({pairing.layout}); {found.rule.why}."
    for files, what in ((pairing.without_mask, "images have no mask"), (pairing.without_image, "masks have no image")):
        told += f" {len(files)} {what} and are left out: {first_names([file.stem for file in files])}." if files else ""
    told += f" Cut into tiles: {data.why['tiles']}." if "tiles" in data.keys else ""
    told += " `medsam-tune init` says more."
    return {
        "class_path": data.class_path,
        "init_args": data.init_args,
        "keys": data.keys,
        "labels": [name for name in data.init_args.get("labels") or found.rule.labels if name != "ignored"],
        "told": told,
    }


def _names_classes(content: object) -> bool:
    model = content.get("model") if isinstance(content, Mapping) else None
    segmenter = model.get("segmenter") if isinstance(model, Mapping) else None
    settings = segmenter.get("init_args") if isinstance(segmenter, Mapping) else None
    return isinstance(settings, Mapping) and "classes" in settings


def _said_classes(words: Sequence[str]) -> list[str]:
    """Return the names of ``data.source.labels`` or ``data.colours`` where the command line has them, else none."""
    for key in (f"{SOURCE}.labels", "data.colours"):
        try:
            said = yaml.safe_load(given_value(words, key) or "")
        except yaml.YAMLError:
            continue  # the parser of the command line refuses it, with its place
        if isinstance(said, Mapping) and said:
            return [str(name) for name in said]
    return []


def _word(key: str, value: object) -> str:
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
