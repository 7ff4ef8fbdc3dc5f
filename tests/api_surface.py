"""Write down the public names and signatures of the package: ``python -m tests.api_surface`` after a change that is meant."""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType

import medsam_tune

FILE = Path(__file__).with_name("api_surface.json")


def api_surface() -> dict[str, dict[str, object]]:
    """Return room to public name (its ``__all__``) to signature; of a class also the public methods and properties by name."""
    rooms = [info.name for info in pkgutil.walk_packages(medsam_tune.__path__, "medsam_tune.") if info.ispkg]
    modules = {name: import_module(name) for name in [*sorted(rooms), medsam_tune.__name__]}
    homes: dict[int, str] = {}
    surface = {name: _room(module, homes) for name, module in modules.items() if hasattr(module, "__all__")}
    return dict(sorted(surface.items()))


def _room(module: ModuleType, homes: dict[int, str]) -> dict[str, object]:
    """Describe a room's names; what another room offers too is described there alone."""
    found: dict[str, object] = {}
    for public in sorted(set(module.__all__) - {"__version__"}):
        value = getattr(module, public)
        home = homes.setdefault(id(value), f"{module.__name__}.{public}")
        found[public] = _described(value) if home == f"{module.__name__}.{public}" else f"see {home}"
    return found


def _described(value: object) -> object:
    if inspect.isclass(value):
        return {"()": _signature(value), **{name: _member(value, name) for name in _members(value)}}
    return _signature(value) if inspect.isroutine(value) else _without_addresses(repr(value))


def _members(value: type) -> list[str]:
    """Return the public names that the package itself defines, in the class or in one of ours above it."""
    ours = [base for base in value.__mro__ if base.__module__.split(".")[0] == "medsam_tune"]
    return sorted({name for base in ours for name in vars(base) if not name.startswith("_")})


def _member(owner: type, name: str) -> str:
    found = inspect.getattr_static(owner, name)
    if isinstance(found, property | cached_property):
        return "property"
    found = found.__func__ if isinstance(found, classmethod | staticmethod) else found
    return _signature(found) if inspect.isfunction(found) else "attribute"


def _signature(value: object) -> str:
    try:
        return _without_addresses(str(inspect.signature(value)))  # type: ignore[arg-type]
    except ValueError:
        return "(...)"


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def written(surface: dict[str, dict[str, object]]) -> str:
    """Return the surface as the file holds it."""
    return json.dumps(surface, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(api_surface()), encoding="utf-8")
