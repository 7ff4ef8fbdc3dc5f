"""The parser of every command's options."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from typing import NoReturn

from medsam_tune.errors import RecipeError

_NO_CHOICE = re.compile(r"invalid choice: '([^']+)' \(choose from (.+)\)")
_NO_OPTION = re.compile(r"unrecognized arguments: (--?[\w-]+)")


class OptionParser(argparse.ArgumentParser):
    """Take whole option names only, keep the description's lines, and say what is wrong in one line.

    Args:
        command: The words that start it, such as ``medsam-tune cache``; argparse gives those of sub-commands as ``prog``.
        description: Shown by ``--help``.
    """

    def __init__(self, command: str = "", description: str = "", *, prog: str = "") -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(command or prog, description=description, formatter_class=raw, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse says.

        Raises:
            RecipeError: Always.
        """
        near = self._meant(message)
        hint = f"Did you mean {near}?" if near else f"`{self.prog} --help` shows what it takes."
        raise RecipeError(f"{self.prog}: {message}. {hint}")

    def _meant(self, message: str) -> str | None:
        """Return what a mistyped word or option was likely meant to be."""
        if found := _NO_CHOICE.search(message):
            word, known = found[1], re.findall(r"[\w-]+", found[2])
        elif found := _NO_OPTION.search(message):
            word, known = found[1], list(_options(self))
        else:
            return None
        return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield every option of a parser and of its actions."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)
