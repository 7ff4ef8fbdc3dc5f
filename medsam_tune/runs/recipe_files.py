"""Where the bundled recipes lie, and what a recipe's name on the command line means."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import medsam_tune
from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand

SUFFIXES = (".yaml", ".yml")


def recipes_folder() -> Path:
    """Return the folder of the bundled recipes: inside an installed package, beside the package in a checkout.

    Raises:
        RecipeError: If the installation holds no recipes.
    """
    package = Path(medsam_tune.__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise RecipeError(f"{package / 'recipes'}: the bundled recipes are missing. Reinstall medsam-tune.")


def bundled_recipes() -> dict[str, Path]:
    """Return the bundled recipes by name, such as ``autosam`` or ``paper/autosam_glas``."""
    folder = recipes_folder()
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def bundled_recipe(name: str) -> Path:
    """Return the bundled recipe called ``name``.

    Args:
        name: Its path below the recipes folder, or its file name when only one recipe has it; the ending may be left out.

    Raises:
        RecipeError: If there is none.
    """
    path = _bundled(name)
    if path is None:
        raise RecipeError(f"{name}: no such bundled recipe.{_suggestion(name)} `medsam-tune recipes list` shows them all.")
    return path


def find_recipe(name: str) -> Path:
    """Return the recipe file that ``name`` means: a file of the user's, else the bundled recipe of that name.

    Raises:
        RecipeError: If there is neither, or the file is not YAML.
    """
    path = expand(name, "recipe")
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise RecipeError(f"{name}: a recipe ends in .yaml or .yml. `medsam-tune recipes show autosam` prints one.")
        return path
    bundled = None if path.is_dir() else _bundled(name)
    if bundled is None:
        fault = "is a folder, a recipe is a .yaml file" if path.is_dir() else "no such recipe"
        raise RecipeError(f"{name}: {fault}.{_suggestion(name)} `medsam-tune recipes list` shows the bundled ones.")
    return bundled


def name_bundled_recipes(words: Sequence[str]) -> list[str]:
    """Return a command line in which ``--config NAME`` of a bundled recipe is the path of its file.

    A file of the user's comes first, as in ``find_recipe``; what is neither is left to the parser.
    """
    named = list(words)
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        follows = not equals and position + 1 < len(words)
        if option not in ("--config", "-c") or not (equals or follows):
            continue
        place, name = (position + 1, words[position + 1]) if follows else (position, value)
        bundled = None if expand(name, "--config").exists() else _bundled(name)
        if bundled is not None:
            named[place] = str(bundled) if follows else f"{option}={bundled}"
    return named


def first_comment(recipe: Path) -> str:
    """Return the first comment line of a recipe without its hash, or an empty text."""
    with recipe.open(encoding="utf-8") as lines:
        comments = (line.lstrip("#").strip() for line in lines if line.startswith("#"))
        return next((comment for comment in comments if comment), "")


def _bundled(name: str) -> Path | None:
    plain = name.removeprefix("./").removeprefix("recipes/")
    for suffix in SUFFIXES:
        plain = plain.removesuffix(suffix)
    recipes = bundled_recipes()
    if plain in recipes:
        return recipes[plain]
    same_file_name = [path for path in recipes.values() if path.stem == plain]
    return same_file_name[0] if len(same_file_name) == 1 else None


def _suggestion(name: str) -> str:
    asked = expand(name, "recipe")
    folder = asked if asked.is_dir() else asked.parent
    beside = [path for path in folder.iterdir() if path.suffix in SUFFIXES] if folder.is_dir() else []
    by_key = {path.stem: str(path) for path in beside} | {Path(key).name: key for key in bundled_recipes()}
    near = [by_key[key] for key in difflib.get_close_matches(asked.stem, by_key, n=3)]
    return f" Did you mean {' or '.join(near)}?" if near else ""
