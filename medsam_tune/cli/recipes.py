"""``medsam-tune recipes``: list, show and copy what is bundled; bring recipes of earlier versions to the form of today."""

from __future__ import annotations

from pathlib import Path

from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand
from medsam_tune.runs.recipe_files import bundled_recipe, bundled_recipes, first_comment


def main(arguments: list[str]) -> int:
    """Run ``recipes`` with its arguments; without any it lists.

    Raises:
        RecipeError: If there is no such recipe, or a copy would overwrite a file.
    """
    options = parser().parse_args(arguments or ["list"])
    if options.action == "list":
        list_recipes()
    elif options.action == "show":
        print(bundled_recipe(options.name).read_text(encoding="utf-8"), end="")
    elif options.action == "upgrade":
        upgrade(options.files)
    else:
        print(copy_recipe(options.name, Path(options.destination), force=options.force))
    return 0


def list_recipes() -> None:
    """Print each bundled recipe's name and the first line of its opening comment."""
    recipes = bundled_recipes()
    width = max(map(len, recipes), default=0)
    for name, path in recipes.items():
        print(f"{name:<{width}}  {first_comment(path)}".rstrip())


def upgrade(names: list[str]) -> None:
    """Rewrite recipes of earlier versions and print what was changed in each.

    Raises:
        RecipeError: If a file is no recipe or cannot be converted.
    """
    from medsam_tune.cli.upgrade import KEPT, upgrade_file

    for name in names:
        path = expand(name, "FILE")
        changes = upgrade_file(path)
        print(f"{name}: upgraded; the old one is {path.name}{KEPT}" if changes else f"{name}: is in the form of today already")
        for change in changes:
            print(f"  {change}")


def copy_recipe(name: str, destination: Path, *, force: bool = False) -> Path:
    """Copy a bundled recipe to a file or into a folder and return the new file.

    Raises:
        RecipeError: If there is no such recipe or folder, or the file exists and ``force`` is not set.
    """
    from medsam_tune.files import write_text

    source = bundled_recipe(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists() and not force:
        raise RecipeError(f"{target}: exists already. Give another name, or --force to overwrite it.")
    if not target.parent.is_dir():
        raise RecipeError(f"{target.parent}: no such folder. Make it first, or give another destination.")
    return write_text(target, source.read_text(encoding="utf-8"))


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune recipes``."""
    parser = OptionParser("medsam-tune recipes", "List, show or copy the bundled recipes, or upgrade your own.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="name and first line of each")
    show = actions.add_parser("show", help="print one")
    copy = actions.add_parser("copy", help="copy one here to edit it")
    for action in (show, copy):
        action.add_argument("name", help="as in `medsam-tune recipes list`")
    renew = actions.add_parser("upgrade", help="rewrite a recipe of an earlier version in the form of today")
    renew.add_argument("files", nargs="+", metavar="FILE", help="of your own; the old one is kept beside it")
    copy.add_argument("destination", nargs="?", default=".", help="file or folder; the current folder by default")
    copy.add_argument("--force", action="store_true", help="overwrite a file")
    return parser
