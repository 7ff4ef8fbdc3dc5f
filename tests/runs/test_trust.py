"""A stranger's run folder names code: nothing of it is imported without trust."""

import sys

import pytest
import yaml

from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.runs.run import Run

PLANTS = {
    "class": {"model": {"tuner": {"class_path": "stranger.Tuner"}}},
    "bare name": {"model": {"tuner": "stranger.Tuner"}},
    "function": {"model": {"optimizer": "stranger.optimise"}},
    "in a list": {"trainer": {"callbacks": [{"class_path": "stranger.Callback"}]}},
    "process": {"data": {"source": {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}}}},
}


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Return a run folder beside a module that says when it is imported."""
    (tmp_path / "stranger.py").write_text("open('imported', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "run").mkdir()
    yield tmp_path / "run"
    sys.modules.pop("stranger", None)


@pytest.mark.parametrize("planted", PLANTS.values(), ids=PLANTS)
@pytest.mark.parametrize("command", ["test", "validate", "resume", "export"])
def test_no_command_imports_what_a_strangers_run_names(stranger, planted, command, capsys):
    (stranger / "config.yaml").write_text(yaml.safe_dump(planted))
    assert main([command, str(stranger)]) == 2
    assert "Say --trust" in capsys.readouterr().err
    assert not (stranger.parent / "imported").exists()
    assert "stranger" not in sys.modules


def test_names_of_files_and_of_our_own_classes_are_no_foreign_code(stranger):
    recipe = {"model": {"tuner": {"class_path": "medsam_tune.tuners.NoTuner"}}, "data": {"root": "zz_a.nii.gz", "mask": "zz.b"}}
    (stranger / "config.yaml").write_text(yaml.safe_dump(recipe))
    assert Run.open(stranger).folder == stranger
    (stranger / "config.yaml").write_text(yaml.safe_dump(PLANTS["class"]))
    assert Run.open(stranger, trusted=True).folder == stranger
    with pytest.raises(RecipeError, match=r"model\.tuner\.class_path names stranger\.Tuner"):
        Run.open(stranger)
