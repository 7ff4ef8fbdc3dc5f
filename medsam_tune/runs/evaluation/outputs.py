"""What an evaluation leaves: tables of every row, summary.json, a figure and a page for people."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from medsam_tune import __version__
from medsam_tune.errors import RecipeError
from medsam_tune.evaluation.measures import DISTANCES, SHARES
from medsam_tune.evaluation.page import Cell, code, facts, heading, page, paragraph, picture, table, tiles
from medsam_tune.files import write_bytes, write_json, write_text
from medsam_tune.protocols.base import Protocol, Row
from medsam_tune.protocols.pictures import draw_summary
from medsam_tune.protocols.summary import describe_rules, summarise_rows
from medsam_tune.runs.evaluation.job import CaseRecord, EvaluationPlan

TABLE, PARQUET, SUMMARY, FIGURE, PAGE = "objects.csv", "objects.parquet", "summary.json", "figure.png", "report.html"
HEADLINES = {"huang": "dice", "mazurowski": "iou", "prompts": "dice", "segment": "dice"}


@dataclass(frozen=True)
class Evaluation:
    """Hold what was found.

    Attributes:
        plan: What was asked.
        records: Of every case, in the order of their names.
        command: The words that asked.
    """

    plan: EvaluationPlan
    records: Sequence[CaseRecord]
    command: Sequence[str] = ()

    def rows(self) -> list[Row]:
        """Return all rows, case after case."""
        return [row for record in sorted(self.records, key=lambda record: record.case) for row in record.rows]

    def summary(self) -> dict[str, Any]:
        """Return the figures and what they are of, as JSON values."""
        plan, protocol = self.plan, self.plan.protocol
        return {
            "protocol": protocol.name,
            "settings": repr(protocol),
            "models": dict(zip(plan.names(), plan.models, strict=True)),
            "data": plan.data.name,
            "only_test_cases": plan.data.cases is not None,
            "target": plan.data.target,
            "seed": plan.seed,
            "cases": len(self.records),
            "images": sum(record.images for record in self.records),
            "images_without_object": sum(record.images_without_object for record in self.records),
            "objects": sum(record.objects for record in self.records),
            "files_left_out": list(plan.data.faults),
            "rules": describe_rules(),
            **summarise_rows(self.rows(), protocol),
            "version": __version__,
            "command": shlex.join(self.command),
        }

    def write(self, out: Path) -> dict[str, Any]:
        """Write everything into a folder and return the summary; the Parquet table where pyarrow is installed.

        Raises:
            DataError: If a file cannot be written.
        """
        rows, summary = self.rows(), self.summary()
        write_text(out / TABLE, _csv(rows, self.plan.protocol))
        if find_spec("pyarrow") is not None:
            write_bytes(out / PARQUET, _parquet(rows, self.plan.protocol))
        write_json(out / SUMMARY, summary)
        figure = draw_summary(self.plan.protocol.name, summary["entries"])
        if figure is not None:
            write_bytes(out / FIGURE, figure)
        write_text(out / PAGE, _page(summary, figure))
        return summary


def check_parquet() -> None:
    """Refuse to promise a Parquet table that cannot be written.

    Raises:
        RecipeError: If pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise RecipeError("--parquet: needs pyarrow. Install it: pip install medsam-tune[parquet]")


def entry_words(entry: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    """Return a row of the printed table: model, what was asked, selection, the mean, its interval, its other means."""
    asked = [str(entry[name]) for name in ("strategy", "displacement") if entry.get(name)]
    asked += [f"{entry[name]:g}" for name in ("level", "clicks") if entry.get(name) is not None]
    asked += [entry["error_map"]] if entry.get("error_map") else []
    value = entry[metric]
    others = (entry["by_object"][metric], entry["by_target"][metric])
    return (
        str(entry["model"]),
        " ".join(asked),
        str(entry.get("selection") or ""),
        _number(value["mean"]),
        _ends(value),
        *map(_number, others),
        str(entry["n_objects"]),
        str(entry["n_cases"]),
    )


_TITLES = {"dice": "Dice", "iou": "IoU"}
_DISTANCE_NAMES = ("Hausdorff distance", "HD95", "average surface distance")
ENTRY_HEAD = ("model", "asked", "selection", "{metric}", "95 % interval", "by object", "by target", "objects", "cases")


def _ends(value: Mapping[str, Any]) -> str:
    ends = value["ci95"]
    return "-" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f} ({value['ci95_method']})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _csv(rows: Sequence[Row], protocol: Protocol) -> str:
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(protocol.columns)
    writer.writerows([_cell(row[name]) for name in protocol.columns] for row in rows)
    return buffer.getvalue()


