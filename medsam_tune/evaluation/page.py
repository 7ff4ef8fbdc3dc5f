"""The pieces of a self-contained HTML page; every text is escaped here and nowhere else."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from medsam_tune.evaluation.page_design import SCRIPT, STYLE


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole document; ``body`` holds pieces made by the functions of this module."""
    parts = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{parts}\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2, *, name: str = "") -> str:
    """Return a heading of level 1 to 3, with an identifier for links where it has a name."""
    mark = f' id="{escape(name)}"' if name else ""
    return f"<h{level}{mark}>{escape(text)}</h{level}>"


def paragraph(text: str, *, kind: str = "") -> str:
    """Return a paragraph; ``kind`` is a style: muted, verdict, prose (keeps line breaks), or several."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Return a row of large figures from pairs (figure, what it is)."""
    inner = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in values)
    return f'<div class="tiles">{inner}</div>'


@dataclass(frozen=True)
class Cell:
    """Hold a cell of a sortable table.

    Attributes:
        text: What is read.
        value: What it is sorted by; the text by default.
        link: The identifier of an element of the page that it leads to; none by default.
    """

    text: str
    value: float | None = None
    link: str = ""


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str | Cell]], *, strong: Sequence[int] = (), sortable: bool = False
) -> str:
    """Return a table whose first column is text and whose other columns are figures, set to the right.

    Args:
        headers: One text a column.
        rows: Cells.
        strong: Indices of rows in bold.
        sortable: Let a click on a header sort the rows, and a long table scroll.
    """
    shown = [f'<button type="button">{escape(text)}</button>' if sortable else escape(text) for text in headers]
    head = "".join(f"<th{_number_class(column)}>{text}</th>" for column, text in enumerate(shown))
    lines = [
        f"<tr{' class=strong' if index in strong else ''}>"
        + "".join(_cell(column, cell) for column, cell in enumerate(row))
        + "</tr>"
        for index, row in enumerate(rows)
    ]
    kinds = ('class="scroll tall"', ' class="sortable"') if sortable else ('class="scroll"', "")
    return f"<div {kinds[0]}><table{kinds[1]}><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _cell(column: int, cell: str | Cell) -> str:
    if isinstance(cell, str):
        cell = Cell(cell)
    value = "" if cell.value is None else f' data-value="{cell.value:.6g}"'
    figure, bracket, ends = cell.text.partition(" (")
    if column and bracket and " to " in ends:
        # A narrow page has the interval below its figure, each in one piece.
        return f'<td class="number ends"{value}><span>{escape(figure)}</span> <span>({escape(ends)}</span></td>'
    text = f'<a href="#{escape(cell.link)}">{escape(cell.text)}</a>' if cell.link else escape(cell.text)
    return f"<td{_number_class(column)}{value}>{text}</td>"


def facts(values: Mapping[str, object]) -> str:
    """Return a table of names and values; nested mappings and lists are written on one line."""
    lines = "".join(
        f"<tr><td>{escape(_words(name))}</td><td>{escape(plain(value))}</td></tr>" for name, value in values.items()
    )
    return f'<div class="scroll"><table class="facts"><tbody>{lines}</tbody></table></div>'


def picture(png: bytes, *, alternative: str, caption: str = "") -> str:
    """Return a figure with the PNG inside the page."""
    source = base64.b64encode(png).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/png;base64,{source}" alt="{escape(alternative)}">{below}</figure>'


def code(text: str) -> str:
    """Return a block of code or of shell commands."""
    return f"<pre>{escape(text)}</pre>"


def panel(svg: str, caption: str, *, name: str = "") -> str:
    """Return a picture of ``overlays.draw_slice`` that a click enlarges, with an identifier for links where it has a name."""
    mark = f' id="{escape(name)}"' if name else ""
    return f'<figure class="panel" tabindex="0"{mark}>{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def panels(figures: Iterable[str]) -> str:
    """Return pictures of ``panel`` in rows."""
    return f'<div class="panels">{"".join(figures)}</div>'


def plots(figures: Iterable[str]) -> str:
    """Return plots of ``scatter`` in rows; empty ones are left out."""
    return f'<div class="plots">{"".join(f"<figure>{figure}</figure>" for figure in figures if figure)}</div>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return what the lines over pictures mean, each with a box that hides it: pairs (kind of line, meaning)."""
    line = '<svg viewBox="0 0 30 8"><path class="{}" d="M0 4H30"/></svg>'
    inner = "".join(
        f'<label><input type="checkbox" id="show-{escape(kind)}" checked>{line.format(escape(kind))}{escape(meaning)}</label>'
        for kind, meaning in entries
    )
    return f'<p class="legend">{inner}</p>'


def folded(summary: str, inner: str, *, kind: str = "", name: str = "", is_open: bool = False) -> str:
    """Return a part that a click on its summary shows or hides.

    Args:
        summary: What is read while it is hidden.
        inner: A piece made by this module.
        kind: Its style.
        name: Its identifier, for links.
        is_open: Show it at first.
    """
    marks = "".join(f' {key}="{escape(value)}"' for key, value in (("class", kind), ("id", name)) if value)
    return f"<details{marks}{' open' if is_open else ''}><summary>{escape(summary)}</summary>{inner}</details>"


def links(targets: Mapping[str, str]) -> str:
    """Return links on one line: text to address, an element of the page (``#name``) or a file beside it."""
    inner = "".join(f'<a href="{escape(address)}">{escape(text)}</a>' for text, address in targets.items())
    return f"<nav>{inner}</nav>"


def columns(blocks: Sequence[str]) -> str:
    """Return blocks side by side where the window is wide enough."""
    return '<div class="columns">' + "".join(f"<div>{block}</div>" for block in blocks) + "</div>"


def plain(value: object) -> str:
    """Return a value as a reader would write it."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(name)} {plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _number_class(column: int) -> str:
    return ' class="number"' if column else ""
