"""Folders of accounts, those included that have no name and no home."""

import getpass
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.folders import cache_folder, complete_account, expand, state_folder


@pytest.fixture
def no_account(monkeypatch):
    """Run under a number that no account has, as containers do."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_STATE_HOME"):
        # Set first, so that what is set later is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


def test_home_stands_for_the_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert expand("~/data", "data.root") == Path("/home/me/data")
    assert cache_folder() == Path("/home/me/.cache/medsam_tune")
    assert state_folder() == Path("/home/me/.local/state/medsam_tune")


def test_state_follows_the_standard_variable(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_folder() == Path("/state/medsam_tune")


def test_account_that_does_not_exist_is_named_with_the_key():
    with pytest.raises(RecipeError, match=r"^data\.root: ~nobody77/x: no home folder is known for it\. Write the"):
        expand("~nobody77/x", "data.root")


def test_process_without_an_account_gets_folders_and_a_name(no_account):
    home = Path(tempfile.gettempdir()) / f"medsam_tune-{os.getuid()}"
    assert cache_folder() == home / ".cache" / "medsam_tune"
    complete_account()
    assert os.path.expanduser("~") == str(home)
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert cache_folder() == home / ".cache" / "medsam_tune"


def test_account_that_exists_is_left_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LOGNAME", "me")
    before = dict(os.environ)
    complete_account()
    assert dict(os.environ) == before
