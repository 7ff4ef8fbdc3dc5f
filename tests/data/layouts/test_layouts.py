"""Twenty folders as people have them: each is found as what it is, by the names alone."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsam_tune.data.layouts import detect, pairing_of_patterns
from medsam_tune.errors import DataError, RecipeError

IMAGE = np.arange(400, dtype=np.uint8).reshape(20, 20) % 251
MASK = np.zeros((20, 20), np.uint8)
MASK[5:12, 6:14] = 255


def write(root, *names):
    """Write masks where a name says mask-like things after ``=``, images elsewhere."""
    for name in names:
        path, _, kind = name.partition("=")
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        values = MASK if kind else IMAGE
        if file.name.endswith((".nii.gz", ".nii")):
            nibabel.save(nibabel.Nifti1Image(np.stack([values] * 3, axis=2), np.eye(4)), file)
        else:
            Image.fromarray(values).save(file)
    return root


PAIRED = {
    "two folders": (["images/1.png", "images/2.png", "masks/1.png=m", "masks/2.png=m"], "images/{name}", "masks/{name}"),
    "other endings and cases": (
        ["Images/1.JPG", "Images/2.jpeg", "Masks/1.PNG=m", "Masks/2.png=m"],
        "Images/{name}",
        "Masks/{name}",
    ),
    "img and gt": (["img/1.png", "img/2.png", "gt/1.png=m", "gt/2.png=m"], "img/{name}", "gt/{name}"),
    "words of two parts": (
        ["Original/1.png", "Original/2.png", "Ground Truth/1.png=m", "Ground Truth/2.png=m"],
        "Original/{name}",
        "Ground Truth/{name}",
    ),
    "suffix": (["a.png", "a_mask.png=m", "b.png", "b_mask.png=m"], "{name}", "{name}_mask"),
    "prefix": (["1.png", "2.png", "mask_1.png=m", "mask_2.png=m"], "{name}", "mask_{name}"),
    "both words": (["img_1.png", "img_2.png", "mask_1.png=m", "mask_2.png=m"], "img_{name}", "mask_{name}"),
    "glued words": (["img01.png", "img02.png", "label01.png=m", "label02.png=m"], "img{name}", "label{name}"),
    "an image's word in a mask's name": (
        ["images/image_1.png", "images/image_2.png", "masks/image_1.png=m", "masks/image_2.png=m"],
        "images/{name}",
        "masks/{name}",
    ),
    "a folder a patient": (
        ["p1/img/1.png", "p1/seg/1.png=m", "p2/img/1.png", "p2/img/2.png", "p2/seg/1.png=m", "p2/seg/2.png=m"],
        "{folder}/img/{name}",
        "{folder}/seg/{name}",
    ),
    "a folder a case, fixed names": (
        ["p1/image.nii.gz", "p1/seg.nii.gz=m", "p2/image.nii.gz", "p2/seg.nii.gz=m"],
        "{name}/image",
        "{name}/seg",
    ),
    "parts": (
        ["train/images/1.png", "train/masks/1.png=m", "val/images/2.png", "val/masks/2.png=m"],
        "{folder}/images/{name}",
        "{folder}/masks/{name}",
    ),
    "parts before the word": (
        ["train_images/1.png", "train_masks/1.png=m", "val_images/2.png", "val_masks/2.png=m"],
        "{folder}_images/{name}",
        "{folder}_masks/{name}",
    ),
    "contrasts of BraTS": (
        [f"B_{n}/B_{n}_{kind}" for n in (1, 2) for kind in ("flair.nii", "t1.nii", "t1ce.nii", "t2.nii", "seg.nii=m")],
        "{name}",
        "{name}_seg",
    ),
    "LiTS": (
        ["volume-0.nii", "volume-1.nii", "segmentation-0.nii=m", "segmentation-1.nii=m"],
        "volume-{name}",
        "segmentation-{name}",
    ),
    "nested twice": (
        ["d/d/images/1.png", "d/d/images/2.png", "d/d/masks/1.png=m", "d/d/masks/2.png=m"],
        "d/d/images/{name}",
        "d/d/masks/{name}",
    ),
    "spaces and letters": (
        ["Hüft MR/Bild 1.png", "Hüft MR/Bild 1 Mask.png=m", "Hüft MR/Bild 2.png", "Hüft MR/Bild 2 Mask.png=m"],
        "{name}",
        "{name} Mask",
    ),
    "other folders beside": (
        ["fov/1.png=m", "fov/2.png=m", "images/1.png", "images/2.png", "masks/1.png=m", "masks/2.png=m"],
        "images/{name}",
        "masks/{name}",
    ),
    "BIDS": (
        [f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz" for n in (1, 2)]
        + [f"derivatives/manual/sub-0{n}/anat/sub-0{n}_space-orig_dseg.nii.gz=m" for n in (1, 2)],
        "{name}/anat/{name}_T1w",
        "derivatives/manual/{name}/anat/{name}_space-orig_dseg",
    ),
    "no telling word, two folders": (["a/1.png", "a/2.png", "b/1.png=m", "b/2.png=m"], "a/{name}", "b/{name}"),
    "no telling word, a suffix": (
        ["1.png", "1_vessels.png=m", "2.png", "2_vessels.png=m"],
        "{name}",
        "{name}_vessels",
    ),
}


@pytest.mark.parametrize("case", PAIRED)
def test_layout_is_found_by_its_names(tmp_path, case):
    names, images, masks = PAIRED[case]
    found = detect(write(tmp_path, *names))
    assert (found.images.text, found.masks.text) == (images, masks)
    n_masks = sum(name.endswith("=m") for name in names) - 2 * (case == "other folders beside")
    assert len(found.pairs) == n_masks
    assert found.without_mask == found.without_image == ()
    for pair in found.pairs:
        assert _numbers(pair.image.stem) == _numbers(pair.masks[0].stem)


SEVERAL = {
    "a file a class, beside each other": (
        ["a.png", "a_liver.png=m", "a_lung.png=m", "b.png", "b_liver.png=m", "b_lung.png=m"],
        ("{name}", "{name}_{label}", ("liver", "lung")),
    ),
    "a file a class, in one folder": (
        ["img/a.png", "masks/a_liver.png=m", "masks/a_lung.png=m", "img/b.png", "masks/b_liver.png=m", "masks/b_lung.png=m"],
        ("img/{name}", "masks/{name}_{label}", ("liver", "lung")),
    ),
    "a folder a class": (
        [
            "images/a.png",
            "images/b.png",
            "masks/left/a.png=m",
            "masks/right/a.png=m",
            "masks/left/b.png=m",
            "masks/right/b.png=m",
        ],
        ("images/{name}", "masks/{label}/{name}", ("left", "right")),
    ),
    "folders of classes that no word tells": (
        ["pictures/a.png", "pictures/b.png", "liver/a.png=m", "lung/a.png=m", "liver/b.png=m", "lung/b.png=m"],
        ("pictures/{name}", "{label}/{name}", ("liver", "lung")),
    ),
    "TotalSegmentator": (
        [
            f"s{n}/{file}"
            for n in (1, 2)
            for file in ("ct.nii.gz", "segmentations/liver.nii.gz=m", "segmentations/lung.nii.gz=m")
        ],
        ("{name}/ct", "{name}/segmentations/{label}", ("liver", "lung")),
    ),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_files_of_classes_are_joined(tmp_path, case):
    names, (images, masks, labels) = SEVERAL[case]
    found = detect(write(tmp_path, *names))
    assert (found.images.text, found.masks.text, found.masks.choices["label"]) == (images, masks, labels)
    assert [pair.numbers for pair in found.pairs] == [(1, 2), (1, 2)]


def test_further_masks_of_an_image_are_further_objects(tmp_path):
    found = detect(write(tmp_path, "b (1).png", "b (1)_mask.png=m", "b (1)_mask_1.png=m", "b (2).png", "b (2)_mask.png=m"))
    assert (found.masks.text, found.masks.choices["instance"]) == ("{name}_mask{instance}", ("", "_1"))
    assert [len(pair.masks) for pair in found.pairs] == [2, 1]


def _numbers(stem):
    return [letter for letter in stem.rpartition("/")[2] if letter.isdigit()][:1]


def test_nnunet_names_labels_cases_and_new_images(tmp_path):
    write(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz=m", "labelsTr/b.nii.gz=m")
    write(tmp_path, "imagesTr/c_0000.nii.gz", "imagesTs/d_0000.nii.gz")
    labels = {"background": 0, "liver": 1, "tumour": [2, 3], "ignore": 9}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}}))
    found = detect(tmp_path)
    assert (found.images.text, found.masks.text, found.new_images) == ("imagesTr/{name}_0000", "labelsTr/{name}", "imagesTs")
    assert (found.labels, found.ignore_label, found.contrast) == ({"liver": [1], "tumour": [2, 3]}, 9, "CT")
    assert [pair.name for pair in found.pairs] == ["a", "b"]
    assert [file.stem for file in found.without_mask] == ["imagesTr/c_0000"]


def test_decathlon_names_labels_the_other_way_round(tmp_path):
    write(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz=m")
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "Anterior"}, "modality": {"0": "MRI"}})
    )
    found = detect(tmp_path)
    assert (found.images.text, found.labels) == ("imagesTr/{name}", {"Anterior": [1]})


def test_of_several_channels_up_to_three_are_shown_as_colours_and_that_is_said(tmp_path):
    names = [f"imagesTr/{case}_000{channel}.nii.gz" for case in "ab" for channel in (0, 1)]
    write(tmp_path, *names, "labelsTr/a.nii.gz=m", "labelsTr/b.nii.gz=m")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"x": 1}, "channel_names": {"0": "T1", "1": "T2"}}))
    found = detect(tmp_path)
    assert [pair.image.stem for pair in found.pairs] == ["imagesTr/a_0001", "imagesTr/b_0001"]
    assert found.format.channels == ["_0001", "_0000"]
    assert "2 channels (T1, T2), of which an image shows up to three: T2 is red, T1 is green" in found.notes[0]


def test_files_of_image_and_mask_are_taken_where_they_hold_masks(tmp_path):
    np.savez(tmp_path / "a.npz", imgs=IMAGE, gts=MASK)
    np.savez(tmp_path / "b.npz", imgs=IMAGE)
    found = detect(tmp_path)
    assert [pair.name for pair in found.pairs] == ["a"]
    assert [file.stem for file in found.without_mask] == ["b"]


def test_what_has_no_partner_is_listed_and_nothing_hidden_counts(tmp_path):
    write(tmp_path, "images/1.png", "images/2.png", "masks/1.png=m", "masks/3.png=m", "images/._1.png", "__MACOSX/._1.png")
    (tmp_path / "images/Thumbs.db").write_bytes(b"x")
    found = detect(tmp_path)
    assert [pair.name for pair in found.pairs] == ["1"]
    assert [file.stem for file in found.without_mask] == ["images/2"]
    assert [file.stem for file in found.without_image] == ["masks/3"]


def test_two_ways_to_pair_are_both_named(tmp_path):
    found = detect(write(tmp_path, "images/1.png", "masks/1.png=m", "labels/1.png=m"))
    assert any("would pair 1 files too" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "it is empty"),
        (["images/1.png", "images/2.png"], "no file or folder has a word such as mask"),
        (["masks/1.png=m"], "no images with masks were found"),
        (["images/a.png", "masks/b.png=m"], "1 images and 1 masks have no names in common"),
    ],
)
def test_folder_without_pairs_says_why(tmp_path, names, text):
    with pytest.raises(DataError, match=text):
        detect(write(tmp_path, *names))


def test_files_of_other_kinds_are_named(tmp_path):
    (tmp_path / "notes.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"it holds 1 files of other kinds: \.docx"):
        detect(tmp_path)


def test_user_says_where_they_lie(tmp_path):
    write(tmp_path, "left/a_x.png", "right/a_y.png=m", "left/b_x.png")
    found = pairing_of_patterns(tmp_path, "left/{name}_x", "right/{name}_y")
    assert [pair.name for pair in found.pairs] == ["a"]
    assert [file.stem for file in found.without_mask] == ["left/b_x"]
    with pytest.raises(DataError, match="has a mask at"):
        pairing_of_patterns(tmp_path, "left/{name}_x", "right/{name}_z")
    with pytest.raises(RecipeError, match="must have the fields"):
        pairing_of_patterns(tmp_path, "left/{name}", "right/{case}")


def test_missing_folder_is_one_line():
    with pytest.raises(DataError, match="no such folder"):
        detect(Path("nowhere"))
