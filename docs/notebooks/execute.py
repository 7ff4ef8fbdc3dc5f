"""Execute the notebooks of the docs in place, each in an empty folder: ``python docs/notebooks/execute.py [NAME ...]``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(path: Path, replaced: dict[str, str] | None = None) -> nbformat.NotebookNode:
    """Return an executed notebook.

    Args:
        path: The notebook.
        replaced: Text of its cells to other text, such as other weights for a test.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for text, other in (replaced or {}).items():
            cell.source = cell.source.replace(text, other)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
        _clean(notebook, folder)
    return notebook


def _clean(notebook: nbformat.NotebookNode, folder: str) -> None:
    """Drop what belongs to one run on one machine: times, bars, and the folder that it ran in."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs = cell.get("outputs", [])
        for output in outputs:
            if "text" in output:
                output.text = output.text.replace(f"{folder}/", "").replace(folder, ".")
        if cell.cell_type == "code":
            cell.outputs = _joined(each for each in outputs if each.get("name") != "stderr")


def _joined(outputs: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join the lines that a cell printed one by one."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


if __name__ == "__main__":
    wanted = sys.argv[1:] or [path.stem for path in sorted(HERE.glob("*.ipynb"))]
    for name in wanted:
        nbformat.write(execute(HERE / f"{name}.ipynb"), HERE / f"{name}.ipynb")
