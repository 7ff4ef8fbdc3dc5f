import importlib
import subprocess
import sys

import pytest

import medsam_tune
from medsam_tune import cli
from medsam_tune.cli import recipes
from medsam_tune.errors import DataError


def test_python_dash_m_answers_like_the_command():
    done = subprocess.run([sys.executable, "-m", "medsam_tune", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"medsam-tune {medsam_tune.__version__}\n"


def test_help_names_every_command(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in (*cli.OWN_COMMANDS, *cli.LIGHTNING_COMMANDS))


def test_mistyped_command_is_one_line_with_the_near_one(capsys):
    assert cli.main(["recipe", "list"]) == 2
    assert capsys.readouterr().err == "error: recipe: no such command. Did you mean `medsam-tune recipes`?\n"


def fail(_arguments):
    raise DataError("a.png: truncated. Replace the file.")


def test_error_a_user_can_mend_is_one_line_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(recipes, "main", fail)
    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)
    assert cli.main(["recipes"]) == 2
    assert capsys.readouterr().err == "error: a.png: truncated. Replace the file.\n"


def test_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setattr(recipes, "main", fail)
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    with pytest.raises(DataError):
        cli.main(["recipes"])


def test_interrupt_ends_with_130(monkeypatch):
    def interrupt(_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "main", interrupt)
    assert cli.main(["recipes"]) == 130


@pytest.mark.parametrize(("code", "status", "text"), [(None, 0, ""), (3, 3, ""), ("no such key", 1, "no such key\n")])
def test_exit_of_a_parser_becomes_the_status(monkeypatch, capsys, code, status, text):
    def leave(_arguments):
        raise SystemExit(code)

    monkeypatch.setattr(recipes, "main", leave)
    assert cli.main(["recipes"]) == status
    assert capsys.readouterr().err == text


def test_class_in_a_file_of_the_current_folder_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "my_own_prompts_7.py").write_text("ANSWER = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert cli.main(["recipes", "list"]) == 0
    assert importlib.import_module("my_own_prompts_7").ANSWER == 42
    assert sys.path[-1] == str(tmp_path)


PRINT_INTO_A_CLOSED_PIPE = """
import os
from medsam_tune.cli import main
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
raise SystemExit(main(["recipes", "list"]))
"""


def test_reader_that_stops_early_causes_no_traceback():
    words = [sys.executable, "-u", "-c", PRINT_INTO_A_CLOSED_PIPE]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
