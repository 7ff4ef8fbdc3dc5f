"""The pieces of a self-contained HTML page; every text is escaped here and nowhere else."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --muted: #59636e; --line: #d8dee4; --page: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --muted: #9198a1; --line: #30363d; --page: #0d1117; --card: #161b22; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem; background: var(--page); color: var(--text);
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .35rem; }
h2 { font-size: 1.12rem; margin: 2.6rem 0 .7rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 1.3rem 0 .15rem; }
p { margin: .35rem 0; }
.muted, figcaption { color: var(--muted); font-size: .88rem; }
.verdict { font-weight: 600; margin: .7rem 0; }
.prose { white-space: pre-wrap; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.4rem 0 0; }
.tile { flex: 1 1 11rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.65rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .82rem; }
th, td { padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-right: .8rem; }
tr.strong td { font-weight: 650; }
figure { margin: .6rem 0 1.4rem; }
.scroll + .scroll { margin-top: 1.3rem; }
figure img { display: block; margin-bottom: .35rem; max-width: 100%; height: auto; border-radius: .35rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; margin: .5rem 0;
      overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.swatch { display: inline-block; width: 1.5rem; vertical-align: middle; margin: 0 .35rem 0 .9rem; }
.swatch:first-child { margin-left: 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 0 2.5rem; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole document; ``body`` holds pieces made by the functions of this module."""
    parts = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{parts}\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """Return a heading of level 1 to 3."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, kind: str = "") -> str:
    """Return a paragraph; ``kind`` is a style: muted, verdict, prose (keeps line breaks), or several."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Return a row of large figures from pairs (figure, what it is)."""
    inner = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in values)
    return f'<div class="tiles">{inner}</div>'


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, strong: Sequence[int] = ()) -> str:
    """Return a table whose first column is text and whose other columns are figures, set to the right.

    Args:
        headers: One text a column.
        rows: Cells as text.
        strong: Indices of rows in bold.
    """
    head = "".join(f"<th{_number_class(column)}>{escape(text)}</th>" for column, text in enumerate(headers))
    lines = [
        f"<tr{' class=strong' if index in strong else ''}>"
        + "".join(f"<td{_number_class(column)}>{escape(cell)}</td>" for column, cell in enumerate(row))
        + "</tr>"
        for index, row in enumerate(rows)
    ]
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def facts(values: Mapping[str, object]) -> str:
    """Return a table of names and values; nested mappings and lists are written on one line."""
    lines = "".join(
        f"<tr><td>{escape(_words(name))}</td><td>{escape(plain(value))}</td></tr>" for name, value in values.items()
    )
    return f'<div class="scroll"><table><tbody>{lines}</tbody></table></div>'


def picture(png: bytes, *, alternative: str, caption: str = "") -> str:
    """Return a figure with the PNG inside the page."""
    source = base64.b64encode(png).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/png;base64,{source}" alt="{escape(alternative)}">{below}</figure>'


def code(text: str) -> str:
    """Return a block of code or of shell commands."""
    return f"<pre>{escape(text)}</pre>"


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """Return a line that explains contours: triples (colour, border style, meaning)."""
    inner = "".join(
        f'<span class="swatch" style="border-top:3px {escape(style)} {escape(colour)}"></span>{escape(meaning)}'
        for colour, style, meaning in entries
    )
    return f'<p class="muted">{inner}</p>'


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
