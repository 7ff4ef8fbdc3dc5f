"""``medsam-tune weights``: what is released, what is here, and a download with checksum."""

from __future__ import annotations

import difflib
from pathlib import Path

from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import RecipeError


def main(arguments: list[str]) -> int:
    """Run ``weights`` with its arguments; without any it lists.

    Raises:
        RecipeError: If there are no weights of that name.
        CheckpointError: If a download does not arrive whole.
    """
    options = parser().parse_args(arguments or ["list"])
    if options.action == "get":
        print(get_weights(options.name))
    else:
        list_weights()
    return 0


def get_weights(name: str) -> Path:
    """Return the file of the weights called ``name``, downloaded first where it is not here.

    Raises:
        RecipeError: If there are no weights of that name.
        CheckpointError: If a download does not arrive whole.
    """
    from medsam_tune.backbone.weights import WEIGHTS, fetch_weights

    if name not in WEIGHTS:
        near = difflib.get_close_matches(name, WEIGHTS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "`medsam-tune weights list` shows them all."
        raise RecipeError(f"{name}: no such weights. {hint}")
    return fetch_weights(name)


def list_weights() -> None:
    """Print each entry of the weights table and where its file is."""
    from medsam_tune.backbone.weights import WEIGHTS, find_weights

    rows = [("name", "architecture", "licence", "file")]
    for name, entry in WEIGHTS.items():
        rows.append(
            (name, entry.architecture, entry.licence, str(find_weights(name) or f"not here: medsam-tune weights get {name}"))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3]]))


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune weights``."""
    parser = OptionParser("medsam-tune weights", "List or download the released weights.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="name, architecture, licence, and the file where one is found")
    get = actions.add_parser("get", help="download one, verify its checksum and print its path")
    get.add_argument("name", metavar="NAME", help="as in `medsam-tune weights list`")
    return parser
