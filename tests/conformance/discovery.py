"""Every class of a seam that a room holds, found by looking."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from types import ModuleType


def concrete(room: ModuleType, seam: type) -> dict[str, type]:
    """Every concrete public class in a module of ``room`` that implements ``seam``, by name."""
    found = {}
    for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        for name, value in vars(import_module(info.name)).items():
            if inspect.isclass(value) and issubclass(value, seam) and not inspect.isabstract(value) and name[0] != "_":
                found[name] = value
    return found
