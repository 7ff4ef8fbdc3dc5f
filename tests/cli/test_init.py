"""``medsam-tune init``: the folder is described, and the recipe runs as it stands."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

from medsam_tune import cli
from tests.training.tiny_runs import forget_run


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    forget_run()


def disc(number, value=255, size=(40, 48)):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return ((rows - 20) ** 2 + (columns - 16 - number) ** 2 < 80).astype(np.uint8) * value


def write_image(root, image, mask, number, value=255):
    """Write a bright disc on noise and its mask."""
    inside = disc(number, 1)
    noise = np.random.default_rng(number).integers(0, 60, inside.shape)
    for path, values in ((root / image, noise + 150 * inside), (root / mask, value * inside)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(".nii.gz"):
            volume = np.stack([values.T] * 3, axis=2).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 3, 1])), path)
        else:
            Image.fromarray(values.astype(np.uint8)).save(path)


def init(*words):
    return cli.main(["init", *map(str, words), "--no-timing"])


def test_folder_is_described_and_a_recipe_with_reasons_is_written(tmp_path, capsys):
    for number in range(8):
        write_image(tmp_path / "Eigene Daten", f"p{number}/img/a.png", f"p{number}/seg/a.png", number)
    assert init(tmp_path / "Eigene Daten", "--prompt", "none", "mine.yaml") == 0
    shown = capsys.readouterr().out
    assert "8 images with masks (masks told by their names): images at {folder}/img/{name}" in shown
    assert "Method: autosam_images, because: no prompt, one class" in shown
    text = (tmp_path / "here/mine.yaml").read_text()
    recipe = yaml.safe_load(text)
    assert recipe["data"]["root"] == str(tmp_path / "Eigene Daten")
    patterns = {"image_pattern": "^(.+)/img/(.+)$", "mask_pattern": "^(.+)/seg/(.+)$"}
    assert recipe["data"]["source"]["init_args"] == {"images": ".", "masks": ".", **patterns}
    assert {"# Method:", "# Length:"} <= {line[:9] for line in text.splitlines()}
    # Two of eight choose and two are tested, so one batch of four is an epoch; 0.6 of eight would be two batches.
    assert "400 steps of 4 images (400 epochs of 4), of which 40 warm up" in text
    assert (recipe["trainer"]["max_epochs"], recipe["model"]["warmup_steps"]) == (400, 40)
    found = json.loads((tmp_path / "here/mine.fingerprint.json").read_text())
    assert (found["pairs"], found["sizes"], found["faults"]) == (8, {"40 x 48": 8}, [])
    with Image.open(tmp_path / "here/mine.png") as sheet:
        # Three training patients beside each other.
        assert sheet.size[0] > 3 * 240


def test_few_colour_images_are_augmented_and_grey_ones_are_not(tmp_path):
    for number in range(6):
        write_image(tmp_path / "grey", f"images/{number}.png", f"masks/{number}.png", number)
        write_image(tmp_path / "colour", f"images/{number}.png", f"masks/{number}.png", number)
        image = tmp_path / f"colour/images/{number}.png"
        grey = np.asarray(Image.open(image))
        Image.fromarray(np.stack([grey, grey // 2, 255 - grey], axis=2)).save(image)
    recipes = {}
    for name in ("grey", "colour"):
        assert init(tmp_path / name, f"{name}.yaml") == 0
        text = (tmp_path / f"here/{name}.yaml").read_text()
        recipes[name] = yaml.safe_load(text)["data"]
        # What training never flips is not flipped in the test.
        assert yaml.safe_load(text)["model"].get("views_at_test") == {"grey": None, "colour": "flips"}[name]
        assert yaml.safe_load(text)["model"].get("smallest_part") == {"grey": None, "colour": 0.01}[name]
        assert ("mirrored" in text) == ("Islands" in text) == (name == "colour")
    assert "augmentation" not in recipes["grey"]
    assert recipes["colour"]["views"] == 8
    assert recipes["colour"]["augmentation"]["degrees"] == 180


def test_faulty_files_are_all_listed_and_left_out_by_name(tmp_path, capsys):
    for number in range(7):
        write_image(tmp_path / "data", f"images/{number}.png", f"masks/{number}.png", number)
    (tmp_path / "data/images/1.png").write_bytes(b"no image")
    Image.fromarray(disc(0, size=(30, 30))).save(tmp_path / "data/masks/2.png")
    (tmp_path / "data/masks/3.png").unlink()
    assert init(tmp_path / "data", "mine.yaml") == 0
    told = capsys.readouterr()
    assert "left out: 2 files that cannot be used" in told.err
    assert "images/1.png: cannot be read" in told.err
    assert "masks/2.png: mask shape (30, 30) differs" in told.err
    assert "left out: 1 image without a mask: images/3" in told.out
    recipe = yaml.safe_load((tmp_path / "here/mine.yaml").read_text())
    assert recipe["data"]["source"]["init_args"]["exclude"] == ["images/1", "images/2", "images/3", "masks/1", "masks/2"]


def test_recipe_that_exists_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "here/mine.yaml").write_text("mine")
    assert init(tmp_path, "mine.yaml") == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "here/mine.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere"], "no such folder"),
        ([".", "mine.txt"], "expected a name that ends in .yaml"),
        ([".", "there/mine.yaml"], "no such folder"),
        (["."], "no image found; it is empty"),
        ([".", "--images={name}"], "--images, --masks: one of them is missing"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, words, text):
    assert init(*words) == 2
    assert text in capsys.readouterr().err


def test_too_few_patients_are_said_and_no_recipe_is_written(tmp_path, capsys):
    write_image(tmp_path / "data", "images/1.png", "masks/1.png", 1)
    assert init(tmp_path / "data", "mine.yaml") == 2
    assert "1 patient (1) is too few" in capsys.readouterr().err
    assert not (tmp_path / "here/mine.yaml").exists()


def test_folders_of_parts_are_the_split(tmp_path, capsys):
    for number in range(9):
        part = ("train", "train", "test")[number % 3]
        write_image(tmp_path / "data", f"{part}/images/{number}.png", f"{part}/masks/{number}.png", number)
    assert init(tmp_path / "data", "mine.yaml") == 0
    assert "the folders make the split: 3 test, 6 train" in capsys.readouterr().out
    file = tmp_path / "here/mine.splits.json"
    data = yaml.safe_load((tmp_path / "here/mine.yaml").read_text())["data"]
    assert data["split"] == {"file": str(file)}
    assert "patient" not in data
    split = json.loads(file.read_text())
    assert split["test"] == ["test/2", "test/5", "test/8"]
    assert (len(split["train"]), len(split["val"])) == (5, 1)


def test_thin_objects_of_large_images_get_tiles(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for number in range(4):
        mask = np.zeros((300, 600), np.uint8)
        mask[::40] = mask[1::40] = 255
        Image.fromarray(mask).save(tmp_path / "data" / f"{number}_vessels.png")
        Image.fromarray(np.random.default_rng(number).integers(0, 255, mask.shape).astype(np.uint8)).save(
            tmp_path / f"data/{number}.png"
        )
    assert init(tmp_path / "data", "mine.yaml") == 0
    assert "tiles: {size: 256}" in (tmp_path / "here/mine.yaml").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("prompt", "recipe", "target"),
    [("none", "semantic", "per_class"), ("box", "decoder", "per_label"), ("click", "interactive", "per_label")],
)
def test_method_follows_the_prompt_and_the_classes(tmp_path, capsys, prompt, recipe, target):
    for number in range(5):
        write_image(tmp_path / "data", f"images/{number}.png", f"masks/{number}.png", number, value=1)
        mask = disc(number, 1)
        mask[:4, :4] = 2
        Image.fromarray(mask).save(tmp_path / f"data/masks/{number}.png")
    assert init(tmp_path / "data", "mine.yaml", f"--prompt={prompt}") == 0
    assert f"Method: {recipe}" in capsys.readouterr().out
    data = yaml.safe_load((tmp_path / "here/mine.yaml").read_text())["data"]
    assert (data["target"], data["source"]["init_args"]["labels"]) == (target, {"label_1": [1], "label_2": [2]})


def case_layouts():
    def two_folders(root, number):
        write_image(root, f"images/s{number}.jpg", f"masks/s{number}.png", number)

    def suffix(root, number):
        write_image(root, f"s{number}.png", f"s{number}_mask.png", number)

    def prefix(root, number):
        write_image(root, f"img_{number}.png", f"mask_{number}.png", number)

    def patients(root, number):
        write_image(root, f"p{number}/img/1.png", f"p{number}/seg/1.png", number)

    def nnunet(root, number):
        write_image(root, f"imagesTr/c{number}_0000.nii.gz", f"labelsTr/c{number}.nii.gz", number, value=1)
        labels = {"background": 0, "disc": 1}
        content = {"labels": labels, "channel_names": {"0": "MR"}, "numTraining": 6, "file_ending": ".nii.gz"}
        (root / "dataset.json").write_text(json.dumps(content))

    def bids(root, number):
        subject = f"sub-0{number}"
        write_image(
            root, f"{subject}/anat/{subject}_T1w.nii.gz", f"derivatives/m/{subject}/anat/{subject}_dseg.nii.gz", number, value=1
        )

    def case_folders(root, number):
        write_image(root, f"case{number}/image.nii.gz", f"case{number}/label.nii.gz", number, value=1)

    def class_files(root, number):
        write_image(root, f"s{number}.png", f"s{number}_disc.png", number)
        shutil.copy(root / f"s{number}_disc.png", root / f"s{(number + 3) % 6}_ring.png")

    def class_volumes(root, number):
        write_image(root, f"s{number}/ct.nii.gz", f"s{number}/segmentations/disc.nii.gz", number, value=1)
        (root / f"s{(number + 3) % 6}/segmentations").mkdir(parents=True, exist_ok=True)
        shutil.copy(root / f"s{number}/segmentations/disc.nii.gz", root / f"s{(number + 3) % 6}/segmentations/ring.nii.gz")

    def colours(root, number):
        write_image(root, f"images/{number}.png", f"masks/{number}.png", number)
        mask = np.zeros((40, 48, 3), np.uint8)
        mask[..., 0], mask[:6, :6, 2] = disc(number), 255
        Image.fromarray(mask).save(root / f"masks/{number}.png")

    def one_name(root, number):
        write_image(root, f"s{number}.jpg", f"s{number}.png", number)

    def contrasts(root, number):
        for scale, name in enumerate(("t1", "flair", "t2")):
            write_image(root, f"B{number}/B{number}_{name}.nii.gz", f"B{number}/B{number}_seg.nii.gz", number + scale, value=1)

    def annotations(root, number):
        write_image(root, f"images/{number}.png", "gone.png", number)
        (root / "gone.png").unlink()
        content = json.loads((root / "all.json").read_text()) if number else {"images": [], "annotations": []}
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 48})
        corners = [10 + number, 12, 24 + number, 12, 24 + number, 28, 10 + number, 28]
        shape = {"id": number, "image_id": number, "category_id": 1, "segmentation": [corners]}
        content["annotations"].append(shape)
        (root / "all.json").write_text(json.dumps({**content, "categories": [{"id": 1, "name": "disc"}]}))

    usual = [two_folders, suffix, prefix, patients, nnunet, bids, case_folders, class_files, class_volumes, colours]
    return [*usual, one_name, contrasts, annotations]


# One for each kind of source.
REPORTED = ("two_folders", "class_files", "class_volumes", "colours", "annotations")


@pytest.mark.slow
@pytest.mark.parametrize("write", case_layouts(), ids=lambda write: write.__name__)
def test_common_layout_is_initialised_run_and_predicted(tmp_path, write):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(6):
        write(data, number)
    assert init(data, "mine.yaml") == 0
    # The network and the length alone are made small; a report shows what was read, the same wherever the files lay.
    words = ("steps=2", "warmup_steps=0", "--run.baselines=false", f"--run.report={str(write.__name__ in REPORTED).lower()}")
    assert cli.main(["run", "mine.yaml", "weights=random_tiny", *words]) == 0
    assert len(list((tmp_path / "here/runs").glob("*/*/*/report/index.html"))) == (write.__name__ in REPORTED)
    forget_run()
    (run,) = (tmp_path / "here/runs").glob("*/*/*")
    image = sorted(path for path in data.rglob("*") if path.name.endswith((".png", ".jpg", ".nii.gz")))[0]
    assert cli.main(["predict", str(run), str(image), "-o", str(tmp_path / "out")]) == 0
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
