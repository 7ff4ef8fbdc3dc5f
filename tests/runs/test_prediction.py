import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from medsam_tune.backbone import SamBackbone
from medsam_tune.cli import main
from medsam_tune.data.formats import FORMATS, DicomFormat
from medsam_tune.data.stored_images import StoredImages
from medsam_tune.errors import RecipeError
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.runs.asked_model import AskedModel, open_model
from medsam_tune.runs.prediction import PredictionJob, Wanted
from tests.dicom_files import NAME, write_series
from tests.inference.test_writers import write_volume


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AskedModel("tiny", Predictor(SamBackbone("random_tiny")), TrainedData(), "identity", FORMATS)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two images, one of them in a sub-folder, and a damaged one."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png"):
        path = tmp_path / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)).save(path)
    (tmp_path / "new" / "c.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "new"


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(out):
    return list(csv.DictReader((out / "cases.csv").read_text().splitlines()))


def job(model, place, *, drawn=None, **wanted):
    return PredictionJob(model, place, Path.cwd() / "out", drawn, Wanted(**wanted))


def test_a_folder_is_answered_file_by_file_and_a_damaged_one_is_an_outcome(model, place):
    before, out = files_below(place), place.parent / "out"
    outcomes = list(job(model, place).outcomes())
    assert [outcome.written for outcome in outcomes] == [out / "a.png", None, out / "sub/b.png"]
    assert outcomes[1].fault.startswith(f"{place / 'c.png'}: cannot be read")
    assert files_below(place) == before
    rows = table(out)
    assert [(row["case"], row["label"], row["value"]) for row in rows] == [("a", "object", "255"), ("sub/b", "object", "255")]
    assert int(rows[0]["pixels"]) == (np.asarray(Image.open(out / "a.png")) == 255).sum()
    assert json.loads((out / "labels.json").read_text()) == {"255": {"name": "object"}}


def test_a_file_that_does_not_fit_into_memory_says_what_to_do_and_the_others_are_answered(model, place, monkeypatch):
    encode, calls = SamBackbone.run_encoder, []

    def encoded(self, pixels):
        calls.append(pixels)
        if len(calls) == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return encode(self, pixels)

    monkeypatch.setattr(SamBackbone, "run_encoder", encoded)
    faults = [outcome.fault for outcome in job(model, place).outcomes()]
    assert faults[0].startswith(f"{place / 'a.png'}: out of memory (DefaultCPUAllocator: can't allocate memory")
    assert "Cut it into tiles" in faults[0]
    assert faults[2] == ""


def test_an_error_that_is_not_about_memory_ends_the_call(model, place, monkeypatch):
    monkeypatch.setattr(SamBackbone, "run_encoder", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(job(model, place).outcomes())


def test_a_second_call_goes_on_and_changes_nothing(model, place, monkeypatch):
    out = place.parent / "out"
    first = list(job(model, place / "a.png").outcomes())
    mask = files_below(out)["a.png"]
    with monkeypatch.context() as patch:
        # Nothing is asked.
        patch.delattr(Predictor, "predict")
        (again,) = job(model, place / "a.png").outcomes()
    assert (again.written, again.stood, first[0].stood) == (out / "a.png", True, False)
    outcomes = list(job(model, place).outcomes())
    assert [outcome.stood for outcome in outcomes] == [True, False, False]
    assert [row["case"] for row in table(out)] == ["a", "sub/b"]
    assert files_below(out)["a.png"] == mask
    assert [outcome.stood for outcome in job(model, place, overwrite=True).outcomes()] == [False, False, False]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda place, out: Image.new("L", (30, 20)).save(out / "a.png"), "was changed since it was written"),
        (lambda place, out: Image.new("L", (30, 20)).save(place / "a.png"), "answers another question"),
        (lambda place, out: (out / ".answered/a.json").write_text("{"), "was not written by this command"),
    ],
)
def test_a_mask_that_is_not_the_answer_is_never_written_over(model, place, change, said):
    out = place.parent / "out"
    list(job(model, place).outcomes())
    change(place, out)
    before = (out / "a.png").read_bytes()
    outcome = next(job(model, place).outcomes())
    assert f"{out / 'a.png'}: stands there and {said}" in outcome.fault
    assert (out / "a.png").read_bytes() == before
    assert next(job(model, place, overwrite=True).outcomes()).written == out / "a.png"


