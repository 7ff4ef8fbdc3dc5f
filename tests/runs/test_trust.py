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
    "file beside it": {"model": {"tuner": "planted.yaml"}},
    "file for a section": {"trainer": "planted.yaml"},
    "text of YAML": {"model": {"tuner": "{class_path: stranger.Tuner}"}},
    "dotted key": {"model.tuner": "stranger.Tuner"},
    "argument of Lightning's": {
        "trainer": {
            "callbacks": {
                "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                "init_args": {"on_fit_start": "os.system"},
            }
        }
    },
    "process": {"data": {"source": {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}}}},
}


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Return a run folder beside a module that says when it is imported."""
    (tmp_path / "stranger.py").write_text("open('imported', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "planted.yaml").write_text("class_path: stranger.Tuner")
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


def test_a_run_that_names_foreign_code_opens_with_trust_alone(stranger):
    (stranger / "config.yaml").write_text(yaml.safe_dump(PLANTS["class"]))
    assert Run.open(stranger, trusted=True).folder == stranger
    with pytest.raises(RecipeError, match=r"model\.tuner\.class_path names stranger\.Tuner"):
        Run.open(stranger)
