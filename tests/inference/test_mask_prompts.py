import numpy as np
import pytest
from PIL import Image

from medsam_tune.data.formats import NpzFormat
from medsam_tune.errors import DataError
from medsam_tune.inference.file_boxes import boxes_of_file, bring_boxes
from medsam_tune.inference.mask_prompts import prompts_of_masks
from medsam_tune.inference.new_files import NewFile, find_files
from medsam_tune.inference.trained_data import TrainedData
from tests.inference.test_writers import write_volume


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def place(tmp_path):
    """One image of 12 x 16 with a piece of value 2 and two of value 5."""
    mask = np.zeros((12, 16), np.uint8)
    mask[1:4, 2:6] = 2
    mask[8:10, 1:3] = 5
    mask[9:12, 10:15] = 5
    save(tmp_path / "in/a.png", np.zeros((12, 16), np.uint8))
    save(tmp_path / "masks/a_mask.png", mask)
    return tmp_path


FIRST, BOTH, LEFT, RIGHT = (2, 1, 5, 3), (1, 8, 14, 11), (1, 8, 2, 9), (10, 9, 14, 11)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (TrainedData(), [("2", FIRST), ("5", BOTH)]),
        (TrainedData(target="per_instance"), [("2", FIRST), ("5", BOTH)]),
        (TrainedData(labels={"vessel": (5,)}, target="per_instance"), [("1", LEFT), ("2", RIGHT)]),
        (TrainedData(target="per_instance", mask_threshold=3), [("1", LEFT), ("2", RIGHT)]),
        (TrainedData(target="binary"), [("", (1, 1, 14, 11))]),
        (TrainedData(labels={"vessel": (5,)}), [("vessel", BOTH)]),
        (TrainedData(labels={"vessel": (5,)}, target="per_class"), [("vessel", BOTH)]),
        (TrainedData(target="binary", mask_threshold=3), [("", BOTH)]),
    ],
)
def test_an_object_is_what_it_was_in_training(place, data, expected):
    files = find_files(place / "in")
    drawn = prompts_of_masks(files, place / "masks", data)(files[0])
    assert [(each.label, each.box, each.slice) for each in drawn] == [(label, box, 0) for label, box in expected]


def test_an_empty_mask_asks_nothing_and_a_missing_one_is_named(place):
    save(place / "masks/seg_b.png", np.zeros((12, 16), np.uint8))
    for name in ("b", "c"):
        save(place / f"in/{name}.png", np.zeros((12, 16), np.uint8))
    files = find_files(place / "in")
    drawn = prompts_of_masks(files, place / "masks", TrainedData())
    assert drawn(files[1]) == []
    with pytest.raises(DataError, match=r"in/c\.png: has no mask of its name in .*masks"):
        drawn(files[2])


def test_masks_of_others_are_refused(place):
    files = find_files(place / "in")
    save(place / "other/z.png", np.zeros((12, 16), np.uint8))
    with pytest.raises(DataError, match=r"--every-object-of: .* has masks named z, none of them as a file of the input: a"):
        prompts_of_masks(files, place / "other", TrainedData())
    with pytest.raises(DataError, match=r"no such file or folder"):
        prompts_of_masks(files, place / "gone", TrainedData())
    save(place / "small.png", np.zeros((12, 15), np.uint8))
    with pytest.raises(DataError, match=r"small\.png: mask is 12 x 15 \(H x W\), its image is 12 x 16"):
        prompts_of_masks(files, place / "small.png", TrainedData())(files[0])


@pytest.mark.parametrize("axis", ["axial", "sagittal"])
def test_boxes_of_a_volume_hold_its_objects_slice_by_slice(tmp_path, axis):
    labels, _ = write_volume(tmp_path)
    (file,) = find_files(tmp_path / "images")
    data = TrainedData(axis)
    drawn = prompts_of_masks([file], tmp_path / "labels", data)(file)
    header = file.format.read_header(file.path)
    turned = np.moveaxis(header.to_ras(labels), {"axial": 2, "sagittal": 0}[axis], 0)
    assert [each.slice for each in drawn] == [position for position, cut in enumerate(turned) if cut.any()]
    for each in drawn:
        rows, columns = np.nonzero(turned[each.slice].T[::-1, ::-1])
        assert each.box == (columns.min(), rows.min(), columns.max(), rows.max())


def test_the_boxes_of_an_npz_file_are_numbered_and_hold_from_slice_to_slice(tmp_path):
    path = tmp_path / "a.npz"
    boxes = np.array([[1, 2, 0, 4, 5, 1], [0, 0, 2, 3, 3, 3]])
    np.savez(path, imgs=np.zeros((3, 8, 9), np.uint8), boxes=boxes)
    file = NewFile(path, "a", NpzFormat())
    assert bring_boxes([file])
    drawn = boxes_of_file(file, TrainedData())
    assert [(each.label, each.slice, each.box) for each in drawn] == [
        ("1", 0, (1, 2, 4, 5)),
        ("1", 1, (1, 2, 4, 5)),
        ("2", 2, (0, 0, 3, 3)),
    ]
    with pytest.raises(DataError, match=r"its boxes lie on axial slices, the model reads coronal ones"):
        boxes_of_file(file, TrainedData("coronal"))
    np.savez(tmp_path / "b.npz", imgs=np.zeros((8, 9), np.uint8))
    (tmp_path / "c.npz").write_bytes(b"x")
    others = [NewFile(tmp_path / f"{name}.npz", name, NpzFormat()) for name in "cb"]
    assert not bring_boxes(others)