def test_what_would_lose_something_is_refused_before_any_work(model, place):
    with pytest.raises(RecipeError, match=r"-o: the masks would stand in the place of .*a\.png"):
        PredictionJob(model, place / "a.png", place, None, Wanted(overwrite=True))
    list(job(model, place).outcomes())
    other = AskedModel("other", model.predictor, model.data, "other", FORMATS)
    with pytest.raises(RecipeError, match=r"holds 2 masks of another model"):
        job(other, place)
    (place / "overlays").mkdir()
    (place / "a.png").rename(place / "overlays" / "overlays.png")
    (place / "sub" / "b.png").rename(place / "overlays.png")
    with pytest.raises(RecipeError, match=r"--overlays: picture and mask of overlays/overlays would be one file"):
        job(model, place, overlays=True, overwrite=True)


def test_a_number_means_one_thing_in_a_folder(model, place):
    for name, label in (("a", "liver"), ("sub/b", "spleen")):
        (place.parent / f"{label}.csv").write_text(f"image,x1,y1,x2,y2,label\n{name},1,2,9,9,{label}\n")
    drawn = [(place.parent / f"{label}.csv", "boxes") for label in ("liver", "spleen")]
    assert next(job(model, place / "a.png", drawn=drawn[0]).outcomes()).written
    (place.parent / "spleen.csv").write_text("image,x1,y1,x2,y2,label\nb,1,2,9,9,spleen\n")
    (outcome,) = job(model, place / "sub/b.png", drawn=drawn[1]).outcomes()
    assert "labels.json: 1 is liver in other masks there, here it is spleen" in outcome.fault


def test_names_never_lead_out_of_the_folder(model, place):
    (place / "a.png").rename(place / "..%2Fa.png")
    written = [outcome.written for outcome in job(model, place, overlays=True).outcomes() if outcome.written]
    assert all(path.is_relative_to(place.parent / "out") for path in written)
    assert sorted(path.name for path in place.parent.iterdir()) == ["new", "out"]


def test_images_that_the_training_did_not_know_are_said_with_both_values(model, place):
    assert job(model, place).differences == []
    known = replace(model, data=replace(model.data, images=StoredImages(False, -1000, 1500)))
    (difference,) = job(known, place).differences
    assert difference.startswith("their values run from ")
    assert difference.endswith(", those of the training from -1000 to 1500")


def test_a_cut_off_call_leaves_the_table_of_what_is_done(model, place):
    outcomes = job(model, place).outcomes()
    next(outcomes)
    outcomes.close()
    assert [row["case"] for row in table(place.parent / "out")] == ["a"]


def test_released_weights_are_asked_with_every_object_of_masks_and_say_what_they_found(tmp_path, monkeypatch, capsys):
    write_volume(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "random_tiny", "images", "-o", "out"]) == 2
    assert "--boxes: is not given, and SAM was trained with prompts" in capsys.readouterr().err
    command = ["predict", "random_tiny", "images", "-o", "out", "--every-object-of=labels", "--uncertainty", "--overlays"]
    assert main(command) == 0
    assert "1 mask in out\n" in capsys.readouterr().out
    (row,) = table(tmp_path / "out")
    assert (row["case"], row["label"], row["value"], row["area_mm2"]) == ("case_1", "1", "1", "")
    assert float(row["volume_ml"]) == pytest.approx(int(row["pixels"]) * 1.5 / 1000)
    assert 0 <= float(row["uncertainty"]) <= 1
    with Image.open(tmp_path / "out/overlays/case_1.png") as picture:
        assert picture.size[0] > 300
    assert main(command) == 0
    assert "1 mask in out, 1 of them from before" in capsys.readouterr().out


def test_npz_files_are_asked_with_the_boxes_they_bring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 20, 24), dtype=np.uint8)
    boxes = np.array([[2, 3, 0, 12, 15, 1], [14, 3, 1, 20, 15, 2]])
    np.savez(tmp_path / "in/a.npz", imgs=pixels, spacing=(0.5, 0.5, 2.0), boxes=boxes)
    np.savez(tmp_path / "in/b.npz", imgs=pixels)
    assert main(["predict", "random_tiny", "in", "-o", "out"]) == 1
    with np.load(tmp_path / "out/a.npz") as found:
        assert found["segs"].shape == (3, 20, 24)
        assert found["spacing"].tolist() == [0.5, 0.5, 2.0]
        assert set(np.unique(found["segs"])) <= {0, 1, 2}
        assert not (found["segs"][0] == 2).any()
        assert not (found["segs"][2] == 1).any()
    assert not (tmp_path / "out/b.npz").exists()


