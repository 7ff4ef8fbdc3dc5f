"""A file format of a user's own is one class in one file: it trains, resumes, exports and predicts; no edit of the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import medsam_tune
from medsam_tune.cli import main
from medsam_tune.data.formats import Format, VolumeHeader
from medsam_tune.errors import DataError
from medsam_tune.files import write_json
from medsam_tune.training.run_place import RUNS

RECIPE = """\
# Volumes that are stored as JSON text.
seed_everything: 0
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny}}
  prompt_encoder: {class_path: medsam_tune.prompt_encoders.EmbeddingPromptGenerator, init_args: {width: 8, dilations: [1]}}
data:
  root: scans
  source:
    class_path: medsam_tune.data.VolumeSource
    init_args: {format: tests.conformance.test_toy_format.TextVolumes, axis: coronal, slices: {count: 2}}
  patient: header
  batch_size: 4
  split: {val_fraction: 0.2, test_fraction: 0.2}
run: {baselines: false}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""


class TextVolumes(Format):
    """Read volumes from JSON: ``voxels``, ``size_mm`` of a voxel and ``patient``; the axes run left, back and down."""

    endings = (".voxels",)

    def read_header(self, path: Path) -> VolumeHeader:
        content = self._content(path)
        x, y, z = content["size_mm"]
        affine = np.diag([-x, -y, -z, 1.0])
        return VolumeHeader(path, np.shape(content["voxels"]), affine, patient_id=content.get("patient"))

    def read_image(self, path: Path) -> np.ndarray:
        return np.array(self._content(path)["voxels"], np.int16)

    def read_labels(self, path: Path) -> np.ndarray:
        return np.array(self._content(path)["voxels"], np.int32)

    def write_labels(self, stem: Path, labels: np.ndarray, header: VolumeHeader, names: dict | None = None) -> Path:
        path = stem.with_name(f"{stem.name}.voxels")
        write_json(path, {"voxels": labels.tolist(), "size_mm": header.voxel_mm})
        return path

    def _content(self, path: Path) -> dict:
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: is no text volume ({error}). Replace or remove the file.") from error


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.zeros((12, 3, 14), int)
    labels[3:8, :, 4:11] = 1
    for scan in range(10):
        for folder, values in (("images", rng.integers(0, 60, labels.shape) + 150 * labels), ("labels", labels)):
            (tmp_path / "scans" / folder).mkdir(parents=True, exist_ok=True)
            content = {"voxels": values.tolist(), "size_mm": [0.5, 3.0, 0.7], "patient": f"DOE^{scan // 2}"}
            (tmp_path / "scans" / folder / f"s{scan}.voxels").write_text(json.dumps(content))
    (tmp_path / "toy.yaml").write_text(RECIPE)
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_format_in_a_users_file_trains_resumes_exports_and_predicts(workplace, capsys):
    assert main(["run", "toy.yaml"]) == 0
    (run,) = (workplace / "runs").glob(RUNS)
    splits = json.loads((run / "splits.json").read_text())
    parts = [{splits["patients"][case] for case in splits[part]} for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [3, 1, 1]
    assert len(set.union(*parts)) == 5
    assert "DOE" not in (run / "splits.json").read_text()

    assert main(["run", "toy.yaml", "--ckpt_path=last", "--trainer.max_epochs=2"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 6
    predictor = medsam_tune.load_export(run / "export")
    assert predictor.segment(np.zeros((14, 12), np.uint8)).shape == (14, 12)

    assert main(["predict", "--config", "toy.yaml", f"--ckpt_path={run / 'checkpoints/best.ckpt'}", "--run.folder=new"]) == 0
    files = sorted((workplace / "new").rglob("*.voxels"))
    assert [path.name for path in files] == [f"s{scan}.voxels" for scan in range(10)]
    # Stored order and voxel size are the source's; every slice was predicted, though two are scored.
    found = json.loads(files[0].read_text())
    assert found["size_mm"] == [0.5, 3.0, 0.7]
    assert np.shape(found["voxels"]) == (12, 3, 14)

    # The run's recipe says who reads such files, and that code is a user's own.
    assert main(["predict", str(run), "scans/images", "-o", "out"]) == 2
    assert "Say --trust" in capsys.readouterr().err
    assert main(["predict", str(run), "scans/images", "-o", "out", "--trust"]) == 0
    assert json.loads((workplace / "out" / "s0.voxels").read_text()) == found


def test_fault_of_such_a_file_is_one_line_before_anything_is_made(workplace, capsys):
    (workplace / "scans/labels/s9.voxels").write_text("[1, 2")
    assert main(["run", "toy.yaml"]) == 2
    said = capsys.readouterr().err
    assert "s9.voxels: is no text volume" in said
    assert not (workplace / "runs").exists()
