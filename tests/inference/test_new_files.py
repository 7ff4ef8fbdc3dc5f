import os

import numpy as np
import pytest
from PIL import Image

from medsam_tune.errors import DataError, RecipeError
from medsam_tune.inference.new_files import check_place, find_files, masks_in, match_prompts
from medsam_tune.inference.prompt_files import DrawnObject


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.png", "sub/b.tif", "c.txt"], ["a", "sub/b"]),
        (["images/a.png", "masks/a.png"], ["a"]),
        (["imagesTr/x_0000.nii.gz", "imagesTs/a_0000.nii.gz", "imagesTs/b_0000.nii.gz"], ["a", "b"]),
        (["imagesTs/a_0000.png"], ["a"]),
        (["imgs/a.npy", "gts/a.npy"], ["a"]),
        (["v.nii", "w.npz"], ["v", "w"]),
        (["film_0000.png"], ["film_0000"]),
        (["x_0000.nii.gz", "x_0001.nii.gz"], ["x_0000", "x_0001"]),
    ],
)
def test_images_are_found_in_every_usual_layout(tmp_path, files, expected):
    assert [file.name for file in find_files(touch(tmp_path, *files))] == expected


@pytest.mark.parametrize(
    ("files", "left_out"),
    [
        (["a.png", "a_mask.png", "b.png", "b_mask.png", "c.png"], ["a_mask.png", "b_mask.png"]),
        (["p1/img/1.png", "p1/seg/1.png", "p2/img/1.png", "p2/seg/1.png"], ["p1/seg/1.png", "p2/seg/1.png"]),
        (["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], ["labelsTr/a.nii.gz"]),
        (
            ["sub-1/anat/sub-1_T1w.nii.gz", "derivatives/m/sub-1/anat/sub-1_dseg.nii.gz"],
            ["derivatives/m/sub-1/anat/sub-1_dseg.nii.gz"],
        ),
        (["a_mask.png", "b_mask.png"], []),
        (["a.png", "b.png", "sub/a.png"], []),
    ],
)
def test_masks_among_the_images_of_a_folder_are_left_out_by_their_names(tmp_path, files, left_out):
    place = touch(tmp_path, *files)
    masks = masks_in(place)
    assert sorted(path.relative_to(place).as_posix() for path in masks) == left_out
    assert len(find_files(place, without=masks)) == len(files) - len(left_out)
    assert masks_in(place / files[0]) == frozenset()


def test_masks_that_no_word_tells_are_left_out_by_their_pixels(tmp_path):
    grey = np.arange(900, dtype=np.uint8).reshape(30, 30)
    for name, pixels in (("a.png", grey), ("a_lumen.png", (grey > 99) * 255), ("a_wall.png", (grey > 200) * 255)):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name.replace("a", "b", 1))
    assert [file.name for file in find_files(tmp_path, without=masks_in(tmp_path))] == ["a", "b"]


def test_one_file_is_taken_alone_and_its_mask_is_called_as_the_case(tmp_path):
    (file,) = find_files(touch(tmp_path, "a_0000.nii.gz", "b_0000.nii.gz") / "a_0000.nii.gz")
    assert file.written(tmp_path / "out") == tmp_path / "out" / "a.nii.gz"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], r"holds no file with one of the endings \.nii"),
        (["a.png", "a.jpg"], r"a: several files of that name would have one mask file"),
        (["a.nii", "a.nii.gz"], r"a: several files of that name"),
        (["imagesTs/a_0000.nii.gz", "imagesTs/a_0001.nii.gz"], r"imagesTs: a: cases of several channels"),
    ],
)
def test_places_that_cannot_be_answered_are_refused(tmp_path, files, said):
    with pytest.raises(DataError, match=said):
        find_files(touch(tmp_path, *files))
    with pytest.raises(DataError, match=r"gone: no such file or folder"):
        find_files(tmp_path / "gone")


def test_the_input_is_never_written_into(tmp_path):
    place = touch(tmp_path / "in", "a.png")
    (tmp_path / "link").symlink_to(place)
    for out in (place, place / "sub", tmp_path / "link" / "sub"):
        with pytest.raises(RecipeError, match=r"-o: .* lies in the input folder"):
            check_place(place, out)
    with pytest.raises(RecipeError, match=r"-o: .*a\.png: is a file"):
        check_place(tmp_path / "other", place / "a.png")
    check_place(place, tmp_path / "out")


def test_prompts_find_their_file_by_every_name_it_goes_by(tmp_path):
    files = find_files(touch(tmp_path, "imagesTs/p1/a_0000.nii.gz", "imagesTs/p2/b_0000.nii.gz"))
    path = tmp_path / "imagesTs/p1/a_0000.nii.gz"
    for name in ("p1/a", "a", "p1/a.nii.gz", "a_0000.nii.gz", "a_0000", os.fspath(path)):
        assert list(match_prompts(files, [DrawnObject(name)], tmp_path)) == [path]


def test_names_without_a_file_or_with_two_are_refused(tmp_path):
    files = find_files(touch(tmp_path, "a.png", "sub/a.png", "sub/b.png"))
    with pytest.raises(DataError, match=r"2 names belong to no file, or to several: a\.png, x"):
        match_prompts(files, [DrawnObject("a.png"), DrawnObject("x"), DrawnObject("b")], tmp_path)
