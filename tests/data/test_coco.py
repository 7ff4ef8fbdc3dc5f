import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from medsam_tune.data import CocoImages
from medsam_tune.errors import DataError, RecipeError

# 6 rows and 8 columns.
SIZE = [6, 8]
BOX = [1, 1, 5, 1, 5, 4, 1, 4]
CATEGORIES = [{"id": 7, "name": "nucleus"}, {"id": 3, "name": "wall"}]


def runs(mask, *, packed):
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    if packed:
        return {"size": SIZE, "counts": found["counts"].decode()}
    flat = mask.ravel(order="F").astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    return {"size": SIZE, "counts": [0, *counts] if flat[0] else counts}


def written(root, annotations, **changes):
    (root / "images").mkdir(exist_ok=True)
    for name in "ab":
        Image.fromarray(np.full(SIZE, 9, np.uint8)).save(root / "images" / f"{name}.png")
    images = [{"id": number, "file_name": f"{name}.png", "height": 6, "width": 8} for number, name in enumerate("ab")]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES, **changes}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def opened(root, target="per_label", **settings):
    source = CocoImages(**settings)
    source.target = target
    source.open(root)
    return source


def annotation(segmentation, category=7, image=0, **more):
    return {"id": 1, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


def test_polygons_and_run_lengths_are_the_same_objects(tmp_path):
    mask = np.zeros(SIZE, bool)
    mask[1:4, 1:5] = True
    shapes = [[BOX], runs(mask, packed=False), runs(mask, packed=True)]
    for shape in shapes:
        sample = opened(written(tmp_path, [annotation(shape)]))[0]
        np.testing.assert_array_equal(sample.masks.dense().numpy(), mask[None])
    assert sample.labels.tolist() == [1]


@pytest.mark.parametrize("seed", range(4))
def test_packed_run_lengths_are_those_of_pycocotools(tmp_path, seed):
    mask = np.random.default_rng(seed).random(SIZE) < 0.5
    sample = opened(written(tmp_path, [annotation(runs(mask, packed=True))]))[0]
    np.testing.assert_array_equal(sample.masks.dense()[0].numpy(), mask)


def test_objects_that_overlap_are_instances_or_one_label(tmp_path):
    root = written(tmp_path, [annotation([BOX]), annotation([[0, 0, 3, 0, 3, 3, 0, 3]]), annotation([BOX], category=3)])
    each = opened(root, "per_instance")[0]
    assert (len(each.masks), each.object_ids.tolist(), each.labels.tolist()) == (3, [1, 2, 3], [1, 1, 2])
    together = opened(root)[0]
    # By hand: 12 and 9 pixels share 4.
    assert (together.labels.tolist(), together.masks.dense().sum(dim=(1, 2)).tolist()) == ([1, 2], [17, 12])
    assert opened(root).label_names() == {1: "nucleus", 2: "wall"}
    assert opened(root)[1].masks.shape == (0, 6, 8)


def test_groups_name_categories(tmp_path):
    root = written(tmp_path, [annotation([BOX]), annotation([[0, 0, 3, 0, 3, 3, 0, 3]], category=3)])
    source = opened(root, labels={"cell": ["nucleus", "wall"]})
    assert (source.label_names(), source[0].masks.dense().sum().item()) == ({1: "cell"}, 17)
    with pytest.raises(RecipeError, match="'nuclei' is no name of the categories"):
        opened(root, labels={"cell": ["nuclei"]})[0]


def test_crowds_are_ignored(tmp_path):
    crowd = np.zeros(SIZE, bool)
    crowd[:, 6:] = True
    root = written(tmp_path, [annotation([BOX]), annotation(runs(crowd, packed=False), iscrowd=1)])
    sample = opened(root)[0]
    np.testing.assert_array_equal(sample.ignored.numpy(), crowd)
    assert sample.masks.dense().sum() == 12


@pytest.mark.parametrize(
    ("annotations", "changes", "message"),
    [
        ([annotation([BOX], image=9)], {}, r"is no COCO file \(KeyError"),
        ([annotation([BOX], category=9)], {}, r"is no COCO file \(KeyError"),
        (
            [],
            {"images": [{"id": 0, "file_name": "gone.png", "height": 6, "width": 8}]},
            r"names 1 images that are not there: .*gone",
        ),
        ([], {"images": [{"id": 0, "file_name": "a.png", "height": 6, "width": 8}]}, r"says nothing of 1 images: b\.png"),
    ],
)
def test_a_file_that_does_not_fit_its_images_is_refused(tmp_path, annotations, changes, message):
    with pytest.raises(DataError, match=rf"annotations\.json: {message}"):
        opened(written(tmp_path, annotations, **changes))


@pytest.mark.parametrize(
    "shape",
    [
        [[1, 1, 2, 2]],
        {"size": SIZE, "counts": [5, 5]},
        {"size": [8, 6], "counts": [48]},
        {"size": SIZE, "counts": "zzzz"},
        {"counts": [48]},
    ],
)
def test_a_shape_that_is_none_is_named(tmp_path, shape):
    with pytest.raises(DataError, match=r"annotations\.json: annotation 1 cannot be read"):
        opened(written(tmp_path, [annotation(shape)]))[0]


def test_image_of_another_size_is_refused(tmp_path):
    root = written(tmp_path, [])
    Image.fromarray(np.zeros((5, 8), np.uint8)).save(root / "images/a.png")
    with pytest.raises(DataError, match=r"a\.png: is 5 x 8 \(H x W\), annotations\.json says 6 x 8"):
        opened(root)
