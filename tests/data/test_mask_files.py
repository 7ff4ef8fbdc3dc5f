import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.data import ImageFolder, SegmentationDataModule
from medsam_tune.data.checks import check_cases
from medsam_tune.data.mask_files import NamePattern
from medsam_tune.errors import DataError, DataWarning, RecipeError
from medsam_tune.geometry import InputRule

GREY = np.zeros((2, 4), np.uint8)
LEFT = np.array([[255, 255, 0, 0], [0, 0, 0, 0]], np.uint8)
MIDDLE = np.array([[0, 9, 9, 0], [0, 0, 0, 0]], np.uint8)
RIGHT = np.array([[0, 0, 0, 1], [0, 0, 0, 0]], np.uint8)


def opened(root, *, target="per_label", ignore_label=None, **settings):
    source = ImageFolder(**settings)
    source.target, source.ignore_label = target, ignore_label
    source.open(root)
    return source


SUFFIX = "^(.+)_(?P<label>lumen|wall)$"


def test_one_file_a_class_beside_each_other(image_folder):
    source = opened(image_folder({"x.png": GREY}, {"x_lumen.png": LEFT, "x_wall.png": RIGHT}), mask_pattern=SUFFIX)
    assert source.label_names() == source.named_labels() == {1: "lumen", 2: "wall"}
    sample = source[0]
    assert (sample.image_id, sample.labels.tolist()) == ("x", [1, 2])
    assert torch.equal(sample.masks.dense(), torch.from_numpy(np.stack([LEFT, RIGHT]) > 0))
    assert {path.name for path in source.files(0)} == {"x.png", "x_lumen.png", "x_wall.png"}


def test_images_and_class_files_may_share_a_folder(image_folder):
    root = image_folder({"x.png": GREY, "x_lumen.png": LEFT, "x_wall.png": RIGHT}, {})
    source = opened(root, masks="images", mask_pattern=SUFFIX)
    assert (source.image_ids(), source[0].labels.tolist()) == (("x",), [1, 2])


def test_one_folder_a_class(image_folder):
    root = image_folder({"p1/x.png": GREY}, {"lumen/p1/x.png": LEFT, "wall/p1/x.png": MIDDLE})
    source = opened(root, mask_pattern="^(?P<label>[^/]+)/(.+)$")
    assert source.image_ids() == ("p1/x",)
    # The two overlap in one pixel, and both keep it.
    assert source[0].masks.dense().flatten(1).sum(dim=1).tolist() == [2, 2]


def test_classes_that_overlap_are_refused_before_training_where_a_pixel_has_one_class(image_folder):
    root = image_folder({"x.png": GREY}, {"lumen/x.png": LEFT, "wall/x.png": MIDDLE})
    source = opened(root, target="per_class", mask_pattern="^(?P<label>[^/]+)/(.+)$")
    with pytest.raises(DataError, match=r"x: a pixel belongs to two labels, but data\.target: per_class"):
        check_cases(source)
    check_cases(opened(root, target="per_label", mask_pattern="^(?P<label>[^/]+)/(.+)$"))


def test_labels_group_and_order_classes_of_files(image_folder):
    root = image_folder({"x.png": GREY}, {"x_lumen.png": LEFT, "x_wall.png": MIDDLE})
    source = opened(root, mask_pattern=SUFFIX, labels={"wall": ["wall"], "vessel": ["lumen", "wall"]})
    assert source.label_names() == {1: "wall", 2: "vessel"}
    assert source[0].masks.dense().flatten(1).sum(dim=1).tolist() == [2, 3]
    with pytest.raises(RecipeError, match=r"labels\.a: 'clot' is no name of the mask files, which has \['lumen', 'wall'\]"):
        opened(root, mask_pattern=SUFFIX, labels={"a": ["clot"]})


def test_an_image_without_a_file_of_some_class_shows_none_of_it_and_that_is_said(image_folder):
    root = image_folder({"x.png": GREY, "y.png": GREY}, {"x_lumen.png": LEFT, "x_wall.png": RIGHT, "y_wall.png": RIGHT})
    with pytest.warns(DataWarning, match="2 images have masks, but no file: 1 for lumen. They count as showing none"):
        source = opened(root, mask_pattern=SUFFIX)
    assert source[1].labels.tolist() == [2]


def test_one_file_an_instance_is_one_row_each_even_in_two_pieces(image_folder):
    broken = np.array([[7, 0, 0, 7], [0, 0, 0, 0]], np.uint8)
    root = image_folder({}, {})
    for name, values in {"n1/images/n1.png": GREY, "n1/masks/3f.png": broken, "n1/masks/a0.png": MIDDLE}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / name)
    (root / "images").rmdir()
    (root / "masks").rmdir()
    rules = {
        "images": ".",
        "masks": ".",
        "image_pattern": "^([^/]+)/images/",
        "mask_pattern": "^([^/]+)/masks/(?P<instance>.+)$",
    }
    sample = opened(root, target="per_instance", **rules)[0]
    assert (sample.image_id, sample.labels.tolist(), sample.object_ids.tolist()) == ("n1", [1, 1], [1, 2])
    assert torch.equal(sample.masks.dense(), torch.from_numpy(np.stack([broken, MIDDLE]) > 0))
    joined = opened(root, target="binary", **rules)[0]
    assert (joined.labels.tolist(), joined.object_ids, int(joined.masks.dense().sum())) == ([1], None, 4)


