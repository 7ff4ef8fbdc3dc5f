"""A public name or signature that changes is seen, and said in the changelog, before a user's file breaks."""

from __future__ import annotations

import json

from tests.api_surface import FILE, api_surface, written


def differences(known, found, above=""):
    """Every place where two surfaces differ, one a line."""
    if not (isinstance(known, dict) and isinstance(found, dict)):
        return [] if known == found else [f"{above}: was {known}, is {found}"]
    lines = [f"{above}.{name} is gone" for name in sorted(known.keys() - found.keys())]
    lines += [f"{above}.{name} is new" for name in sorted(found.keys() - known.keys())]
    for name in sorted(known.keys() & found.keys()):
        lines += differences(known[name], found[name], f"{above}.{name}".lstrip("."))
    return lines


def test_public_names_and_signatures_are_those_that_were_written_down():
    known = json.loads(FILE.read_text(encoding="utf-8"))
    found = json.loads(written(api_surface()))
    assert differences(known, found) == [], "If it is meant: python -m tests.api_surface, and a line in CHANGELOG.md."


def test_a_lost_name_a_new_one_and_another_signature_are_told_apart():
    known = {"room": {"A": {"()": "(x)"}, "b": "()"}}
    found = {"room": {"A": {"()": "(x, y)"}, "c": "()"}}
    assert differences(known, found) == ["room.b is gone", "room.c is new", "room.A.(): was (x), is (x, y)"]
