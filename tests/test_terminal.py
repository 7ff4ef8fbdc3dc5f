import io
import sys

from medsam_tune.terminal import in_notebook, is_watched


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_are_for_terminals_and_not_for_notebooks(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert (in_notebook(), is_watched(Terminal()), is_watched(io.StringIO())) == (False, True, False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert (in_notebook(), is_watched(Terminal())) == (True, False)
