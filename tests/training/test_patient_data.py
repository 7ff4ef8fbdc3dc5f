"""No word that a file or a folder says about a patient reaches what a run leaves; config.yaml alone names the folder."""

import gzip
import zipfile

import nibabel
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medsam_tune.cli import main

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
    for case in range(6):
        mask = np.zeros((16, 20), np.uint8)
        mask[4:9, 5:12] = 255
        for folder, values in (("images", rng.integers(0, 99, mask.shape).astype(np.uint8)), ("masks", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / folder / f"c{case}.png", pnginfo=words)
    return "images", ["--data.source=ImageFolder"]


def contents(path):
    """Return the bytes of a file, unpacked where it is packed."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return path.read_bytes() + b"".join(archive.read(name) for name in archive.namelist())
    return path.read_bytes()


@pytest.mark.parametrize("write", [write_nifti, write_npz, write_png])
def test_planted_name_is_in_no_output(write, workplace, tmp_path, capfd):
    root = tmp_path / NAME / "data"
    kind, words = write(root)
    recipe = workplace / "tiny.yaml"
    source = "{class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}"
    recipe.write_text(recipe.read_text().replace(source, "NiftiVolumes"))
    words = [*words, f"--data.root={root}"]
    assert main(["run", "tiny.yaml", *words, "--trainer.max_epochs=1", "--run.baselines=false"]) == 0
    checkpoint = only_run().checkpoints / "best.ckpt"
    assert main(["predict", "--config", "tiny.yaml", f"--ckpt_path={checkpoint}", "--run.folder=predicted", *words]) == 0
    assert main(["prepare", str(root), "prepared", f"--format={kind}"]) == 0
    told = capfd.readouterr()
    folders = [workplace / name for name in ("runs", "predicted", "prepared")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len([path for path in files if path.parent.name == "predictions"]) == 6
    assert NAME not in told.out + told.err
    assert [path.name for path in files if NAME.encode() in contents(path) or NAME in path.name] == ["config.yaml"] * 2
