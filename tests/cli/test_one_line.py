"""Whatever is left becomes one line, a status, and a log with the traceback."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam_tune import cli
from medsam_tune.cli import recipes
from medsam_tune.cli.one_line import MAX_LETTERS, OneLine, describe, plain_message
from medsam_tune.errors import DataError, DataFaults, RecipeError
from medsam_tune.training.run_folder import RUN_FOLDER_VARIABLE


@pytest.fixture
def raising(monkeypatch, capsys, tmp_path):
    """Return a function that lets a command raise an error and returns its status and what it says."""
    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)
    monkeypatch.delenv(RUN_FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(error, before=lambda: None):
        def fail(_arguments):
            before()
            raise error

        monkeypatch.setattr(recipes, "main", fail)
        status = cli.main(["recipes", "list"])
        said = capsys.readouterr()
        assert said.out == ""
        return status, said.err

    return run


def test_what_nobody_foresaw_is_one_line_with_status_1_and_a_log_in_the_state_folder(raising, tmp_path):
    status, said = raising(ZeroDivisionError("integer modulo by zero\nsecond line"))
    assert status == 1
    (log,) = (tmp_path / "state/medsam_tune/errors").iterdir()
    assert said.startswith("error: ZeroDivisionError: integer modulo by zero (cli/__init__.py, line ")
    assert said.endswith(f"The traceback is in {log}.\n")
    assert said.count("\n") == 1
    text = log.read_text()
    assert text.startswith("medsam-tune ")
    assert "recipes list" in text.splitlines()[0]
    assert "raise error\nZeroDivisionError: integer modulo by zero" in text


def test_log_lies_beside_the_run_where_there_is_one(raising, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    _, said = raising(KeyError("x"), before=lambda: monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(tmp_path / "run")))
    assert said.endswith(f"The traceback is in {tmp_path / 'run' / 'error.log'}.\n")
    assert "KeyError: 'x'" in (tmp_path / "run" / "error.log").read_text()


def test_log_in_a_run_names_no_folder_that_may_be_a_patients(raising, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "local.yaml").write_text("data: {root: /pacs/DOE JOHN}\n")
    fault = RuntimeError("/scans/DOE^JANE/p1.nii.gz and '../DOE JANE/x' differ, see scans/DOE/p2.png and /pacs/DOE JOHN/p3.png")
    _, said = raising(fault, before=lambda: monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(tmp_path / "run")))
    text = (tmp_path / "run" / "error.log").read_text()
    assert "RuntimeError: p1.nii.gz and " in text
    assert "see p2.png" in text
    assert "DOE" not in text
    assert "scans" not in text
    assert "medsam_tune/cli/__init__.py" in text
    # On the screen it stays: the one who reads it has the file.
    assert "/scans/DOE^JANE/p1.nii.gz" in said


def test_run_of_an_earlier_command_is_not_blamed(raising, tmp_path, monkeypatch):
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(tmp_path))
    _, said = raising(KeyError("x"))
    assert "state/medsam_tune/errors" in said


def test_log_that_cannot_be_written_anywhere_leaves_the_line(raising, monkeypatch):
    monkeypatch.setattr("medsam_tune.cli.one_line.write_text", fail_to_write)
    status, said = raising(KeyError("x"))
    assert status == 1
    assert said.endswith("Set MEDSAM_TUNE_TRACEBACK=1 to see the traceback.\n")


def fail_to_write(path, text):
    raise DataError(f"{path}: could not be written")


def test_traceback_is_let_through_on_request(raising, monkeypatch):
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    with pytest.raises(KeyError):
        raising(KeyError("x"))


def test_error_of_ours_inside_anothers_is_what_is_said(raising):
    error = ValueError("Problem with given class_path")
    error.__cause__ = RecipeError("model.loss: is odd. Change it.")
    assert raising(error) == (2, "error: model.loss: is odd. Change it.\n")


class Failing(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DataError("a.png: truncated. Replace the file."), 2, "error: a.png: truncated. Replace the file.\n"),
        (KeyError("pixels"), 1, "error: KeyError: KeyError: 'pixels' ("),
    ],
)
def test_error_in_a_loaders_worker_is_one_line_too(raising, error, status, said):
    with pytest.raises(type(error)) as caught:
        next(iter(torch.utils.data.DataLoader(Failing(error), num_workers=1)))
    found, line = raising(caught.value)
    assert found == status
    assert line.startswith(said)
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/a"), "/x/a: cannot be used (Permission denied). Check the"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "y"), "y: cannot be used (File name too long). Give it a shorter"),
        (ModuleNotFoundError("No module named 'mine'", name="mine"), "mine: cannot be imported (No module named 'mine'). "),
        (MemoryError("Unable to allocate 5 GiB"), "out of memory (Unable to allocate 5 GiB). Lower data.batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "out of memory (CUDA out of memory. Tried 2 GiB). Lower"),
        (
            RuntimeError("[/__w/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:37269: Connection reset by peer. GLHF!"),
            "another process of this training has ended, or answers no more ([/__w/gloo",
        ),
        (RuntimeError("could not create a primitive"), "out of memory (could not create a primitive). Lower data.batch_size"),
        (RuntimeError("DataLoader timed out after 600 seconds"), "data.num_workers: a worker gave no batch in time ("),
        (RuntimeError(""), "RuntimeError: no message (elsewhere). Please report it"),
    ],
)
def test_frequent_kinds_say_what_helps(error, said):
    assert describe(error).startswith(said)


def test_memory_that_numpy_asks_for_in_vain_is_recognised():
    with pytest.raises(MemoryError) as caught:
        np.empty((10**7, 10**9))
    assert describe(caught.value).startswith("out of memory (Unable to allocate")


def test_line_stays_short_whatever_was_typed(raising):
    _, said = raising(RecipeError(f"data.root: {'x' * 100_000}: no such folder. Set data.root."))
    assert len(said) < MAX_LETTERS + 20
    assert said.endswith("no such folder. Set data.root.\n")


def test_message_of_several_lines_becomes_one():
    assert plain_message(DataError("a:\n  two\n  lines")) == "a: two lines"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["weights", "get"], "medsam-tune weights get: the following arguments are required: NAME. `medsam-tune weights"),
        (["sweep", "a.yaml", "--trials=x"], "medsam-tune sweep: argument --trials: invalid int value: 'x'. `medsam-tune sweep"),
        (["recipes", "paint"], "medsam-tune recipes: argument action: invalid choice: 'paint'"),
        (["cache", "clear", "--al"], "medsam-tune cache"),
    ],
)
def test_faulty_options_are_one_line_and_no_usage(words, said, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_file_that_the_system_refuses_is_named_first(raising, tmp_path):
    def through_a_library():
        Path(tmp_path / "none").read_text()

    status, said = raising(KeyError("unused"), before=through_a_library)
    assert (status, said.partition(". ")[0]) == (1, f"error: {tmp_path / 'none'}: cannot be used (No such file or directory)")


def test_what_is_no_exception_is_never_swallowed():
    class Outcome(BaseException):
        """As a test runner's or a coroutine's."""

    with pytest.raises(Outcome), OneLine(["medsam-tune"]):
        raise Outcome


def test_several_faulty_files_are_a_line_each(raising):
    status, said = raising(DataFaults("2 of 9 cases cannot be used", ["a.png: is\nbroken.", "b.png: is empty."]))
    assert status == 2
    assert said == "error: 2 of 9 cases cannot be used:\n  a.png: is broken.\n  b.png: is empty.\n"
    assert str(DataFaults("60 files", [f"{n}.png" for n in range(60)])).endswith("\n  49.png\n  and 10 more")
