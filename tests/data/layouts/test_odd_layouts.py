"""Folders whose names do not simply say what belongs together: numbers, endings, tables, channels, annotation files."""

import json

import numpy as np
import pytest
from PIL import Image

from medsam_tune.data.coco_files import join_coco
from medsam_tune.data.fingerprint import take_fingerprint
from medsam_tune.data.formats import FORMATS, ChannelFiles, NiftiChannels
from medsam_tune.data.formats.channels import channels_of
from medsam_tune.data.layouts import detect
from medsam_tune.data.pair_table import read_table
from medsam_tune.errors import DataError, RecipeError
from tests.data.layouts.test_layouts import IMAGE, MASK, write
from tests.data.test_own_data import opened, volume

LISTED = {
    "one name, two endings": (["p1/a.jpg", "p1/a.png=m", "p2/b.jpg", "p2/b.png=m"], {"p1/a": 1, "p2/b": 1}),
    "letters before numbers": (["I01.png", "I02.png", "M01.png=m", "M02.png=m"], {"I01": 1, "I02": 1}),
    "folders and prefixes": (["X/x_1.png", "X/x_2.png", "Y/y_1.png=m", "Y/y_2.png=m"], {"X/x_1": 1, "X/x_2": 1}),
    "two words inside": (
        ["Image/L-1/1_NI0_s3.png", "Image/L-2/2_NI0_s4.png", "Mask/L-1/1_MA0_s3.png=m", "Mask/L-2/2_MA0_s4.png=m"],
        {"Image/L-1/1_NI0_s3": 1, "Image/L-2/2_NI0_s4": 1},
    ),
    "a mask of a fixed name, an image of the folder's": (
        ["train/P_01/P_01.png", "train/P_01/GT.png=m", "train/P_02/P_02.png", "train/P_02/GT.png=m", "test/P_09.png"],
        {"P_01": 1, "P_02": 1},
    ),
    "a file an object": (
        ["s/a/images/a.png", "s/a/masks/q.png=m", "s/a/masks/r.png=m", "s/b/images/b.png", "s/b/masks/t.png=m"],
        {"a": 2, "b": 1},
    ),
    "equal names in every folder": (
        ["c1/scan.png", "c1/liver.png=m", "c1/lung.png=m", "c2/scan.png", "c2/liver.png=m", "c2/lung.png=m"],
        {"c1": 2, "c2": 2},
    ),
    "German": (
        ["Bilder/Hüfte 1.png", "Bilder/Hüfte 2.png", "Masken/Hüfte 1.png=m", "Masken/Hüfte 2.png=m"],
        {"Hüfte 1": 1, "Hüfte 2": 1},
    ),
    "GIF masks and a field of view": (
        [
            *(f"training/{kind}" for n in (21, 22) for kind in (f"images/{n}_training.tif", f"1st_manual/{n}_manual1.gif=m")),
            *(f"training/mask/{n}_training_mask.gif=m" for n in (21, 22)),
            *(f"test/{kind}" for kind in ("images/1_test.tif", "mask/1_test_mask.gif=m")),
        ],
        {"21": 1, "22": 1},
    ),
}


@pytest.mark.parametrize("case", LISTED)
def test_odd_folder_is_paired_and_its_source_reads_the_same(tmp_path, case):
    names, expected = LISTED[case]
    root = tmp_path / "data"
    found, source = opened(write(root, *names))
    masks = {pair.name: len(pair.masks) for pair in found.pairing.pairs}
    assert masks == expected
    assert len(source) == len(found.pairing.pairs) == 2
    # The masks are all alike, so overlapping ones are one row of 56 pixels.
    assert all(int(source[index].masks.union().sum()) == 56 for index in range(2))


def test_table_of_pairs_in_the_folder_is_followed(tmp_path):
    root = write(tmp_path / "data", "f/9a.png", "f/c3.png=m", "f/d1.png", "f/77.png=m")
    (root / "list.csv").write_text("id;picture;expert_mask\n1;C:\\x\\f\\9a.png;77.png\n2;f/d1;f/c3.png\n")
    found, source = opened(root)
    assert {pair.name: pair.masks[0].stem for pair in found.pairing.pairs} == {"f/9a": "f/77", "f/d1": "f/c3"}
    assert source.image_ids() == ("f/9a", "f/d1")
    rows = read_table(tmp_path / "mine.pairs.csv", root)
    assert [(image.name, mask.path.name) for image, mask in rows] == [("9a.png", "77.png"), ("d1.png", "c3.png")]