def test_models_that_are_none_say_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/lora/2026").mkdir(parents=True)
    (tmp_path / "runs/lora/2026/config.yaml").touch()
    with pytest.raises(RecipeError, match=r"lite_medsm: no such run or export folder, and no weights of that name"):
        open_model("lite_medsm")
    for name in ("runs", "runs/lora"):
        with pytest.raises(RecipeError, match=r"is no run .* It holds 1 runs; name one, such as runs/lora/2026"):
            open_model(name)
    assert open_model("random_tiny").is_untuned


def test_a_dicom_series_gives_a_segmentation_on_its_voxels_without_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    volume = np.random.default_rng(0).integers(-900, 900, (3, 12, 14)).astype(np.int16)
    series = write_series(tmp_path / "in" / "c1", volume)
    (tmp_path / "boxes.csv").write_text("image,x1,y1,x2,y2,label\nc1,1,2,12,10,liver\n")
    assert main(["predict", "random_tiny", "in", "-o", "out", "--boxes=boxes.csv", "--overlays"]) == 0
    form, path = DicomFormat(), tmp_path / "out/c1.dcm"
    found = form.read_labels_on(path, form.read_header(series))
    (row,) = table(tmp_path / "out")
    assert (found == 1).sum() == int(row["pixels"]) > 0
    assert float(row["volume_ml"]) == pytest.approx(int(row["pixels"]) * 0.7 * 0.5 * 3 / 1000)
    assert form.read_label_names(path) == {1: "liver"}
    assert not [name for name, content in files_below(tmp_path / "out").items() if NAME.encode() in content]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools on numpy 2
def test_coco_holds_each_object_with_its_score_and_pycocotools_reads_it(model, place, tmp_path):
    (place / "c.png").unlink()
    rows = ["image,x1,y1,x2,y2,label", "a.png,2,2,14,12,cell", "a.png,8,6,26,18,cell", "sub/b.png,1,1,20,15,rim"]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("\n".join(rows))
    out = place.parent / "out"
    outcomes = list(job(model, place, drawn=(boxes, "boxes"), to="coco").outcomes())
    assert [outcome.written for outcome in outcomes] == [out / "a.coco.json", out / "sub/b.coco.json"]
    coco = COCO(out / "coco.json")
    names = {image["id"]: image["file_name"] for image in coco.dataset["images"]}
    assert sorted(names.values()) == ["a.png", "sub/b.png"]
    assert {each["name"] for each in coco.dataset["categories"]} == {"cell", "rim"}
    image = np.asarray(Image.open(place / "a.png"))
    predictor = model.predictor
    predictor.set_image(image)
    found = coco.loadAnns(coco.getAnnIds(next(key for key, name in names.items() if name == "a.png")))
    expected = predictor.predict_many(boxes=[[2, 2, 14, 12], [8, 6, 26, 18]])
    assert len(found) == sum(masks.any() for masks in expected[0])
    for each in found:
        mask = coco.annToMask(each).astype(bool)
        which = [row for row in (0, 1) if np.array_equal(mask, expected[0][row, 0])]
        assert which
        assert each["score"] == pytest.approx(float(expected[1][which[0], 0]), abs=1e-5)
        assert each["area"] == mask.sum()
    # The results of COCO's own evaluation are the same annotations.
    assert coco.loadRes([{**each} for each in coco.dataset["annotations"]]).getAnnIds()


