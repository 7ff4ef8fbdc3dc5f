"""Copy ``recipes/`` into the wheel as ``medsam_tune/recipes``; everything else is declared in pyproject.toml.

A mapping by ``package-dir`` would do the same, but would need every package listed by hand, so a new room could be forgotten.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = Path(__file__).parent / "recipes"


class BuildWithRecipes(build_py):
    """Build the package and put the recipes beside it; an editable install reads the checkout's own folder."""

    def run(self) -> None:
        """Build, then replace whatever recipes an earlier build left behind."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "medsam_tune" / "recipes"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(RECIPES, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))


setup(cmdclass={"build_py": BuildWithRecipes})