def test_table_with_a_file_that_is_gone_is_named(tmp_path):
    root = write(tmp_path / "data", "f/a.jpg", "f/a.png=m", "f/b.jpg", "f/b.png=m")
    _, source = opened(root)
    (root / "f/b.png").unlink()
    with pytest.raises(DataError, match=r"names 1 files that are not there: .*b\.png\. Correct the table"):
        source.open(root)
    (tmp_path / "mine.pairs.csv").write_text("picture,mask\na,b\n")
    with pytest.raises(DataError, match="has no column 'image'"):
        source.open(root)


def test_two_experts_and_two_forms_are_alternatives(tmp_path):
    names = ["a.png", "b.png"]
    for first, second in (("masks/expert1", "masks/expert2"), ("SegmentationClass", "SegmentationObject")):
        root = write(
            tmp_path / second, *(f"images/{n}" for n in names), *(f"{f}/{n}=m" for f in (first, second) for n in names)
        )
        found = detect(root)
        assert found.masks.text == f"{first}/{{name}}"
        assert f"'images/{{name}}' with '{second}/{{name}}' would pair 2 files too" in found.notes


def test_images_of_a_test_folder_are_told_as_new(tmp_path):
    found = detect(write(tmp_path, "train/images/1.png", "train/masks/1.png=m", "test/images/7.png", "test/images/8.png"))
    assert found.new_images == "test/images"


def contrasts(root):
    """Two cases of three contrasts: 10 times, 20 times and 30 times a ramp, in a file each."""
    ramp = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    for case in "ab":
        for scale, name in ((1, "t1"), (2, "flair"), (3, "t2")):
            volume(root / f"{case}/{case}_{name}.nii.gz", (ramp if name != "t2" else ramp[::-1]) * scale)
        volume(root / f"{case}/{case}_seg.nii.gz", (ramp > 60).astype(np.uint8))
    return ramp


def test_contrasts_become_colours_each_by_its_own_percentiles(tmp_path):
    ramp = contrasts(tmp_path / "data")
    found, source = opened(tmp_path / "data")
    assert found.pairing.format.channels == ["_flair", "_t2", "_t1"]
    assert source.case_ids()[0] == "a/a"
    red, green, blue = source[0].image
    low, high = np.percentile(ramp, (0.5, 99.5))
    expected = np.rint(np.clip((ramp[:, :, 0] - low) * 255 / (high - low), 0, 255))
    # One ramp at two scales has the same grey levels; the second contrast runs the other way.
    assert red.equal(blue)
    assert not red.equal(green)
    assert sorted(red.flatten().tolist()) == sorted(expected.flatten().tolist())
    assert [path.name for path in source.files(0)[:3]] == ["a_flair.nii.gz", "a_t2.nii.gz", "a_t1.nii.gz"]


def test_missing_contrast_and_a_file_of_another_are_named(tmp_path):
    contrasts(tmp_path)
    (tmp_path / "a/a_t2.nii.gz").unlink()
    reader = ChannelFiles(detect(tmp_path / "b").mask_format, ["_flair", "_t2"])
    with pytest.raises(DataError, match=r"a_flair\.nii\.gz: has no file of the channel '_t2' beside it"):
        reader.read_header(tmp_path / "a/a_flair.nii.gz")
    with pytest.raises(DataError, match=r"b_t1\.nii\.gz: is no file of the first channel '_flair'. Give that one"):
        reader.read_header(tmp_path / "b/b_t1.nii.gz")
    with pytest.raises(RecipeError, match="expected one to 3 different endings"):
        ChannelFiles(reader.format, ["_a", "_a"])


