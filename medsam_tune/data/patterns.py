"""Where images and masks lie, as paths with fields: ``{folder}/images/{name}`` and ``{folder}/masks/{name}_mask``.

A pattern is a path below the data folder without the file's ending. A field stands for any text, sub-folders too, and holds the
same for an image and its mask. A recipe says it by the keys of its source: two folders, a suffix, or regular expressions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from medsam_tune.errors import RecipeError

LABEL, INSTANCE = "label", "instance"
"""Fields of a mask that are no part of its image's name: the class, and the one object, that the file is for."""

_OF_MASKS = (LABEL, INSTANCE)
_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_SPECIAL = re.compile(r"[.^$*+?{}\[\]\\|()]")


@dataclass(frozen=True)
class PathPattern:
    """Match the paths of files, without their endings, against a path with fields.

    Attributes:
        text: Such as ``{folder}/img/{name}``.
        choices: What a field may hold; any text by default.
    """

    text: str
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Return the names of the fields, in their order, each once."""
        return tuple(dict.fromkeys(_FIELD.findall(self.text)))

    @cached_property
    def folder(self) -> str:
        """Return the folder that every such file lies in; ``.`` is the data folder."""
        literal, brace, _ = self.text.partition("{")
        return (literal if brace else self.text).rpartition("/")[0] or "."

    @cached_property
    def below(self) -> str:
        """Return the pattern below its folder."""
        return self.text if self.folder == "." else self.text.removeprefix(f"{self.folder}/")

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(self._written(self.text, named=True), re.DOTALL)

    def match(self, stem: str) -> dict[str, str] | None:
        """Return what the fields hold, or None where the path does not match.

        Example:
            >>> PathPattern("{case}/{case}_seg").match("p01/p01_seg")
            {'case': 'p01'}
        """
        found = self._regex.fullmatch(stem)
        return None if found is None else found.groupdict()

    def name_of(self, stem: str) -> str | None:
        """Return the name of the image that a path belongs to: its fields, as a path; None where it does not match."""
        held = self.match(stem)
        return None if held is None else "/".join(text for name, text in held.items() if name not in _OF_MASKS)

    def expression(self) -> str:
        """Return the pattern below its folder as a regular expression for ``data.source.mask_pattern`` or ``image_pattern``.

        Example:
            >>> PathPattern("all/{name}_{label}", {"label": ["lumen", "wall"]}).expression()
            '^(.+)_(?P<label>lumen|wall)$'
        """
        return f"^{self._written(self.below, named=False)}$"

    def _written(self, text: str, *, named: bool) -> str:
        numbers: dict[str, int] = {}
        parts = []
        for position, part in enumerate(_FIELD.split(text)):
            if position % 2 == 0:
                parts.append(_SPECIAL.sub(r"\\\g<0>", part))
            elif part in numbers:
                parts.append(f"(?P={part})" if named or part in _OF_MASKS else f"\\{numbers[part]}")
            else:
                numbers[part] = len(numbers) + 1
                held = "|".join(_SPECIAL.sub(r"\\\g<0>", each) for each in self.choices.get(part, ())) or ".+"
                parts.append(f"(?P<{part}>{held})" if named or part in _OF_MASKS else f"({held})")
        return "".join(parts)


def check_patterns(images: str, masks: str) -> None:
    """Refuse two patterns that cannot pair.

    Raises:
        RecipeError: If the fields differ, or both are the same.
    """
    of_images = set(PathPattern(images).fields)
    if not of_images or of_images != set(PathPattern(masks).fields) - set(_OF_MASKS) or images == masks:
        raise RecipeError(
            f"--masks: {masks!r} must have the fields of --images {images!r}, {sorted(of_images)}, at another place: "
            "'{name}_mask' beside '{name}', or 'masks/{name}' for 'images/{name}'."
        )


def source_places(of_images: PathPattern, of_masks: PathPattern, *, takes_suffix: bool) -> dict[str, Any]:
    """Return the keys of a source that say what two patterns say: folders where they are enough, else expressions.

    Args:
        of_images: Where images lie.
        of_masks: Where masks lie.
        takes_suffix: Whether the source has ``mask_suffix``.

    Example:
        >>> source_places(PathPattern("images/{name}"), PathPattern("masks/{name}"), takes_suffix=True)
        {'images': 'images', 'masks': 'masks'}
        >>> source_places(PathPattern("{case}/img/{name}"), PathPattern("{case}/seg/{name}"), takes_suffix=True)["mask_pattern"]
        '^(.+)/seg/(.+)$'
    """
    places: dict[str, Any] = {"images": of_images.folder, "masks": of_masks.folder}
    suffix = of_masks.below.removeprefix("{name}")
    if of_images.below != "{name}":
        places["image_pattern"] = of_images.expression()
    elif takes_suffix and suffix != of_masks.below and "{" not in suffix:
        return {**places, "mask_suffix": suffix} if suffix else places
    if of_masks.below != "{name}" or places["images"] == places["masks"]:
        places["mask_pattern"] = of_masks.expression()
    return places


def left_out(strangers: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Return what a recipe excludes so that files which are neither image nor mask do no harm: few lines for many files.

    Args:
        strangers: Their paths below the data folder, without ending.
        taken: Those of the images and masks.

    Example:
        >>> left_out(["fov/1", "fov/2", "p1/p1_t1", "p2/p2_t1", "p1/x"], ["p1/p1_flair", "p2/p2_flair", "p1/p1_seg"])
        ['*_t1', 'fov/*', 'p1/x']
    """
    kept = list(taken)
    folders = {stem.rpartition("/")[0] for stem in kept}
    endings = {_ending(stem) for stem in kept}
    found = set()
    for stem in strangers:
        folder, ending = stem.rpartition("/")[0], _ending(stem)
        if folder and not any(each == folder or each.startswith(f"{folder}/") for each in folders):
            found.add(f"{_plain(folder)}/*")
        elif ending and ending not in endings and not ending[1:].isdigit():
            found.add(f"*{_plain(ending)}")
        else:
            found.add(_plain(stem))
    return sorted(found)


def _ending(stem: str) -> str:
    found = re.search(r"[_\-. ][A-Za-z0-9]+$", stem.rpartition("/")[2])
    return found[0] if found else ""


def _plain(text: str) -> str:
    return re.sub(r"[*?\[]", r"[\g<0>]", text)
