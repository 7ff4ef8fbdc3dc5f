"""``medsam-tune cache``: build image embeddings; list and clear all that frozen networks computed once per image."""

from __future__ import annotations

import argparse

from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import RecipeError
from medsam_tune.runs.recipe_files import find_recipe
from medsam_tune.training.overrides import normalise_overrides

DESCRIPTION = """\
Build image embeddings, and list or clear what frozen networks computed once per image: embeddings and priors.

The cache lies in $MEDSAM_TUNE_CACHE, or ~/.cache/medsam_tune. Whatever is in it can be built again."""


def main(arguments: list[str]) -> int:
    """Run ``cache`` with its arguments; without any it lists.

    Raises:
        RecipeError: If the recipe or the named store does not exist.
    """
    options = parser().parse_args(arguments or ["list"])
    if options.action == "build":
        return build(options.recipe, options.overrides)
    if options.action == "clear":
        return clear(options.name, everything=options.all)
    return list_stores()


def build(recipe: str, words: list[str]) -> int:
    """Fill the cache for every image that the recipe trains, validates and tests on."""
    path, overrides = find_recipe(recipe), normalise_overrides(words)
    from medsam_tune.runs.run import build_cache

    return build_cache(path, overrides)


def list_stores() -> int:
    """Print each store: name, kind, images, size, weights, time of making."""
    from medsam_tune.precompute import cache_root, entries

    stores = entries()
    if not stores:
        print(f"{cache_root()}: nothing is cached")
        return 0
    names, kinds = max(len(store.name) for store in stores), max(len(store.kind) for store in stores)
    for store in stores:
        print(
            f"{store.name:<{names}}  {store.kind:<{kinds}}  {store.images:>7} images  {format_bytes(store.bytes):>9}  "
            f"{store.weights}  {store.created}".rstrip()
        )
    print(f"{cache_root()}: {format_bytes(sum(store.bytes for store in stores))}")
    return 0


def clear(name: str | None, *, everything: bool) -> int:
    """Remove the store called ``name``, those of the kind ``name``, or all of them.

    Raises:
        RecipeError: If neither or both are asked for, or no store has that name.
        DataError: If a store may not be changed.
    """
    from medsam_tune.precompute import clear as clear_store
    from medsam_tune.precompute import entries

    stores = entries()
    there = ", ".join(store.name for store in stores) or "none"
    if (name is None) is not everything:
        raise RecipeError(f"cache clear: give one NAME or --all. There are: {there}.")
    meant = [store for store in stores if name in (None, store.name, store.kind)]
    if name is not None and not meant:
        raise RecipeError(f"{name}: no such cached store. There are: {there}.")
    print(f"freed {format_bytes(sum(clear_store(store.folder) for store in meant))}")
    return 0


def format_bytes(size: int) -> str:
    """Write a number of bytes for people.

    Examples:
        >>> format_bytes(2_500_000)
        '2.5 MB'
    """
    if size < 1000:
        return f"{size} B"
    value, units = float(size), iter(("kB", "MB", "GB", "TB"))
    unit = ""
    while value >= 999.95 and (following := next(units, None)):
        value, unit = value / 1000, following
    return f"{value:.1f} {unit}"


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune cache``."""
    parser = OptionParser("medsam-tune cache", DESCRIPTION)
    actions = parser.add_subparsers(dest="action", required=True)
    filling = actions.add_parser("build", help="encode every image of a recipe once")
    filling.add_argument("recipe", metavar="RECIPE")
    filling.add_argument("overrides", nargs=argparse.REMAINDER, metavar="--key=value")
    actions.add_parser("list", help="what is cached, and its size")
    clearing = actions.add_parser("clear", help="remove one store, or all")
    clearing.add_argument(
        "name", nargs="?", metavar="NAME", help="as `cache list` says, or a kind: embeddings, prefixes, priors"
    )
    clearing.add_argument("--all", action="store_true", help="remove all of them")
    return parser