def test_channels_in_a_fourth_axis_are_read(tmp_path):
    ramp = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    for case in "ab":
        volume(tmp_path / f"data/imagesTr/{case}.nii.gz", np.stack([ramp, ramp[::-1]], axis=-1))
        volume(tmp_path / f"data/labelsTr/{case}.nii.gz", (ramp > 60).astype(np.uint8))
    found, source = opened(tmp_path / "data")
    assert isinstance(found.pairing.format, NiftiChannels)
    first, second, third = source[0].image
    assert second.equal(third)
    assert not first.equal(second)


SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]


def coco(names, categories=("cell", "wall")):
    images = [{"id": n, "file_name": name, "height": 20, "width": 20} for n, name in enumerate(names)]
    annotations = [
        {"id": 2 * n + k, "image_id": n, "category_id": k, "segmentation": [[v + 6 * k for v in SQUARE]], "iscrowd": 0}
        for n in range(len(names))
        for k in range(len(categories))
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": c} for k, c in enumerate(categories)],
    }


def test_coco_files_of_parts_are_read_together(tmp_path):
    root = write(tmp_path / "data", "train/1.png", "train/2.png", "valid/1.png", "valid/spare.png")
    (root / "train/_annotations.coco.json").write_text(json.dumps(coco(["1.png", "2.png"])))
    (root / "valid/_annotations.coco.json").write_text(json.dumps(coco(["1.png"])))
    found, source = opened(root)
    assert found.parts() == {"train/1": "train", "train/2": "train", "valid/1": "val"}
    assert [file.stem for file in found.pairing.without_mask] == ["valid/spare"]
    assert source.image_ids() == ("train/1", "train/2", "valid/1")
    assert found.rule.labels == {"cell": ["cell"], "wall": ["wall"]}


def test_of_coco_objects_that_overlap_the_last_one_has_the_pixel_where_classes_are_apart(tmp_path):
    root = write(tmp_path / "data", "images/1.png", "images/2.png")
    (root / "all.json").write_text(json.dumps(coco(["C:\\export\\images\\1.png", "images\\2.png"])))
    _, source = opened(root)
    source.target = "per_class"
    # By hand: 6 x 6 pixels each, 2..8 and 8..14 touch at no pixel, so move the second by hand onto the first.
    content = coco(["1.png", "2.png"])
    content["annotations"][1]["segmentation"] = [[v + 3 for v in SQUARE]]
    (root / "all.json").write_text(json.dumps(content))
    source.open(root)
    first, second = source[0].masks
    assert (int(first.sum()), int(second.sum()), bool((first & second).any())) == (36 - 9, 36, False)


def test_image_that_two_folders_have_is_the_one_beside_the_file(tmp_path):
    paths = [tmp_path / "a/1.png", tmp_path / "b/1.png"]
    assert list(join_coco({tmp_path / "b/x.json": coco(["1.png"])}, paths).objects) == paths[1:]
    with pytest.raises(DataError, match=r"names 1 images that are not there: 1\.png"):
        join_coco({tmp_path / "x.json": coco(["1.png"])}, paths)


def test_labelme_and_yolo_files_become_a_coco_file(tmp_path):
    corners = [[2, 2], [8, 2], [8, 8], [2, 8]]
    labelme, yolo = tmp_path / "labelme", tmp_path / "yolo"
    for name in "ab":
        write(labelme, f"{name}.png")
        write(yolo, f"images/train/{name}.png")
        shapes = [{"label": "cell", "points": corners, "shape_type": "polygon"}]
        (labelme / f"{name}.json").write_text(json.dumps({"shapes": shapes, "imagePath": f"{name}.png"}))
        (yolo / "labels/train").mkdir(parents=True, exist_ok=True)
        (yolo / f"labels/train/{name}.txt").write_text("0 " + " ".join(str(v / 20) for point in corners for v in point))
    (yolo / "data.yaml").write_text("names: [cell]\n")
    for root, n_pixels in ((labelme, 36), (yolo, 36)):
        found, source = opened(root)
        assert [int(source[index].masks.areas().sum()) for index in range(2)] == [n_pixels, n_pixels]
        assert found.pairing.written["categories"] == [{"id": 1, "name": "cell"}]
    (labelme / "a.json").write_text(json.dumps({"shapes": [{"label": "x", "points": [[1, 1]], "shape_type": "point"}]}))
    with pytest.raises(DataError, match=r"shapes that are no areas \(1 of point\)"):
        detect(labelme)


