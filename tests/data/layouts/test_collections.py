"""Folders as well-known collections of medical images have them: each is found as what it is, and its source reads it."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsam_tune.data.formats import DicomFormat, SliceImages
from medsam_tune.data.layouts import detect
from medsam_tune.data.patients import likely_patients
from medsam_tune.errors import DataError
from tests.data.layouts.test_layouts import IMAGE, MASK, write
from tests.data.test_own_data import opened, volume
from tests.dicom_files import write_series


def areas(source):
    return [int(source[index].masks.union().sum()) for index in range(len(source))]


def put(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def test_images_in_two_parts_with_masks_in_one_folder_are_all_read(tmp_path):
    names = [f"HAM_images_part_{n % 2 + 1}/ISIC_{n}.jpg" for n in range(4)]
    root = write(tmp_path / "data", *names, *(f"HAM_segmentations/ISIC_{n}_segmentation.png=m" for n in range(4)))
    found, source = opened(root)
    assert {pair.image.stem.rpartition("/")[2]: pair.masks[0].path.stem for pair in found.pairing.pairs} == {
        f"ISIC_{n}": f"ISIC_{n}_segmentation" for n in range(4)
    }
    assert "2 places are read" in found.pairing.notes[0]
    assert areas(source) == [56] * 4


def test_a_folder_that_holds_everything_tells_nothing_by_its_name(tmp_path):
    pictures = [f"Set_with_GT/benign/benign ({n}){end}" for n in (1, 2) for end in (".png", "_mask.png=m")]
    found, _ = opened(write(tmp_path / "data", *pictures, "Set_with_GT/benign/benign (1)_mask_1.png=m"))
    assert found.pairing.layout == "masks told by their names, several an image"
    assert {pair.name: len(pair.masks) for pair in found.pairing.pairs} == {
        "Set_with_GT/benign/benign (1)": 2,
        "Set_with_GT/benign/benign (2)": 1,
    }


def test_texts_of_equal_names_in_both_folders_are_no_pair_that_is_missed(tmp_path):
    root = write(
        tmp_path / "data", "Input/a.jpg", "Input/b.jpg", "GroundTruth/a_segmentation.png=m", "GroundTruth/b_segmentation.png=m"
    )
    for folder in ("Input", "GroundTruth"):
        (root / folder / "LICENSE.txt").write_text("CC0")
    _, source = opened(root)
    assert areas(source) == [56, 56]


def lesions(root):
    """Two images with lesions of two kinds, drawn in red, each kind in a folder and with an ending of its own."""
    red = np.zeros((20, 20, 3), np.uint8)
    red[MASK > 0] = (255, 0, 0)
    for n in (1, 2):
        put(root / f"Images/a. Training Set/X_{n}.jpg", np.stack([IMAGE] * 3, axis=-1))
        put(root / f"Groundtruths/a. Training Set/1. Haemorrhages/X_{n}_HE.tif", red)
        put(root / f"Groundtruths/a. Training Set/2. Exudates/X_{n}_EX.tif", np.roll(red, 8, axis=0))
    return root


def test_kinds_in_folders_and_endings_of_their_own_are_classes_in_any_one_colour(tmp_path):
    found, source = opened(lesions(tmp_path / "data"), "per_class")
    assert (found.rule.kind, list(found.rule.labels)) == ("classes", ["Exudates", "Haemorrhages"])
    # Rows 13 to 19 of the mask moved down by 8, and its 7 rows from 5 on.
    assert [source[0].masks[k].sum().item() for k in (0, 1)] == [56, 56]
    assert not (source[0].masks[0] & source[0].masks[1]).any()


def test_two_drawings_of_one_thing_are_no_classes(tmp_path):
    names = [f"photos/im{n}.png" for n in (1, 2)]
    names += [f"labels-{who}/im{n}.{who}.png=m" for n in (1, 2) for who in ("ah", "vk")]
    found = detect(write(tmp_path, *names))
    assert found.masks.text == "labels-ah/{name}.ah"
    assert any("labels-vk" in note for note in found.notes)


def test_masks_in_an_images_folder_that_are_everywhere_the_same_are_classes(tmp_path):
    root = tmp_path / "data"
    for n in (1, 2):
        put(root / f"Images/g_{n}.png", IMAGE)
        put(root / f"GT/g_{n}/Map/g_{n}_disc.png", MASK)
        cup = np.zeros_like(MASK)
        cup[7:10, 8:11] = 255
        put(root / f"GT/g_{n}/Map/g_{n}_cup.png", cup)
    found, _ = opened(root)
    assert list(found.rule.labels) == ["cup", "disc"]


def test_four_digits_may_number_cases_and_validation_folders_are_read(tmp_path):
    root = tmp_path / "data"
    ramp = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    for part, cases in (("Tr", (0, 1, 4)), ("Va", (8, 9))):
        for n in cases:
            volume(root / f"images{part}/amos_{n:04d}.nii.gz", ramp)
            volume(root / f"labels{part}/amos_{n:04d}.nii.gz", (ramp > 60).astype(np.uint8))
    found, source = opened(root)
    assert len(set(source.case_ids())) == 5
    assert found.parts() == {
        f"images{p}/amos_{n:04d}": part for p, part, ns in (("Tr", "train", (0, 1, 4)), ("Va", "val", (8, 9))) for n in ns
    }
    (root / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "spleen"}, "channel_names": {"0": "CT"}}))
    described = detect(root)
    assert (described.layout, described.labels, len(described.pairs)) == ("nnU-Net (dataset.json)", {"spleen": [1]}, 5)


def test_masks_of_another_format_in_other_folders_have_the_name_or_the_number_of_their_image(tmp_path):
    ramp = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    for n in (1, 2, 3):
        head = "NDims = 3\nBinaryData = True\nElementSpacing = 1 1 1\nDimSize = 6 5 4\nElementType = MET_SHORT\n"
        for contrast in ("adc", "t2w"):
            path = tmp_path / f"named/public/{n}/{n}_100{n}_{contrast}.mha"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{head}ElementDataFile = LOCAL\n".encode() + ramp.tobytes(order="F"))
        labels = nibabel.Nifti1Image((ramp > 60).astype(np.uint8), np.diag([-1, -1, 1, 1]))
        target = tmp_path / f"named/drawn/by/expert/{n}_100{n}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(labels, target)
        write_series(
            tmp_path / f"numbered/P_{n:04d}/study/scan",
            ramp.T.copy(),
            PatientID=str(n),
            StudyInstanceUID=f"1.2.{n}",
            SeriesInstanceUID=f"1.2.{n}.3",
        )
        grid = DicomFormat().read_header(tmp_path / f"numbered/P_{n:04d}/study/scan")
        target = tmp_path / f"numbered/drawn/label{n:04d}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image((ramp.T > 60).astype(np.uint8), grid.affine), target)
    found, source = opened(tmp_path / "named")
    assert [(pair.image.path.name, pair.masks[0].path.name) for pair in found.pairing.pairs] == [
        (f"{n}_100{n}_t2w.mha", f"{n}_100{n}.nii.gz") for n in (1, 2, 3)
    ]
    assert sum(areas(source)) == 3 * int((ramp > 60).sum())
    found, source = opened(tmp_path / "numbered")
    assert [pair.masks[0].path.name for pair in found.pairing.pairs] == [f"label{n:04d}.nii.gz" for n in (1, 2, 3)]
    assert sum(areas(source)) == 3 * int((ramp > 60).sum())


def test_images_below_a_case_whose_mask_lies_above_them_are_found(tmp_path):
    ramp = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    for case in ("Utrecht/0", "Utrecht/2", "Paris/9"):
        for name in ("orig/FLAIR", "orig/T1"):
            volume(tmp_path / f"data/{case}/{name}.nii.gz", ramp)
        volume(tmp_path / f"data/{case}/wmh.nii.gz", (ramp > 60).astype(np.uint8))
    found, source = opened(tmp_path / "data")
    assert (found.pairing.images.text, found.pairing.masks.text) == ("{name}/orig/FLAIR", "{name}/wmh")
    assert sum(areas(source)) == 3 * int((ramp > 60).sum())


def series_with_slices(root, names):
    """Two series of three slices whose n-th slice by position is the n-th by name, and a mask a slice."""
    values = np.arange(3 * 20 * 20, dtype=np.int16).reshape(3, 20, 20)
    for n in (1, 2):
        write_series(
            root / f"CT/{n}/DICOM_anon", values, PatientID=str(n), StudyInstanceUID=f"1.2.{n}", SeriesInstanceUID=f"1.2.{n}.3"
        )
        for place, name in enumerate(names):
            put(root / f"CT/{n}/Ground/{name}.png", np.roll(MASK, place, axis=0))
    return root


def test_masks_that_are_images_a_slice_lie_on_their_slices(tmp_path):
    found, source = opened(series_with_slices(tmp_path / "data", ["liver_GT_8", "liver_GT_9", "liver_GT_10"]))
    assert type(found.pairing.mask_format) is SliceImages
    header = DicomFormat().read_header(tmp_path / "data/CT/1/DICOM_anon")
    by_file = sorted(range(3), key=lambda place: header.slices[place].path.name)
    read = SliceImages().read_labels_on(tmp_path / "data/CT/1/Ground", header)
    for order, place in enumerate(by_file):
        np.testing.assert_array_equal(read[place], np.roll(MASK, order, axis=0))
    assert areas(source) == [56] * 6
    # What is read and remembered as checked are files, never folders.
    assert [path.suffix for path in source.files(0)] == [".dcm"] * 3 + [".png"] * 3
    (tmp_path / "data/CT/2/Ground/liver_GT_9.png").unlink()
    with pytest.raises(DataError, match=r"holds 2 masks for the 3 slices of"):
        source.open(tmp_path / "data")


def test_slices_masks_are_written_under_the_names_of_their_slices(tmp_path):
    root = series_with_slices(tmp_path, ["a", "b", "c"])
    header = DicomFormat().read_header(root / "CT/1/DICOM_anon")
    labels = np.arange(3 * 20 * 20).reshape(3, 20, 20).astype(np.uint8) % 5
    form = SliceImages()
    written = form.write_labels(tmp_path / "out", labels, header)
    assert sorted(path.stem for path in written.iterdir()) == sorted(each.path.stem for each in header.slices)
    np.testing.assert_array_equal(form.read_labels_on(written, header), labels)


def test_series_of_masks_are_classes(tmp_path):
    values = np.arange(3 * 20 * 20, dtype=np.int16).reshape(3, 20, 20)
    inside = np.stack([MASK] * 3).astype(np.int16)
    for n in (1, 2):
        for place, (name, held) in enumerate(
            (("PATIENT", values), ("MASKS/liver", inside), ("MASKS/bone", np.roll(inside, 8, 1)))
        ):
            uid = f"1.2.{n}.{place + 3}"
            write_series(
                tmp_path / f"data/{n}/{name}", held, PatientID=str(n), StudyInstanceUID=f"1.2.{n}", SeriesInstanceUID=uid
            )
    found, source = opened(tmp_path / "data", "per_class")
    assert list(found.rule.labels) == ["bone", "liver"]
    assert [int(source[0].masks[k].sum()) for k in (0, 1)] == [56, 56]


CORNERS = ((2, 2), (8, 2), (8, 8), (2, 8))
POINTS = ";".join(f"{x}.0,{y}.0" for x, y in CORNERS)
DRAWN = {
    "CVAT XML": lambda root: (root / "annotations.xml").write_text(
        "<annotations>"
        + "".join(f'<image name="sub/{n}.png"><polygon label="cell" points="{POINTS}"/></image>' for n in "ab")
        + "</annotations>"
    ),
    "VGG Image Annotator": lambda root: (root / "via.json").write_text(
        json.dumps(
            {
                f"{n}.png77": {
                    "filename": f"{n}.png",
                    "regions": [
                        {
                            "shape_attributes": {
                                "name": "polygon",
                                "all_points_x": [x for x, _ in CORNERS],
                                "all_points_y": [y for _, y in CORNERS],
                            },
                            "region_attributes": {"kind": "cell"},
                        }
                    ],
                }
                for n in "ab"
            }
        )
    ),
    "Supervisely": lambda root: [
        (root / f"ann/{n}.png.json").write_text(
            json.dumps(
                {
                    "objects": [
                        {"classTitle": "cell", "geometryType": "polygon", "points": {"exterior": CORNERS, "interior": []}}
                    ]
                }
            )
        )
        for n in "ab"
    ],
    "ImageScope XML": lambda root: [
        (root / f"ann/{n}.xml").write_text(
            '<Annotations><Annotation Id="1" Name="cell"><Regions><Region><Vertices>'
            + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in CORNERS)
            + "</Vertices></Region></Regions></Annotation></Annotations>"
        )
        for n in "ab"
    ],
}


@pytest.mark.parametrize("tool", DRAWN)
def test_polygons_of_annotation_tools_are_read(tmp_path, tool):
    root = write(tmp_path / "data", "img/a.png", "img/b.png")
    (root / "ann").mkdir()
    DRAWN[tool](root)
    found, source = opened(root)
    assert found.pairing.layout == tool
    assert found.pairing.written["categories"] == [{"id": 1, "name": "cell"}]
    # A square from 2 to 8 holds the 36 pixels whose centres are inside.
    assert areas(source) == [36, 36]


def test_shapes_without_an_area_and_entities_are_refused(tmp_path):
    root = write(tmp_path / "data", "a.png", "b.png")
    text = '<annotations><image name="a.png"><polyline label="x" points="1,1;2,2"/></image></annotations>'
    (root / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=r"CVAT XML files hold shapes that are no plain areas \(1 of polyline\)"):
        detect(root)
    (root / "annotations.xml").write_text(f'<!DOCTYPE x [<!ENTITY a "b">]>{text}')
    with pytest.raises(DataError, match="no images with masks were found"):
        detect(root)


TABLES = {
    "class_dict.csv": "name,r,g,b\nBackground,0,0,0\nTumour,128,0,0\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\nTumour:128,0,0::\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_colours_are_called_as_a_table_beside_them_calls_them(tmp_path, name):
    root = tmp_path / "data"
    colours = np.zeros((20, 20, 3), np.uint8)
    colours[MASK > 0] = (128, 0, 0)
    colours[0, 0] = (1, 2, 3)
    for n in (1, 2):
        put(root / f"images/{n}.png", np.stack([IMAGE, IMAGE.T, IMAGE], axis=-1))
        put(root / f"masks/{n}.png", colours)
    (root / name).write_text(TABLES[name])
    found, _ = opened(root)
    assert found.rule.labels == {"colour_010203": [1, 2, 3], "Tumour": [128, 0, 0]}


def test_values_are_called_as_roboflow_calls_them(tmp_path):
    root = write(tmp_path / "data", "train/1.png", "train/2.png")
    for n in (1, 2):
        put(root / f"train/{n}_mask.png", (MASK > 0) * np.uint8(1) + (np.roll(MASK, 8, axis=0) > 0) * np.uint8(2))
    (root / "train/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, lumen\n2, wall\n")
    found, _ = opened(root)
    assert found.rule.labels == {"lumen": [1], "wall": [2]}


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (["Image_01L", "Image_01R", "Image_02L", "Image_02R"], ["Image_01", "Image_02"]),
        (["d/p01/p01_2CH_ED", "d/p01/p01_4CH_ES", "d/p02/p02_2CH_ED"], ["p01", "p02"]),
        (["t/t01/pre/t01_01_flair", "t/t01/pre/t01_02_flair", "t/t02/pre/t02_01_flair"], ["t01", "t02"]),
    ],
)
def test_sides_and_folders_that_files_are_called_after_are_patients(names, patients):
    from medsam_tune.data.patients import patients_of

    found = likely_patients(names)
    assert sorted(set(patients_of(dict.fromkeys(names), found.pattern).values())) == patients


def test_numbered_parts_of_a_collection_are_no_patients():
    assert likely_patients(["TrainingData_Part1/Case00", "TrainingData_Part1/Case01", "TrainingData_Part2/Case02"]) is None
