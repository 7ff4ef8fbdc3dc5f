import json
import os
import sys
import zipfile
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from medsam_tune.cli import lightning_owner as room
from medsam_tune.cli.lightning_owner import describe_owner, lightning_owner, repair_line, take_back

SCRIPT = "#!/usr/bin/python3\nimport sys\nfrom {module} import main\nsys.exit(main())\n"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Make ``lightning`` on PATH a script that imports from ``module``."""

    def make(module):
        path = tmp_path / "lightning"
        path.write_text(SCRIPT.format(module=module))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        return path

    return make


@pytest.mark.parametrize(
    ("module", "owner"),
    [("medsam_tune.cli.lightning_shim", "medsam-tune"), ("lightning_sdk.cli.entrypoint", "lightning-sdk"), ("mine", None)],
)
def test_owner_is_read_from_the_script(script, module, owner):
    assert lightning_owner(script(module)) == owner


def test_owner_is_read_from_a_windows_launcher(tmp_path):
    launcher = tmp_path / "lightning.exe"
    with zipfile.ZipFile(launcher, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", SCRIPT.format(module="medsam_tune.cli.lightning_shim"))
    launcher.write_bytes(b"MZ launcher" + launcher.read_bytes())
    assert lightning_owner(launcher) == "medsam-tune"


def test_our_own_command_needs_no_repair(script):
    path = script("medsam_tune.cli.lightning_shim")
    assert describe_owner() == [f"{path}: ours; `lightning run RECIPE.yaml` works"]


def test_command_of_the_sdk_comes_with_the_line_that_takes_it_back(script):
    path = script("lightning_sdk.cli.entrypoint")
    first, second = describe_owner()
    assert first.startswith(f"{path}: belongs to lightning-sdk")
    assert second == f"to take it back: {repair_line()}"


def test_command_of_another_environment_is_said_to_be_one(script, monkeypatch, tmp_path):
    script("medsam_tune.cli.lightning_shim")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    assert describe_owner()[-1].startswith("it belongs to another environment")


def test_missing_command_comes_with_the_repair_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert describe_owner()[0] == f"not installed; to have it: {repair_line()}"


def test_command_beside_a_python_that_is_not_on_path_asks_to_activate(script, tmp_path, monkeypatch):
    path = script("medsam_tune.cli.lightning_shim")
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert describe_owner()[0] == f"{path} is not on PATH: activate this environment"


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, "pip install --force-reinstall --no-deps medsam-tune"),
        ({"url": "https://example.org/a.whl"}, "pip install --force-reinstall --no-deps medsam-tune"),
        (
            {"url": "file:///my%20code/tune", "dir_info": {"editable": True}},
            "pip install --force-reinstall --no-deps -e '/my code/tune'",
        ),
    ],
)
def test_repair_fits_how_we_were_installed(origin, line, monkeypatch):
    record = None if origin is None else json.dumps(origin)
    monkeypatch.setattr(room, "distribution", lambda _name: SimpleNamespace(read_text=lambda _file: record))
    assert repair_line() == line


def test_repair_of_a_checkout_that_was_never_installed_names_the_package(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(room, "distribution", missing)
    assert repair_line().endswith("--no-deps medsam-tune")


def test_command_of_another_package_is_taken_back_and_runs_ours(tmp_path):
    script = tmp_path / "lightning"
    script.write_text("#!/usr/bin/python\nfrom lightning_sdk.cli.entrypoint import main\n")
    assert take_back(tmp_path) == [f"{script}: written, in place of lightning-sdk's"]
    assert lightning_owner(script) == "medsam-tune"
    assert os.access(script, os.X_OK)
    assert take_back(tmp_path) == []


def test_command_that_is_missing_is_written(tmp_path):
    assert take_back(tmp_path) == [f"{tmp_path / 'lightning'}: written, where none was"]
