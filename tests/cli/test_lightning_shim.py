import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest

import medsam_tune.cli
from medsam_tune.cli import lightning_shim

METADATA = "Metadata-Version: 2.1\nName: lightning-sdk\nVersion: 9999.0\n"


@pytest.fixture
def type_lightning(monkeypatch):
    """Run ``lightning WORDS`` and return its exit status."""

    def type_words(*words):
        monkeypatch.setattr(sys, "argv", ["lightning", *words])
        return lightning_shim.main()

    return type_words


@pytest.fixture
def no_sdk(monkeypatch):
    def without_sdk(name):
        if name == "lightning-sdk":
            raise PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr(lightning_shim, "distribution", without_sdk)


@pytest.fixture
def sdk(tmp_path, monkeypatch):
    """Put a distribution called lightning-sdk on the path; its command prints its words and exits with 5."""
    info = tmp_path / "lightning_sdk-9999.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text("[console_scripts]\nlightning-sdk = fake_sdk:other\nlightning = fake_sdk:main\n")
    (tmp_path / "fake_sdk.py").write_text("import sys\ndef main():\n    print('sdk', *sys.argv[1:])\n    return 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("fake_sdk", None)


@pytest.fixture
def ours(monkeypatch):
    made = []
    monkeypatch.setattr(medsam_tune.cli, "main", lambda: made.append(sys.argv[1:]) or 0)
    return made


@pytest.mark.parametrize("recipe", ["recipes/autosam.yaml", "mine.yml", "MINE.YAML"])
@pytest.mark.parametrize("environment", ["sdk", "no_sdk"])
def test_recipe_is_ours_whatever_is_installed(environment, recipe, request, type_lightning, ours):
    request.getfixturevalue(environment)
    assert type_lightning("run", recipe, "--trainer.max_epochs=1") == 0
    assert ours == [["run", recipe, "--trainer.max_epochs=1"]]


@pytest.mark.parametrize("words", [("login",), ("run", "job", "--help"), ("run", "script.py"), ("run",), ()], ids=" ".join)
def test_everything_else_goes_to_the_sdk_where_there_is_one(words, sdk, type_lightning, ours, capsys):
    assert type_lightning(*words) == 5
    assert capsys.readouterr().out.split() == ["sdk", *words]
    assert ours == []


def test_script_goes_to_fabric_without_the_sdk(no_sdk, type_lightning, monkeypatch, tmp_path, ours):
    asked = []

    class Fabric:
        def load(self):
            return lambda: asked.append(sys.argv)

    monkeypatch.setattr(
        lightning_shim, "console_script", lambda name, script: Fabric() if (name, script) == ("lightning", "fabric") else None
    )
    assert type_lightning("run", "script.py", "--devices=2") == 0
    assert asked == [["lightning", "run", "script.py", "--devices=2"]]


def test_installed_lightning_has_the_fabric_command_we_hand_over_to():
    assert lightning_shim.console_script("lightning", "fabric") is not None


@pytest.mark.parametrize("words", [("login",), ("run",), ("run", "autosam"), ()], ids=" ".join)
def test_one_line_says_what_to_type_without_the_sdk(words, no_sdk, type_lightning, capsys):
    assert type_lightning(*words) == 2
    shown = capsys.readouterr().err
    assert "lightning run RECIPE.yaml" in shown
    assert shown.count("\n") == 1