def test_coco_of_a_volume_is_refused_with_what_can_be_had(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    write_volume(tmp_path / "new", "v")
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x1,y1,x2,y2,slice\nv,1,1,3,3,0\n")
    (outcome,) = job(model, tmp_path / "new", drawn=(boxes, "boxes"), to="coco").outcomes()
    assert "is a volume, and COCO describes images. Write --to nifti, nrrd, mha, seg or rtstruct" in outcome.fault


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """A volume, and rules under which a random network is followed to both ends."""
    write_volume(tmp_path)
    monkeypatch.chdir(tmp_path)
    return ["predict", "random_tiny", "images/case_1.nii.gz", "out"]


def test_an_object_is_followed_from_a_box_on_one_slice_by_command(followed, capsys):
    assert main([*followed, "--box-on-slice", "2:0,0,3,3", "--least-iou=0", "--overlays"]) == 0
    said = capsys.readouterr().out
    assert "case_1: slices " in said
    assert said.endswith("1 mask in out\n") or "1 mask in " in said
    record = json.loads(Path("out/case_1.propagation.json").read_text())
    assert record["prompt"] == {"slice": 2, "points": [], "box": [0.0, 0.0, 3.0, 3.0]}
    (row,) = table(Path("out"))
    assert int(row["pixels"]) == sum(each["pixels"] for each in record["slices"]) > 0
    assert Path("out/overlays/case_1.png").is_file()
    # The same question is not asked again, another one is.
    assert main([*followed, "--box-on-slice=2:0,0,3,3", "--least-iou=0", "--overlays"]) == 0
    assert "1 of them from before" in capsys.readouterr().out
    assert main([*followed, "--box-on-slice=2:0,0,3,3", "--slices=2:3", "--least-iou=0", "--overlays"]) == 1
    assert "answers another question" in capsys.readouterr().err


def test_a_series_is_followed_from_a_click(followed, tmp_path, capsys):
    write_series(tmp_path / "series", np.arange(240, dtype=np.int16).reshape(4, 6, 10))
    words = ["predict", "random_tiny", "--point-on-slice", "1:2,2", "series", "-o", "out", "--least-iou=0", "--connected"]
    assert main(words) == 0
    assert list(Path("out").rglob("*.dcm"))
    assert "slices " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--box-on-slice=9:0,0,3,3"], "has the slices 0 to 4, but the prompt is on slice 9"),
        (["--box-on-slice=2:0,0,30,3"], "box must lie in the image of"),
        (["--point-on-slice=2:50,3"], "point must lie in the image of"),
        (["--box-on-slice=2:0,0,3,3", "--slices=0:9"], "--slices names 0 to 9"),
        (["--box-on-slice=2:0,0,3,3", "--slices=3:3"], "outside of --slices 3:3"),
        (["--box-on-slice=2:0,0,3"], "--box-on-slice: expected the slice, a colon and 4 numbers"),
        (["--box-on-slice=x:0,0,3,3"], "such as 42:30,40,88,97, got 'x:0,0,3,3'"),
        (["--point-on-slice=2:1,1,7"], "the third number is 1 (object) or 0 (background), got 7"),
        (["--point-on-slice=2:1,1,0"], "all clicks are beside the object"),
        (["--point-on-slice=2:1,1", "--point-on-slice=3:1,1"], "must be on one slice, got slices [2, 3]"),
        (["--box-on-slice=2:0,0,3,3", "--slices=a"], "--slices: expected FIRST:LAST such as 30:55, got 'a'"),
        (["--box-on-slice=2:0,0,3,3", "--least-iou=2"], "--least-iou: expected a number from 0"),
        (["--box-on-slice=2:0,0,3,3", "--uncertainty"], "--uncertainty: is not there for an object"),
        (["--box-on-slice=2:0,0,3,3", "--boxes=b.csv"], "--boxes: draws on many slices"),
        (["--connected"], "--connected: goes with --box-on-slice"),
        (["--box-on-slice=2:0,0,3,3", "-o", "other"], "give the folder of the masks once"),
    ],
)
def test_what_cannot_be_followed_is_said_and_nothing_is_written(followed, words, said, capsys):
    assert main([*followed, *words]) != 0
    assert said in capsys.readouterr().err
    assert not list(Path().rglob("*.propagation.json"))


def test_one_box_is_not_for_many_files(followed, tmp_path, capsys):
    write_volume(tmp_path, "case_2")
    followed[2] = "images"
    assert main([*followed, "--box-on-slice=2:0,0,3,3"]) != 0
    assert "holds 2 files, but a box is drawn on one" in capsys.readouterr().err


def test_an_empty_first_mask_is_said(followed, monkeypatch, capsys):
    asked = Predictor.predict

    def empty(self, **prompts):
        masks, *rest = asked(self, **prompts)
        return (masks & False, *rest)

    monkeypatch.setattr(Predictor, "predict", empty)
    assert main([*followed, "--box-on-slice=2:0,0,3,3"]) == 1
    assert "the mask of slice 2 is empty, so there is nothing to follow" in capsys.readouterr().err
