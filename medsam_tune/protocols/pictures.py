"""What of a summary is drawn: the panels of each protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medsam_tune.evaluation.protocol_figure import Curve, Panel, draw_panels

Entry = Mapping[str, Any]
_DRAWN = ("token0", "first", "oracle")
_NOT_MOVED = "none"


def draw_summary(protocol: str, entries: Sequence[Entry]) -> bytes | None:
    """Draw the entries of a summary as PNG; None where there is nothing to draw."""
    panels = [panel for panel in _PANELS[protocol](entries) if panel.curves]
    return draw_panels(panels) if panels else None


def _huang(entries: Sequence[Entry]) -> list[Panel]:
    still = [entry for entry in entries if not entry["displacement"]]
    found = [Panel("Strategies, prompts not moved", "strategy", "Dice", _curves(still, "strategy", "dice"), joined=False)]
    for strategy, title in (("S2", "One point, moved"), ("S5", "The box, moved")):
        asked = [{**entry, "displacement": entry["displacement"] or _NOT_MOVED} for entry in entries]
        moved = [entry for entry in asked if entry["strategy"] == strategy]
        if len({entry["displacement"] for entry in moved}) > 1:
            found.append(Panel(title, "moved by", "Dice", _curves(moved, "displacement", "dice")))
    return found


def _mazurowski(entries: Sequence[Entry]) -> list[Panel]:
    modes = [entry for entry in entries if entry["clicks"] is None]
    found = [Panel("Modes", "mode", "IoU", _curves([_short(entry) for entry in modes], "strategy", "iou"), joined=False)]
    for error_map in ("joined", "separate"):
        clicked = [entry for entry in entries if entry["error_map"] == error_map]
        found.append(Panel(f"Clicks, {error_map} errors", "clicks", "IoU", _curves(clicked, "clicks", "iou")))
    return found


def _prompts(entries: Sequence[Entry]) -> list[Panel]:
    titles = {
        "box": ("A box drawn badly", "each side moved by (share of the box)"),
        "click": ("A click", "depth: 1 amid the object, 0 at its border"),
        "clicks": ("Clicks on the error", "clicks"),
    }
    panels = []
    for strategy, (title, label) in titles.items():
        chosen = [entry for entry in entries if entry["strategy"] == strategy]
        panels.append(Panel(title, label, "Dice", _curves(chosen, "level", "dice", rules=("token0", "oracle"))))
    return panels


def _segment(entries: Sequence[Entry]) -> list[Panel]:
    flat = [
        {"model": entry["model"], "label": label, "selection": None, **found}
        for entry in entries
        for label, found in [("all", entry), *entry["per_label"].items()]
    ]
    return [Panel("Dice by label", "label", "Dice", _curves(flat, "label", "dice", rules=(None,)), joined=False)]


_PANELS: dict[str, Callable[[Sequence[Entry]], list[Panel]]] = {
    "huang": _huang,
    "mazurowski": _mazurowski,
    "prompts": _prompts,
    "segment": _segment,
}


def _curves(entries: Sequence[Entry], axis: str, metric: str, *, rules: Sequence[str | None] = _DRAWN) -> list[Curve]:
    """Return a curve for each model and rule: a colour a model, a line a rule."""
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    found = []
    for colour, model in enumerate(models):
        for rule in rules:
            chosen = [entry for entry in entries if (entry["model"], entry.get("selection")) == (model, rule)]
            points = [(entry[axis], entry[metric]) for entry in chosen if entry[metric]["mean"] is not None]
            if not points:
                continue
            points.sort(key=lambda point: point[0] if not isinstance(point[0], str) else 0)
            ends = [value["ci95"] or (math.nan, math.nan) for _, value in points]
            found.append(
                Curve(
                    f"{model}, {rule}" if rule else model,
                    colour,
                    _DRAWN.index(rule) if rule in _DRAWN else 0,
                    [place for place, _ in points],
                    [value["mean"] for _, value in points],
                    [low for low, _ in ends],
                    [high for _, high in ends],
                )
            )
    return found


def _short(entry: Entry) -> Entry:
    return {**entry, "strategy": str(entry["strategy"]).removeprefix("mode ")}