def test_folder_that_does_not_pair_is_listed_with_what_would(tmp_path):
    write(tmp_path, "images/scan_1.png", "images/scan_2.png", "masks/qf.png=m", "masks/zk.png=m")
    (tmp_path / "train.csv").write_text("ImageId,EncodedPixels\nscan_1,1 3\n")
    with pytest.raises(DataError) as refused:
        detect(tmp_path)
    told = str(refused.value)
    assert "images/: 2 .png (scan_1.png)" in told
    assert "masks/: 2 .png (qf.png)" in told
    assert "train.csv holds masks as run lengths" in told
    assert "2 images and 2 masks have no names in common" in told
    assert "a CSV file with the columns image and mask" in told


def test_masks_in_colours_are_told_by_their_few_colours(tmp_path):
    root = write(tmp_path, "img/a1.png", "img/a2.png")
    colours = np.zeros((20, 20, 3), np.uint8)
    colours[MASK > 0] = (255, 0, 0)
    (root / "lab").mkdir()
    for number in (1, 2):
        Image.fromarray(colours).save(root / f"lab/a{number}_L.png")
        Image.fromarray(np.stack([IMAGE, IMAGE.T, IMAGE], axis=-1)).save(root / f"img/a{number}.png")
    found = take_fingerprint(root, detect(root))
    assert (len(found.facts), found.rule.kind, found.rule.labels) == (2, "colours", {"red": [255, 0, 0]})


MORE = {
    "a folder of masks an image": (
        ["images/IMG_1.jpg", "images/IMG_2.jpg", "masks/IMG_1/1.png=m", "masks/IMG_1/2.png=m", "masks/IMG_2/1.png=m"],
        {"IMG_1": 2, "IMG_2": 1},
    ),
    "numbered masks": (["a.png", "a_seg0.png=m", "a_seg1.png=m", "b.png", "b_seg0.png=m"], {"a": 2, "b": 1}),
    "other zeros and capitals": (
        ["Images/Case1.png", "Images/Case2.png", "masks/case001_Mask.png=m", "masks/case002_Mask.png=m"],
        {"Images/Case1": 1, "Images/Case2": 1},
    ),
    "contrasts with two underscores": (
        [f"imagesTr/c-{n}__{kind}.nii" for n in (1, 2) for kind in ("CT", "PT")] + ["labelsTr/c-1.nii=m", "labelsTr/c-2.nii=m"],
        {"c-1": 1, "c-2": 1},
    ),
}


@pytest.mark.parametrize("case", MORE)
def test_more_odd_folders_are_paired(tmp_path, case):
    names, expected = MORE[case]
    found, source = opened(write(tmp_path / "data", *names))
    assert {pair.name: len(pair.masks) for pair in found.pairing.pairs} == expected
    assert len(set(source.case_ids())) == 2


def test_masks_of_another_format_than_their_images_are_found(tmp_path):
    import nrrd

    ramp = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    turned = {"space": "right-anterior-superior", "space directions": np.eye(3), "space origin": np.zeros(3)}
    for case in "ab":
        volume(tmp_path / f"data/{case}/scan.nii.gz", ramp)
        nrrd.write(str(tmp_path / f"data/{case}/scan_segmentation.nrrd"), (ramp > 60).astype(np.uint8), turned)
    found, source = opened(tmp_path / "data")
    assert [pair.masks[0].path.name for pair in found.pairing.pairs] == ["scan_segmentation.nrrd"] * 2
    assert sum(int(source[index].masks.dense().sum()) for index in range(len(source))) == 2 * int((ramp > 60).sum())


def test_what_an_export_says_of_channels_builds_the_same_reader():
    for reader in (ChannelFiles(FORMATS[0], ["_flair", "_t2"]), NiftiChannels([0, 2], (1.0, 99.0))):
        again = channels_of(json.loads(json.dumps(reader.describe())), FORMATS)
        assert (type(again), again.channels, again.percentiles) == (type(reader), reader.channels, reader.percentiles)
    with pytest.raises(DataError, match="its channels cannot be read"):
        channels_of({"format": "Nothing", "names": ["_a"]}, FORMATS)
