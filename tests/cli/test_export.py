"""``medsam-tune export``: the words it takes, and a run from the command line to graphs of 8 bits."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from medsam_tune.cli import main
from medsam_tune.export import load_export
from medsam_tune.training.run_place import run_place
from tests.export.forms.tuned import LORA, config_of, exported
from tests.training.conftest import _own_process, finished, workplace

NO_PIXELS = {"pixels_that_differ": 0, "pixels": 1}


@dataclass
class _Done:
    folder: Path
    figures: dict = field(default_factory=lambda: {"loads_in": "peft", "questions": 1, "logits_differ_by": 0.0, **NO_PIXELS})


__all__ = ["_own_process", "finished", "workplace"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "RUN", "OUT.pth"], "is `medsam-tune export RUN --to sam OUT` now"),
        (["--to", "sam"], "expected RUN, or --verify FOLDER"),
        (["RUN", "--verify", "X"], "RUN does not go with the rest"),
        (["RUN", "OUT"], "OUT does not go with the rest"),
        (["RUN", "--to", "sam", "lr=1"], "lr=1 does not go with the rest"),
        (["RUN", "--to", "coreml"], "invalid choice: 'coreml'"),
        (["RUN", "--to", "sam", "--int8"], "--int8: belongs to --to onnx, got --to sam"),
        (["RUN", "--to", "sam", "--half"], "--half: belongs to --to adapter, got --to sam"),
        (["RUN", "--half"], "--half does not go with the rest"),
    ],
)
def test_words_that_do_not_fit_are_refused_in_one_line(capsys, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exported(tmp_path / "RUN", config_of(tuner=LORA))
    words = ["RUN/export" if word == "RUN" else word for word in words]
    status = main(["export", *words])
    said = capsys.readouterr()
    assert status == 2
    assert message in said.err
    assert said.err.count("\n") == 1


def test_adapter_is_written_beside_its_export_and_verified(capsys, tmp_path):
    exported(tmp_path, config_of(tuner=LORA))
    assert main(["export", str(tmp_path / "export"), "--to", "adapter"]) == 0
    assert "medsam_tune loads it and answers 12 reference questions" in capsys.readouterr().out
    assert main(["export", "--verify", str(tmp_path / "export-adapter")]) == 0
    assert "0 of 27648 pixels of the masks differ" in capsys.readouterr().out


def test_half_an_adapter_is_half_the_bytes_and_answers_as_the_rounded_network(capsys, tmp_path):
    whole = exported(tmp_path, config_of(tuner=LORA))
    assert main(["export", str(tmp_path / "export"), "--to", "adapter", "--half"]) == 0
    # What is verified is the file as written: no pixel and no logit may differ.
    assert "logits differ by 0 at most, 0 of 27648 pixels" in capsys.readouterr().out
    small = load_export(tmp_path / "export-adapter").segmenter.state_dict()
    exact = whole.segmenter.state_dict()
    for name, tensor in load_export(tmp_path / "export").segmenter.state_dict().items():
        trained = not torch.equal(small[name], tensor)
        assert torch.equal(exact[name], tensor)
        assert torch.equal(small[name], tensor.half().float() if trained else tensor), name
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "export").glob("*.safetensors")}
    for name, size in sizes.items():
        assert (tmp_path / "export-adapter" / name).stat().st_size < 0.6 * size + 4000


def test_values_that_half_precision_does_not_hold_are_named(capsys, tmp_path):
    exported(tmp_path, config_of(tuner=LORA), moved=1e6)
    assert main(["export", str(tmp_path / "export"), "--to", "adapter", "--half"]) != 0
    assert "above 65504, which float16 does not hold. Leave --half out." in capsys.readouterr().err
    assert not (tmp_path / "export-adapter").exists()


@pytest.mark.parametrize("words", [["OUT", "--to", "adapter"], ["--to", "adapter", "OUT"], ["--to", "adapter", "-o", "OUT"]])
def test_folder_to_write_may_stand_anywhere(tmp_path, words, monkeypatch):
    asked = []
    monkeypatch.setattr("medsam_tune.runs.forms.export_form", lambda *given, **_: asked.append(given) or _Done(tmp_path))
    monkeypatch.setattr("medsam_tune.cli.export._say_measured", lambda record: None)
    assert main(["export", "RUN", *words]) == 0
    assert asked == [("RUN", "adapter", "OUT")]


@pytest.mark.slow  # torch traces the network twice
def test_run_becomes_a_graph_whose_eight_bits_are_measured_on_its_test_cases(finished, workplace, capsys):
    run = workplace / "runs" / run_place("images", "tiny") / finished[1].path.name
    shutil.copytree(finished[1].path, run)
    assert main(["export", str(run), "--to", "onnx", "--int8"]) == 0
    said = capsys.readouterr().out
    record = json.loads((run / "export-onnx" / "form.json").read_text())
    figures = record["figures"]
    tested = json.loads((run / "summary.json").read_text())["test"]
    assert figures["dice_float32"] == pytest.approx(tested["dice"]["mean"], abs=1e-4)
    assert figures["dice_cost_of_int8"] == figures["dice_float32"] - figures["dice_int8"]
    assert "dice cost of int8" in said
    assert "64 x 64, no prompt" in said
    assert (run / "export-onnx" / "model.int8.onnx").stat().st_size < (run / "export-onnx" / "model.onnx").stat().st_size