def test_files_of_a_class_may_number_their_instances(image_folder):
    numbers = np.array([[300, 300, 4, 4], [0, 0, 0, 0]], np.uint16)
    root = image_folder({"x.png": GREY}, {"x_lumen.png": numbers, "x_wall.png": RIGHT})
    sample = opened(root, target="per_instance", mask_pattern=SUFFIX)[0]
    assert (sample.labels.tolist(), sample.object_ids.tolist()) == ([1, 1, 2], [1, 2, 3])


def test_unannotated_pixels_of_any_file_are_unknown_to_all(image_folder):
    unknown = np.array([[1, 0, 0, 77], [0, 0, 0, 0]], np.uint8)
    root = image_folder({"x.png": GREY}, {"x_lumen.png": unknown, "x_wall.png": MIDDLE})
    sample = opened(root, ignore_label=77, mask_pattern=SUFFIX)[0]
    assert sample.ignored.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert sample.masks.dense().flatten(1).sum(dim=1).tolist() == [1, 2]


def test_images_and_masks_of_one_tree_pair_by_all_their_brackets(image_folder):
    root = image_folder({"p1/img/s1.png": GREY, "p1/seg/s1.png": LEFT, "p2/img/s1.png": GREY, "p2/seg/s1.png": RIGHT}, {})
    source = opened(root, masks="images", image_pattern="^([^/]+)/img/(.+)$", mask_pattern="^([^/]+)/seg/(.+)$")
    assert source.image_ids() == ("p1/s1", "p2/s1")
    assert [int(source[index].masks.dense().sum()) for index in (0, 1)] == [2, 1]


def test_folders_of_classes_may_lie_beside_the_images_and_masks_below_them(image_folder):
    root = image_folder({"x.png": GREY}, {"x.png": LEFT})
    (root / "masks").rename(root / "lumen")
    source = opened(root, masks=".", mask_pattern="^(?P<label>lumen|wall)/(.+)$")
    assert (source.image_ids(), source.label_names()) == (("x",), {1: "lumen"})
    (root / "lumen").rename(root / "images" / "masks")
    assert opened(root, masks="images/masks").image_ids() == ("x",)


def test_names_with_a_prefix_pair_and_strangers_are_refused(image_folder):
    root = image_folder({"img_1.png": GREY, "mask_1.png": LEFT, "thumb.png": GREY}, {})
    rules = {"masks": "images", "mask_pattern": "^mask_(.+)$", "image_pattern": "^img_(.+)$"}
    with pytest.raises(DataError, match=r"thumb\.png: 1 files match neither data\.source\.image_pattern nor"):
        opened(root, **rules)
    (root / "images" / "thumb.png").unlink()
    assert opened(root, **rules).image_ids() == ("1",)


def test_two_files_for_one_image_and_class_are_refused(image_folder):
    root = image_folder({"x.png": GREY}, {"x_wall.png": LEFT, "x_wall.tif": LEFT})
    with pytest.raises(DataError, match=r"x_wall\.tif: is for the same image 'x' and label as .*x_wall\.png"):
        opened(root, mask_pattern=SUFFIX)


def test_a_file_that_the_pattern_does_not_know_is_refused(image_folder):
    root = image_folder({"x.png": GREY}, {"x_wall.png": LEFT, "x_clot.png": LEFT})
    with pytest.raises(
        DataError, match=r"x_clot\.png: mask name does not match '.*lumen\|wall.*change data\.source\.mask_pattern"
    ):
        opened(root, mask_pattern=SUFFIX)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"mask_pattern: '\(' is no regular expression"),
        ("^(?P<label>a|b)$", "has no plain bracket"),
        ("^(.+)_(?P<klass>a|b)$", r"are called \['klass'\]. Only label and instance may be"),
    ],
)
def test_a_pattern_that_tells_no_image_is_refused(pattern, message):
    with pytest.raises(RecipeError, match=message):
        NamePattern("data.source.mask_pattern", pattern)


def test_every_class_is_known_by_the_names_of_the_files(image_folder):
    names = [f"x{k}" for k in range(6)]
    root = image_folder(
        {f"{name}.png": GREY for name in names},
        {f"{name}_{kind}.png": LEFT if kind == "lumen" else RIGHT for name in names for kind in ("lumen", "wall")},
    )
    data = SegmentationDataModule(ImageFolder(mask_pattern=SUFFIX), str(root), target="per_class", cache_embeddings=False)
    data.open(InputRule(side=64))
    assert data.label_names == {1: "lumen", 2: "wall"}
    assert data.dataset("train")[0].names == ("lumen", "wall")
