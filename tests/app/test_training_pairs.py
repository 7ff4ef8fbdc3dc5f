import json

import numpy as np
import pytest
from PIL import Image

from medsam_tune.app.models import Models
from medsam_tune.app.opened_case import open_case
from medsam_tune.app.training_pairs import save_pairs
from medsam_tune.cli import main
from medsam_tune.errors import DataError
from medsam_tune.runs.asked_model import open_model
from tests.app.conftest import write_nifti
from tests.training.tiny_runs import forget_run, only_run

BOX = (3.0, 4.0, 24.0, 15.0)


def test_slices_with_a_mask_are_saved_as_the_model_saw_them(models, volume, tmp_path):
    case, folder = open_case([volume], models), tmp_path / "corrected"
    with pytest.raises(DataError, match="nothing to save"):
        save_pairs(case, folder)
    assert not folder.exists()
    case.box(2, BOX)
    case.paint(4, [(9, 9)], radius_px=3, adds=True)
    images = save_pairs(case, folder)
    assert [path.name for path in images] == ["axial_002.png", "axial_004.png"]
    (own,) = {path.parent.name for path in images}
    assert own.startswith("p01-")
    for position, path in zip((2, 4), images, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), case.slices.levels(position)[..., 0])
        mask = np.asarray(Image.open(folder / "masks" / own / path.name))
        assert np.array_equal(mask, case.state(position).mask * np.uint8(255))
    case.clear(4)
    case.paint(2, [(9, 9)], radius_px=3, adds=False)
    save_pairs(case, folder)
    assert np.array_equal(np.asarray(Image.open(folder / "masks" / own / "axial_002.png")) > 0, case.state(2).mask)


def test_two_files_of_one_name_do_not_replace_each_other(models, tmp_path):
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        case = open_case([write_nifti(tmp_path / str(seed) / "p01.nii.gz", seed)], models)
        case.box(2, BOX)
        save_pairs(case, tmp_path / "corrected")
    assert len(list((tmp_path / "corrected/images").iterdir())) == 2


def test_a_colour_image_keeps_its_colours(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "skin.png")
    case = open_case([tmp_path / "skin.png"], Models.of(open_model("random_tiny")))
    case.box(0, BOX)
    (path,) = save_pairs(case, tmp_path / "corrected")
    assert path.name.startswith("skin-")
    assert np.array_equal(np.asarray(Image.open(path)), pixels)


@pytest.mark.slow  # a whole training, of seconds
def test_a_recipe_trains_on_what_was_saved(models, tmp_path, monkeypatch):
    for seed in range(5):
        case = open_case([write_nifti(tmp_path / f"p{seed:02d}.nii.gz", seed)], models)
        for position in (1, 3):
            case.box(position, BOX)
            case.paint(position, [(9, 9), (20, 9)], radius_px=3, adds=True)
        save_pairs(case, tmp_path / "corrected")
    monkeypatch.chdir(tmp_path)
    words = ["data=corrected", "weights=random_tiny", "epochs=1", "device=cpu", "--trainer.enable_progress_bar=false"]
    try:
        assert main(["run", "decoder", *words]) == 0
    finally:
        forget_run()
    run = only_run()
    splits = json.loads(run.splits.read_text())
    # Slices of one volume stay together.
    patients = {part: {case.split("/")[0] for case in splits[part]} for part in ("train", "val", "test")}
    assert not patients["train"] & patients["test"]
    assert not patients["train"] & patients["val"]
    assert sum(map(len, patients.values())) == 5
