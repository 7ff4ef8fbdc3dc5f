"""Print what benchmarks/run.py measured as Markdown tables.

Usage: python benchmarks/table.py FILE.json [FILE.json ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = (
    "| Row | What | Ours | Reference | Ratio | Goal | Outputs differ by | Met |",
    "|---|---|---:|---:|---:|---:|---:|---|",
)
RECIPES_HEAD = (
    "| Recipe | Network | Trained parameters | Images a step | Step | Peak memory | Whole training as the recipe stands |",
    "|---|---|---:|---:|---:|---:|---|",
)


def rows(found: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each compared row, and one for each further way that was timed."""
    for name, row in found["rows"].items():
        if name == "recipes":
            continue
        if "failed" in row:
            yield f"| {name} | {row['goal']} | | | | {number(row['target'])} | | {row['failed']} |"
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        cells = [name, row["goal"], side(row["ours"], row), side(row["reference"], row), ratio, number(row["target"])]
        error = "" if row["error"] is None else f"{row['error']:.0e}"
        yield f"| {' | '.join([*cells, error, row['verdict']])} |"
        for key, figures in row["extra"].get("variants", {}).items():
            said = f"{figures['per_s']:.1f} /s{peak(figures)}" if "per_s" in figures else next(iter(figures.values()))
            yield f"| | {key} | {said} | | | | | |"


def side(figures: dict[str, Any], row: dict[str, Any]) -> str:
    """Return seconds or megabytes of one side."""
    if "median" not in figures:
        return ""
    if "peak" in row["metric"]:
        return f"{figures.get('peak_mb') or figures['median']:,.0f} MB"
    return f"{1 / figures['median']:.3g} /s{peak(figures)}"


def peak(figures: dict[str, Any]) -> str:
    """Return peak memory where it was measured."""
    return "" if figures.get("peak_mb") is None else f", {figures['peak_mb'] / 1024:.1f} GB"


def number(value: float | None) -> str:
    """Return a goal with three digits."""
    return "" if value is None else f"{value:.3g}"


def recipes(found: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each recipe."""
    for name, row in found["rows"].get("recipes", {}).get("extra", {}).get("recipes", {}).items():
        recipe, _, network = name.partition(", ")
        if "failed" in row:
            yield f"| `{recipe}` | {network} | not measured: {row['failed']} | | | | |"
            continue
        whole = f"{row['minutes']:.1f} min, {row['steps']} steps"
        yield (
            f"| `{recipe}` | {network} | {row['trained']:,} | {row['batch']} | {row['step_s']:.3g} s | "
            f"{row['peak_mb'] / 1024:.2f} GB | {whole} |"
        )


def main() -> int:
    """Print the tables of each file."""
    for path in sys.argv[1:] or sys.exit(__doc__):
        found = json.loads(Path(path).read_text())
        print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
        print("\n".join([*HEAD, *rows(found)]))
        if lines := list(recipes(found)):
            print("\n".join(["", *RECIPES_HEAD, *lines]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
