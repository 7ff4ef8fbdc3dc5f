"""Inverted masks are suspected where most are, and read the other way round by one key."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsam_tune.cli import main
from medsam_tune.data import ImageFolder, NiftiVolumes, SegmentationDataModule
from medsam_tune.data.inverted import labels_the_rim, suspicion, warn_of_inverted
from medsam_tune.errors import DataWarning, RecipeError
from medsam_tune.geometry import InputRule

DISC = (np.hypot(*np.mgrid[-16:16, -16:16]) < 9).astype(np.uint8)


def folder(root, count=6, *, inverted=True, on=255):
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(count):
        mask = np.roll(DISC, number - 3, axis=1)
        Image.fromarray(mask * 90 + 30).save(root / "images" / f"c{number}.png")
        Image.fromarray((1 - mask if inverted else mask) * np.uint8(on)).save(root / "masks" / f"c{number}.png")
    return root


def opened(root, **settings):
    source = ImageFolder(**settings)
    source.open(root)
    return source


def test_object_in_the_middle_is_no_rim_and_background_is():
    assert labels_the_rim(1 - DISC)
    assert not labels_the_rim(DISC)
    assert not labels_the_rim(np.pad(np.ones((4, 4)), 9))
    # By hand: 20 of the 32 columns are labelled, so 40 + 30 of the rim's 124 pixels are not.
    assert not labels_the_rim(np.repeat(np.arange(32)[None] < 20, 32, axis=0))


def test_most_masks_must_look_so():
    assert suspicion([True, True]) is None
    assert suspicion([True, True, False]) is None
    assert "4 of 5 masks looked at" in suspicion([True, True, True, True, False])


def test_run_says_so_with_the_key_and_the_key_ends_it(tmp_path):
    source = opened(folder(tmp_path / "a"))
    with pytest.warns(DataWarning, match=r"6 of 6 masks .* data\.inverted_masks: true takes what is 0 as the object"):
        warn_of_inverted(source, range(6))
    turned = ImageFolder()
    data = SegmentationDataModule(turned, str(tmp_path / "a"), inverted_masks=True)
    data.open(InputRule(64))
    assert turned.describe()["inverted_masks"] is True
    for index, name in enumerate(turned.image_ids()):
        expected = np.roll(DISC, int(name[1:]) - 3, axis=1) == 1
        np.testing.assert_array_equal(turned[index].masks[0].numpy(), expected)
    warn_of_inverted(turned, range(6))  # says nothing: warnings are errors here
    warn_of_inverted(opened(folder(tmp_path / "b", inverted=False)), range(6))


def test_opening_the_data_of_a_run_warns(tmp_path):
    data = SegmentationDataModule(ImageFolder(), str(folder(tmp_path / "a")))
    with pytest.warns(DataWarning, match="the masks may be inverted"):
        data.open(InputRule(64))


def test_volumes_are_suspected_and_turned_too(tmp_path):
    inside = np.repeat(DISC[:, :, None], 4, axis=2)
    for number in range(5):
        for part, values in (("images", inside * 90 + 30), ("labels", (1 - inside) * 255)):
            (tmp_path / part).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values.astype(np.uint8), np.eye(4)), tmp_path / part / f"v{number}.nii.gz")
    source = NiftiVolumes()
    source.open(tmp_path)
    with pytest.warns(DataWarning, match=r"data\.inverted_masks: true takes what is 0 as the object"):
        warn_of_inverted(source, range(len(source)))
    turned = NiftiVolumes()
    turned.invert_masks()
    turned.open(tmp_path)
    warn_of_inverted(turned, range(len(turned)))
    # The disc stands at the same place turned by a quarter, as slices are shown; it is symmetric about both of its axes.
    assert [int(turned[index].masks.union().sum()) for index in range(len(turned))] == [int(DISC.sum())] * len(turned) != [0]


def test_threshold_and_ignored_pixels_are_kept(tmp_path):
    root = folder(tmp_path / "a", 3, on=200)
    mask = np.asarray(Image.open(root / "masks" / "c0.png")).copy()
    mask[0, :4] = 255
    mask[mask == 0] = 20  # as lossy compression leaves it
    Image.fromarray(mask).save(root / "masks" / "c0.png")
    source = ImageFolder(mask_threshold=127)
    source.ignore_label = 255
    source.invert_masks()
    source.open(root)
    sample = source[0]
    np.testing.assert_array_equal(sample.masks[0].numpy(), mask == 20)
    np.testing.assert_array_equal(sample.ignored.numpy(), mask == 255)


def test_masks_with_labels_of_their_own_are_not_inverted():
    with pytest.raises(RecipeError, match=r"data\.inverted_masks: masks with labels of their own have no inside"):
        SegmentationDataModule(ImageFolder(labels={"a": [1]}), "x", inverted_masks=True)


def test_init_says_so_before_any_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "data")
    with pytest.warns(DataWarning, match="the masks may be inverted"):
        assert main(["init", "data", "--no-timing"]) == 0
    assert "Note: 6 of 6 masks looked at label the rim" in capsys.readouterr().out
