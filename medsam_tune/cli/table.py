"""Tables on standard output, as wide as they need to be: what is cut off cannot be copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[str] = ()) -> None:
    """Print rows under a head; colours and styles only on a terminal.

    Args:
        head: Name of each column.
        rows: A cell for each of them.
        numbers: Columns that are aligned at the right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in head:
        table.add_column(name, justify="right" if name in set(numbers) else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    wide = Console(highlight=False, width=10_000)
    Console(highlight=False, width=Measurement.get(wide, wide.options, table).maximum).print(table)