def _cell(value: Any) -> str:  # noqa: ANN401 - a cell
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _parquet(rows: Sequence[Row], protocol: Protocol) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[name] for row in rows] for name in protocol.columns}
    buffer = BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def _page(summary: Mapping[str, Any], figure: bytes | None) -> str:
    metric = HEADLINES[summary["protocol"]]
    head = [name.format(metric=_TITLES[metric]) for name in ENTRY_HEAD]
    rows = [[Cell(text, _value(text)) for text in entry_words(entry, metric)] for entry in summary["entries"]]
    shown = [(str(summary[name]), name) for name in ("cases", "images", "objects", "images_without_object")]
    body = [
        heading(f"{summary['protocol']} on {summary['data']}", 1),
        tiles([(value, name.replace("_", " ")) for value, name in shown]),
    ]
    if any(entry["oracle"] for entry in summary["entries"]):
        body.append(
            paragraph("The oracle chooses by the truth, which no user knows: an upper limit, not a result.", kind="muted")
        )
    if figure is not None:
        body.append(picture(figure, alternative="the figures of the table as curves, with 95 % intervals"))
    body += [heading("Figures"), table(head, rows, sortable=True), *_by_data_set(summary["entries"], metric)]
    body += _measures(summary["entries"])
    for name, title in (("clicks_needed", "Clicks needed"), ("correlations", "Dice and attributes, the others held still")):
        if found := summary.get(name):
            names = [key for key in found[0] if key != "oracle"]
            cells = [[Cell(_shown(each[key]), _value(_shown(each[key]))) for key in names] for each in found]
            body += [heading(title), table([key.replace("_", " ") for key in names], cells, sortable=True)]
    told = {name: summary[name] for name in ("data", "target", "seed", "settings", "version")}
    body += [heading("What was asked"), table(["model", "is"], list(summary["models"].items())), facts(told)]
    if any(entry.get("selection") for entry in summary["entries"]):
        body.append(table(["selection", "takes"], list(summary["rules"].items())))
    body.append(code(summary["command"]))
    return page(f"{summary['protocol']}: {summary['data']}", body)


def _by_data_set(entries: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Return the figures of each data set; nothing where the names of cases tell of one alone."""
    rows = []
    for entry in entries:
        for name, found in (entry.get("per_data_set") or {}).items():
            model, asked, selection, *_ = entry_words(entry, metric)
            counts = (found["n_objects"], found["n_cases"])
            words = (name, model, asked, selection, _number(found[metric]["mean"]), _ends(found[metric]), *map(str, counts))
            rows.append([Cell(text, _value(text)) for text in words])
    head = ["data set", "model", "asked", "selection", _TITLES[metric], "95 % interval", "objects", "cases"]
    return [heading("By data set"), table(head, rows, sortable=True)] if rows else []


def _measures(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a plain test measures beside Dice, a column a model: over all labels, and of each where there are several."""
    if not entries or "hd95" not in entries[0]:
        return []
    labels = list(dict.fromkeys(label for entry in entries for label in entry["per_label"]))
    parts = [heading("Other figures"), _measured(entries)]
    for label in labels if len(labels) > 1 else ():
        found = [{**entry["per_label"][label], "model": entry["model"]} for entry in entries if label in entry["per_label"]]
        parts += [heading(label, 3), _measured(found)]
    note = "Means over cases and labels; of distances over those that are finite, the others counted in brackets."
    return [*parts, paragraph(note, kind="muted")]


def _measured(found: Sequence[Mapping[str, Any]]) -> str:
    tolerance = found[0]["nsd"]
    within = f" within {tolerance['tolerance']:g} {tolerance['unit']}" if tolerance["unit"] else ""
    rows = [
        ["Dice", *(_number(each["dice"]["mean"]) for each in found)],
        ["IoU", *(_number(each["iou"]["mean"]) for each in found)],
        *([name, *(_distance(each[key]) for each in found)] for key, name in zip(DISTANCES, _DISTANCE_NAMES, strict=True)),
        *(
            [name, *(_number(each[key]["mean"]) for each in found)]
            for key, name in zip(SHARES, (f"NSD{within}", "S-measure", "AJI", "pixel F"), strict=True)
            if any(each[key]["mean"] is not None for each in found)
        ),
        ["size, predicted minus true", *(_difference(each.get("size_difference")) for each in found)],
        ["empty slices with a find", *(f"{each['false_positive_slices']} of {each['empty_slices']}" for each in found)],
    ]
    return table(["", *(str(each["model"]) for each in found)], rows)


def _distance(found: Mapping[str, Any]) -> str:
    infinite = f" ({found['n_infinite']} infinite)" if found["n_infinite"] else ""
    return f"-{infinite}" if found["mean"] is None else f"{found['mean']:.3g} {found['unit']}{infinite}"


def _difference(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['mean']:+.3g} {found['unit']} ({found['mean_absolute']:.3g} without its sign)"


def _shown(value: Any) -> str:  # noqa: ANN401 - a cell
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
