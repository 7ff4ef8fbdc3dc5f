"""Turn what the parser says about a faulty recipe into one line that begins with the key."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from itertools import takewhile
from typing import Any

_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)':\s*")
_SUBTYPE = re.compile(r"<class '(medsam_tune\.\w+)[\w.]*\.(\w+)'>")
_NOT_ACCEPTED = re.compile(r"(?:Option|Key) '([^']+)' is not accepted\.?")
_NO_GROUP_OPTION = re.compile(r"(?:Group|Subcommand) '([^']+)' does not accept option '([^']+)'")
_NO_CLASS = re.compile(
    r"Expected a dot import path string: (\S+)|module '\S+' has no attribute '(\w+)'|No module named '([^']+)'"
)
_UNRECOGNISED = re.compile(r"unrecognized arguments: (.+)", re.DOTALL)
_EXPECTED = re.compile(r"Expected (?:an? )?((?:<class|typing\.|\w+$).*)", re.MULTILINE)
_GIVEN = re.compile(r"(?:Given value|Got value): (?:NestedArg\(key='[^']+', val='(.*)'\)|(.+))")
_REQUIRED = re.compile(r"the following arguments are required: ([\w, ]+)")
_UNWRITABLE = re.compile(r"cannot represent an object', (<[^>]+>)\)")
_NO_CONFIG = re.compile(r"Unable to load config (.+?)(?: - |$)", re.MULTILINE)
_NO_SUBCLASS = re.compile(r"Import path (\S*) ?does not correspond to a subclass of (\w+)")


def one_fault(text: str, *, recipe: str = "recipe", known_keys: Iterable[str] = ()) -> str:
    """Return the parser's complaint as one line: the key, what is wrong, and what was likely meant.

    Args:
        text: jsonargparse's message; a union's message holds one complaint per alternative.
        recipe: The file that was read, for a fault in its syntax.
        known_keys: Dotted keys of a recipe, to suggest one for a mistyped key.

    Examples:
        >>> one_fault("unrecognized arguments: --modle.loss=x", known_keys=["model.loss", "data.root"])
        'modle.loss: no such key. Did you mean model?'
    """
    text = text.strip().removeprefix("error:").strip()
    if found := _UNRECOGNISED.search(text):
        return _unknown_key(found[1].split()[0].lstrip("-").partition("=")[0], known_keys)
    if found := _NO_GROUP_OPTION.search(text):
        section = "" if found[0].startswith("Subcommand") else f"{found[1]}."
        return _unknown_key(f"{section}{found[2]}", known_keys)
    if text.startswith("Problems parsing config:"):
        return f"{recipe}: is no YAML: {_on_one_line(text.partition(':')[2])}."
    key = ".".join(_KEY.findall(text))
    if not key and (found := _NOT_ACCEPTED.fullmatch(text)):
        return _unknown_key(found[1], known_keys)
    if missing := re.match(r"the following arguments are required: (.+)", text):
        return f"{recipe}: {_on_one_line(missing[1])}: missing. Add them, or give them on the command line."
    if not key:
        return _on_one_line(text)
    if unloadable := _NO_CONFIG.search(text):
        return f"{'.'.join(dict.fromkeys(key.split('.')))}: expected keys with values, got {_on_one_line(unloadable[1])}."
    if "File does not exist" in text:
        return f"{key}: {_on_one_line(_KEY.split(text)[-1])}. Name a file that is there."
    return _unknown_option(key, text) if _NOT_ACCEPTED.search(text) else f"{key}: {_on_one_line(_reason(text))}"


def unwritable(text: str) -> str:
    """Return jsonargparse's complaint about a recipe that cannot be written as YAML, as one line.

    Example:
        >>> unwritable("- ('cannot represent an object', <Interval.step: 'step'>)")
        "config.yaml cannot hold <Interval.step: 'step'>, a default of a class. Give that argument as text."
    """
    found = _UNWRITABLE.search(text)
    if found is None:
        return f"cannot be written to config.yaml: {_on_one_line(text)}"
    return f"config.yaml cannot hold {found[1]}, a default of a class. Give that argument as text."


def _reason(text: str) -> str:
    if found := _NO_CLASS.search(text):
        asked = _class_path(text) or _given(text) or found[0]
        return f"there is no class {asked}.{_other_classes(asked, text)}"
    if found := _NO_SUBCLASS.search(text):
        return f"{found[1] or _given(text)} is no {found[2]}.{_other_classes('', text)}"
    if found := _REQUIRED.search(text):
        return f"{(_class_path(text) or 'it').rpartition('.')[2]} needs {found[1]}."
    if "must include a class_path" in text:
        return "has no class_path to which this option could belong. Name the class first, by its dotted path."
    alternatives = _EXPECTED.findall(_innermost(text).replace(". Got value", "\nGot value"))
    expected = [_type_name(name) for name in dict.fromkeys(alternatives)]
    if expected:
        return f"expected {' or '.join(expected)}, got {_given(text) or 'nothing'}."
    return _CLASS_PATH.split(_KEY.split(text)[-1])[-1]


def _innermost(text: str) -> str:
    """Return what is said about the last key alone: the lines that are indented below it."""
    *_, key = _KEY.finditer(text)
    depth = key.start() - text.rfind("\n", 0, key.start())
    first, *lines = text[key.end() :].splitlines()
    below = takewhile(lambda line: len(line) - len(line.lstrip()) >= depth, lines)
    return "\n".join([first, *below])


def _given(text: str) -> str | None:
    found = _GIVEN.findall(text)
    return "".join(found[-1]).strip() if found else None


def _type_name(annotation: str) -> str:
    name = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", annotation).strip(" :.")
    choices = re.fullmatch(r"typing\.Literal\[(.+)\]", name)
    return f"one of {choices[1]}" if choices else "null" if name == "NoneType" else name


def _unknown_option(key: str, text: str) -> str:
    option = _NOT_ACCEPTED.findall(text)[-1]
    class_path = _class_path(text)
    if class_path is None:
        return f"{key}.{option}: no such key."
    names = [name for name in inspect.signature(_imported(class_path)).parameters if name not in {"self", "args", "kwargs"}]
    near = difflib.get_close_matches(option, names, n=1)
    meant = f"Did you mean {near[0]}?" if near else f"It takes: {', '.join(names) or 'nothing'}."
    return f"{key}.{option}: {class_path.rpartition('.')[2]} takes no {option}. {meant}"


def _unknown_key(key: str, known_keys: Iterable[str]) -> str:
    key, known = key.partition(".init_args")[0], list(known_keys)
    sections = sorted({name.partition(".")[0] for name in known})
    section = key.partition(".")[0]
    word, candidates = (key, known) if section in sections else (section, sections)
    if key.startswith("model.prompt_source"):
        return f"{key}: is of an earlier version: now model.prompts (what is drawn) or model.prompt_encoder (a generator)."
    near = difflib.get_close_matches(word, candidates, n=1)
    hint = f"Did you mean {near[0]}?" if near else "`medsam-tune fit --help=all` lists every key."
    return f"{key}: no such key. {hint}"


def _class_path(text: str) -> str | None:
    found = _CLASS_PATH.findall(text)
    return found[-1] if found else None


def _other_classes(asked: str, text: str) -> str:
    """Name the classes that the seam's room offers, the likely one alone where there is one."""
    seam = _SUBTYPE.search(text)
    if seam is None:
        return " Give its whole dotted path."
    room = import_module(seam[1])
    offered = [name for name in getattr(room, "__all__", ()) if _fits(getattr(room, name), seam[2])]
    near = difflib.get_close_matches(asked.rpartition(".")[2], offered, n=1)
    return f" Did you mean {seam[1]}.{near[0]}?" if near else f" {seam[1]} has {', '.join(offered)}."


def _fits(candidate: object, base: str) -> bool:
    return (
        isinstance(candidate, type)
        and not inspect.isabstract(candidate)
        and base in {parent.__name__ for parent in candidate.__mro__}
    )


def _imported(class_path: str) -> Any:  # noqa: ANN401 - a class or a function that makes one
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
