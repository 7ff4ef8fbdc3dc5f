import json

import pytest

from medsam_tune.errors import DataError
from medsam_tune.inference.prompt_files import DrawnObject, read_prompts


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_boxes_of_a_table(tmp_path):
    path = write(tmp_path, "boxes.csv", "image, x1, y1, x2, y2, label, slice\na.png,1,2,3.5,4,liver,\nct,0,0,9,9,,7\n")
    assert read_prompts(path, "boxes") == [
        DrawnObject("a.png", None, "liver", (1, 2, 3.5, 4)),
        DrawnObject("ct", 7, "", (0, 0, 9, 9)),
    ]


def test_json_says_the_same_as_a_table(tmp_path):
    rows = [{"image": "a.png", "x1": 1, "y1": 2, "x2": 3, "y2": 4, "label": 2}]
    path = write(tmp_path, "boxes.json", json.dumps(rows))
    assert read_prompts(path, "boxes") == [DrawnObject("a.png", None, "2", (1, 2, 3, 4))]


def test_a_coco_box_ends_on_its_last_pixel(tmp_path):
    coco = {
        "images": [{"id": 5, "file_name": "a.png"}],
        "annotations": [{"image_id": 5, "bbox": [10, 20, 1, 30], "category_id": 3}],
        "categories": [{"id": 3, "name": "lesion"}],
    }
    path = write(tmp_path, "coco.json", json.dumps(coco))
    assert read_prompts(path, "boxes") == [DrawnObject("a.png", None, "lesion", (10, 20, 10, 49))]


def test_points_of_one_object_belong_together(tmp_path):
    text = "image,x,y,label,object,slice\na,1,2,1,,\na,3,4,0,,\na,5,6,,second,\na,7,8,1,,3\n"
    assert read_prompts(write(tmp_path, "points.csv", text), "points") == [
        DrawnObject("a", points=((1, 2, 1), (3, 4, 0))),
        DrawnObject("a", label="second", points=((5, 6, 1),)),
        DrawnObject("a", 3, points=((7, 8, 1),)),
    ]


@pytest.mark.parametrize(
    ("name", "text", "kind", "said"),
    [
        ("a.csv", "image,x1,y1,x2,y2\n", "boxes", r"a\.csv: holds no boxes"),
        ("a.csv", "image,x1,y1,x2,y2\na,1,2,three,4\n", "boxes", r"row 1: expected a number in 'x2', got 'three'"),
        ("a.csv", "image,x1,y1,x2\na,1,2,3\n", "boxes", r"row 1: expected a number in 'y2', got None"),
        ("a.csv", "image,x1,y1,x2,y2\na,1,2,nan,4\n", "boxes", r"expected a number in 'x2', got 'nan'"),
        ("a.csv", "file,x,y\na,1,2\n", "points", r"row 1: has no 'image'\. Columns found: file, x, y"),
        ("a.csv", "image,x,y,label\na,1,2,5\n", "points", r"row 1: label of a point is 1 .* got '5'"),
        ("a.json", "[1]", "points", r"expected a list of objects with the keys image, x, y"),
        ("a.json", '{"images": [{}], "annotations": []}', "boxes", r"is no COCO file of boxes \(KeyError: 'id'\)"),
    ],
)
def test_faulty_files_are_named_with_their_row(tmp_path, name, text, kind, said):
    with pytest.raises(DataError, match=said):
        read_prompts(write(tmp_path, name, text), kind)
