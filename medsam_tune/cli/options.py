"""The parser of every command's options."""

from __future__ import annotations

import argparse
from typing import NoReturn

from medsam_tune.errors import RecipeError


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
        raise RecipeError(f"{self.prog}: {message}. `{self.prog} --help` shows what it takes.")
