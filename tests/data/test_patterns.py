import numpy as np
import pytest
from PIL import Image

from medsam_tune.data import ImageFolder, VolumeSource
from medsam_tune.data.formats import RasterFormat
from medsam_tune.data.patterns import PathPattern, check_patterns, left_out, source_places
from medsam_tune.errors import DataError, RecipeError


@pytest.fixture
def patients(tmp_path):
    """Two patients of two images; the object of image n has n pixels."""
    for patient in ("p1", "p2"):
        for number in (1, 2):
            for folder in ("img", "seg"):
                path = tmp_path / patient / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                values = np.zeros((8, 8), np.uint8)
                values[0, :number] = 255
                Image.fromarray(values).save(path)
    return tmp_path


def volume_source(images, masks, mask_pattern, image_pattern=None, exclude=None):
    return VolumeSource(RasterFormat(), images, masks, mask_pattern=mask_pattern, image_pattern=image_pattern, exclude=exclude)


def test_field_that_stands_twice_holds_one_text():
    pattern = PathPattern("{case}/{case}_seg")
    assert pattern.match("a/a_seg") == {"case": "a"}
    assert pattern.match("a/b_seg") is None
    assert pattern.expression() == r"^(.+)/\1_seg$"


@pytest.mark.parametrize("kind", [ImageFolder, volume_source])
def test_what_patterns_say_both_kinds_of_source_read(patients, kind):
    places = source_places(PathPattern("{folder}/img/{name}"), PathPattern("{folder}/seg/{name}"), takes_suffix=True)
    source = kind(**places, exclude=["p1/*/2"])
    source.open(patients)
    assert source.image_ids() == ("p1/1", "p2/1", "p2/2")
    assert [int(source[index].masks.dense().sum()) for index in range(3)] == [1, 1, 2]


@pytest.mark.parametrize("kind", [ImageFolder, volume_source])
def test_mask_beside_its_image_is_no_image(patients, kind):
    for path in list(patients.glob("*/seg/*.png")):
        path.rename(path.parent.parent / "img" / f"{path.stem}_mask.png")
    source = kind(images=".", masks=".", mask_pattern="^(.+)_mask$")
    source.open(patients)
    assert source.image_ids() == ("p1/img/1", "p1/img/2", "p2/img/1", "p2/img/2")


def test_volume_whose_name_does_not_match_is_refused_or_excluded(patients):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(patients / "p1/preview.png")
    words = {"images": ".", "masks": ".", "image_pattern": "^(.+)/img/(.+)$", "mask_pattern": "^(.+)/seg/(.+)$"}
    with pytest.raises(DataError, match=r"preview.png: its name does not match .* or name it in data\.source\.exclude"):
        volume_source(**words).open(patients)
    source = volume_source(**words, exclude=["p1/preview"])
    source.open(patients)
    assert len(source) == 4


@pytest.mark.parametrize(
    ("images", "masks", "places"),
    [
        ("images/{name}", "masks/{name}", {"images": "images", "masks": "masks"}),
        ("{name}", "{name}_mask", {"images": ".", "masks": ".", "mask_suffix": "_mask"}),
        ("a/{name}", "b/{name}_m", {"images": "a", "masks": "b", "mask_suffix": "_m"}),
        ("{name}", "mask_{name}", {"images": ".", "masks": ".", "mask_pattern": "^mask_(.+)$"}),
        (
            "a/{name}.x",
            "a/{name}.y",
            {"images": "a", "masks": "a", "image_pattern": r"^(.+)\.x$", "mask_pattern": r"^(.+)\.y$"},
        ),
    ],
)
def test_folders_and_suffix_are_preferred_to_expressions(images, masks, places):
    assert source_places(PathPattern(images), PathPattern(masks), takes_suffix=True) == places


@pytest.mark.parametrize(
    ("images", "masks"), [("images", "masks"), ("{name}", "{name}"), ("{a}/{b}", "{a}"), ("x/{a}", "y/{b}")]
)
def test_patterns_that_cannot_pair_are_refused(images, masks):
    with pytest.raises(RecipeError, match="must have the fields"):
        check_patterns(images, masks)


def test_signs_of_a_name_are_no_wildcards():
    assert left_out(["a[1]", "b*"], ["c"]) == ["a[[]1]", "b[*]"]
