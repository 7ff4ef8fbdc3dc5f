"""No word that a file or a folder says about a patient reaches what a run leaves; local.yaml alone names the folder."""

import base64
import gzip
import io
import re
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medsam_tune.cli import main
from medsam_tune.yaml_files import read_yaml

from .tiny_runs import only_run

NAME = "DOE^JANE"


def write_nifti(root):
    rng = np.random.default_rng(0)
    labels = np.zeros((16, 20, 2), np.uint8)
    labels[4:9, 5:12] = 1
    for case in range(6):
        for folder, values in (("images", rng.integers(0, 99, labels.shape).astype(np.int16)), ("labels", labels)):
            image = nibabel.Nifti1Image(values, np.diag([0.5, 0.7, 3.0, 1.0]))
            for field in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
                image.header[field] = NAME
            image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", NAME.encode()))
            (root / folder).mkdir(parents=True, exist_ok=True)
            nibabel.save(image, root / folder / f"c{case}.nii.gz")
    return "nifti", []


def write_npz(root):
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for case in range(6):
        labels = np.zeros((2, 16, 20), np.uint8)
        labels[:, 4:9, 5:12] = 1
        images = rng.integers(0, 99, labels.shape).astype(np.uint8)
        np.savez(root / f"c{case}.npz", imgs=images, gts=labels, spacing=(0.5, 0.7, 3.0), patient=np.array(NAME))
    return "npz", ["--data.source=MedsamNpz"]


def write_png(root):
    rng = np.random.default_rng(0)
    words = PngInfo()
    words.add_text("Patient", NAME)
    words.add_text("Comment", NAME, zip=True)
    words.add_itxt("Description", NAME, zip=True)
    for case in range(6):
        mask = np.zeros((16, 20), np.uint8)
        mask[4:9, 5:12] = 255
        for folder, values in (("images", rng.integers(0, 99, mask.shape).astype(np.uint8)), ("masks", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / folder / f"c{case}.png", pnginfo=words)
    return "images", ["--data.source=ImageFolder"]


def contents(path):
    """Return the bytes of a file, unpacked where it is packed: archives, the texts of a PNG, the pictures of a page."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(content)
    if path.suffix == ".png":
        return content + texts_of(content)
    if path.suffix == ".html":
        pictures = (base64.b64decode(found) for found in re.findall(rb"data:image/png;base64,([\w+/=]+)", content))
        return content + b"".join(map(texts_of, pictures))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return content + b"".join(archive.read(name) for name in archive.namelist())
    return content


def texts_of(png):
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return " ".join(map(str, image.text.values())).encode()


@pytest.fixture
def planted(workplace, tmp_path):
    """Return what writes data below a folder that is called after a patient, and a recipe of them; a table lies there too."""

    def plant(write):
        root = tmp_path / NAME / "data"
        kind, words = write(root)
        table = tmp_path / NAME / "patients.csv"
        table.write_text("case,patient\n" + "".join(f"c{case},p{case}\n" for case in range(6)))
        recipe = workplace / "tiny.yaml"
        source = "{class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}"
        recipe.write_text(recipe.read_text().replace(source, "NiftiVolumes"))
        return root, kind, [*words, f"--data.root={root}", f"--data.patient={table}"]

    return plant


def naming(*folders):
    """Return the names of the files below folders that hold the patient's name."""
    files = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return sorted(path.name for path in files if NAME.encode() in contents(path) or NAME in path.name)


@pytest.mark.parametrize("write", [write_nifti, write_npz, write_png])
def test_planted_name_is_in_no_output(write, planted, capfd):
    root, kind, words = planted(write)
    assert main(["run", "tiny.yaml", *words, "--trainer.max_epochs=1", "--run.baselines=false"]) == 0
    checkpoint = only_run().checkpoints / "best.ckpt"
    assert main(["predict", "--config", "tiny.yaml", f"--ckpt_path={checkpoint}", "--run.folder=predicted", *words]) == 0
    assert main(["predict", str(only_run().path), str(root), "-o", "masks"]) == 0
    assert main(["prepare", str(root), "prepared", f"--format={kind}"]) == 0
    told = capfd.readouterr()
    assert len([path for path in Path("predicted").rglob("predictions/*") if path.is_file()]) == 6
    assert len(list(Path("masks").glob("c[0-9].*"))) == 6
    assert NAME not in told.out + told.err
    assert naming("runs", "predicted", "masks", "prepared") == ["local.yaml"] * 2


def test_local_yaml_alone_lets_a_run_be_tested_and_resumed_where_it_was_trained(planted, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_SILENT", "true")
    root, _, words = planted(write_png)
    wandb_words = ["--trainer.logger=WandbLogger", "--trainer.logger.project=p", "--trainer.logger.offline=true"]
    monkeypatch.setattr(sys, "argv", ["medsam-tune", "run", "tiny.yaml", *words])
    assert main(["run", "tiny.yaml", *words, *wandb_words, "--trainer.max_epochs=1", "--run.baselines=false"]) == 0
    run = only_run()
    assert main(["resume", str(run.path), "epochs=2", f"data={root}"]) == 0
    assert main(["test", str(run.path)]) == 0
    sys.modules["wandb"].finish()
    assert main(["test", "--config", str(run.config), f"--ckpt_path={run.checkpoints / 'best.ckpt'}"]) == 0
    sys.modules["wandb"].finish()
    assert naming("runs", "wandb") == ["local.yaml"] * 3
    assert run.local.stat().st_mode & 0o777 == 0o600
    assert read_yaml(run.config)["data"] | {"root": "DIR", "patient": "FILE"} == read_yaml(run.config)["data"]
    run.local.unlink()
    capfd.readouterr()
    assert main(["test", str(run.path)]) == 2
    assert "data.root: DIR stands for the data's folder, which config.yaml does not name" in capfd.readouterr().err
    sys.modules["wandb"].finish()
    assert main(["test", str(run.path), *words]) == 0
    sys.modules["wandb"].finish()
