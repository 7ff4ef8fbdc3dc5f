import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from medsam_tune.data.formats.raster import (
    RasterFormat,
    image_size,
    opened,
    read_mask_values,
    read_pixels,
    stored_spacing,
    write_png,
)
from medsam_tune.errors import DataError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.stack([GREY, GREY + 50, GREY + 100], axis=-1)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("values", [GREY, COLOUR, GREY.astype(np.uint16) * 1000], ids=["grey", "colour", "16bit"])
def test_lossless_files_give_back_the_values_that_were_saved(tmp_path, values, ending):
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    read = read_pixels(tmp_path / f"a.{ending}")
    assert np.array_equal(read, values)
    assert read.dtype == values.dtype


def test_alpha_is_dropped_and_not_blended(tmp_path):
    alpha = np.zeros_like(GREY)
    Image.fromarray(np.dstack([COLOUR, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([GREY, alpha])).save(tmp_path / "la.png")
    assert np.array_equal(read_pixels(tmp_path / "rgba.png"), COLOUR)
    assert np.array_equal(read_pixels(tmp_path / "la.png"), GREY)


def test_palette_image_gives_colours_and_palette_mask_gives_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode=None).convert("P")
    image.putpalette([0, 0, 0, 200, 10, 20, 5, 6, 7])
    image.putdata([0, 1, 2, 1])
    image.save(tmp_path / "p.png")
    assert read_pixels(tmp_path / "p.png").tolist() == [[[0, 0, 0], [200, 10, 20]], [[5, 6, 7], [200, 10, 20]]]
    assert read_mask_values(tmp_path / "p.png").tolist() == [[0, 1], [2, 1]]


def test_grey_mask_stored_as_rgb_is_accepted_and_a_colour_mask_is_refused(tmp_path):
    Image.fromarray(np.dstack([GREY] * 3)).save(tmp_path / "grey.png")
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    assert np.array_equal(read_mask_values(tmp_path / "grey.png"), GREY)
    with pytest.raises(DataError, match=r"colour\.png: is a colour image, .* single-channel PNG"):
        read_mask_values(tmp_path / "colour.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_are_turned_as_viewers_show_them(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(GREY)
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        shown = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png"), shown)
    np.testing.assert_array_equal(read_mask_values(tmp_path / "a.png"), shown)
    assert image_size(tmp_path / "a.png") == shown.shape
    image.convert("P").save(tmp_path / "p.png", exif=exif)
    assert read_mask_values(tmp_path / "p.png").shape == shown.shape
    image.save(tmp_path / "a.tif", exif=exif)
    if orientation > 4:
        with pytest.raises(DataError, match=r"a\.tif: is a TIFF that lies on its side"):
            read_pixels(tmp_path / "a.tif")
    else:
        np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif"), shown)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_truncated_file_is_refused_with_its_path(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{ending}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut\.{ending}: cannot be read .*Replace or remove"):
        read_pixels(path)


def test_text_with_an_image_name_is_refused_with_its_path(tmp_path):
    (tmp_path / "no.png").write_text("hello")
    with pytest.raises(DataError, match=r"no\.png: cannot be read"):
        image_size(tmp_path / "no.png")


def test_stack_of_frames_is_refused(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(GREY)])
    with pytest.raises(DataError, match=r"a\.tif: holds 2 frames, expected one"):
        read_pixels(tmp_path / "a.tif")


def test_only_the_formats_that_are_named_are_opened(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/gs")
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        read_pixels(path)
    assert started == []
    Image.fromarray(GREY).save(tmp_path / "b.pcx")
    (tmp_path / "b.pcx").rename(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: cannot be read"):
        image_size(tmp_path / "b.png")


def test_image_above_the_limit_is_told_to_be_cut_and_one_below_is_read_without_a_word(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "slide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match=r"slide\.png: has more than 179 megapixels \(.*\)\. Cut it into tiles, or reduce it"):
        image_size(tmp_path / "slide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    assert image_size(tmp_path / "slide.png") == (6, 8)


def test_spacing_is_written_exactly_and_dots_per_inch_are_no_spacing(tmp_path):
    write_png(tmp_path / "a.png", GREY, spacing_mm=(0.1 + 0.2, 3.0))
    write_png(tmp_path / "c.png", GREY, spacing_mm=(1.0, 1.0))
    write_png(tmp_path / "d.png", GREY)
    Image.fromarray(GREY).save(tmp_path / "b.png", dpi=(96, 96))
    for name, expected in (("a.png", (0.1 + 0.2, 3.0)), ("b.png", None), ("c.png", (1.0, 1.0)), ("d.png", None)):
        with opened(tmp_path / name) as image:
            assert stored_spacing(image, tmp_path / name) == expected


def test_written_masks_hold_no_word_of_the_source(tmp_path):
    words = PngInfo()
    words.add_text("Patient", "DOE^JANE")
    exif = Image.Exif()
    exif[0x010E], exif[0x9286] = "DOE^JANE", "DOE^JANE"
    form = RasterFormat()
    Image.fromarray(GREY).save(tmp_path / "a.png", pnginfo=words)
    Image.fromarray(GREY).save(tmp_path / "b.jpg", exif=exif, comment=b"DOE^JANE")
    Image.fromarray(GREY).save(tmp_path / "c.tif", description="DOE^JANE", artist="DOE^JANE")
    for name in ("a.png", "b.jpg", "c.tif"):
        assert b"DOE^JANE" in (tmp_path / name).read_bytes()
        path = form.write_labels(tmp_path / "out", GREY[None] % 3, form.read_header(tmp_path / name))
        assert b"DOE" not in path.read_bytes()
        np.testing.assert_array_equal(form.read_labels(path)[0], GREY % 3)


def test_negative_mask_value_is_refused(tmp_path):
    Image.fromarray(np.array([[0, -1]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: 1 label values are no whole numbers .*\[-1\]"):
        read_mask_values(tmp_path / "a.tif")
