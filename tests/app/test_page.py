"""The page in a real browser, with a real mouse: what it shows, writes and saves is what the networks said."""

import gc
import json
import shutil
import socket

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsam_tune.app.models import Models
from medsam_tune.app.opened_case import open_case
from medsam_tune.app.page import gathered
from medsam_tune.app.slice_view import drawn, pixel
from medsam_tune.cli import main
from medsam_tune.runs.asked_model import open_model
from tests.app.conftest import SHAPE, write_nifti
from tests.dicom_files import write_series
from tests.serve.conftest import serving

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: install one to test the page")
GRADIO_USES_OLD_PANDAS = pytest.mark.filterwarnings("ignore:.*(no_silent_downcasting|copy keyword is deprecated)")
GRADIO_LEAVES_LOOPS_OPEN = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
HEIGHT, WIDTH = SHAPE[1], SHAPE[0]
SECONDS = 30_000
SHOWN = "['#tuned .score', '#tuned img', '#status'].map(each => document.querySelector(each).outerHTML).join()"


class User:
    """Somebody who sits before the page, and waits for what it shall say."""

    def __init__(self, page):
        self.page = page

    def open(self, file):
        self.page.set_input_files("#files input[type=file]", str(file))

    def at(self, column, row, view):
        box = self.page.locator(f"#{view} img").bounding_box()
        return box["x"] + (column + 0.5) / WIDTH * box["width"], box["y"] + (row + 0.5) / HEIGHT * box["height"]

    def drag(self, first, last, view="tuned"):
        self.page.mouse.move(*self.at(*first, view))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*last, view), steps=4)
        self.page.mouse.up()

    def click(self, column, row, view="tuned"):
        self.page.mouse.click(*self.at(column, row, view))

    def press(self, name):
        self.page.click(f"#{name}")

    def choose(self, tool):
        self.page.get_by_label(tool, exact=True).check()

    def wheel(self, steps):
        self.page.mouse.move(*self.at(9, 9, "tuned"))
        self.page.mouse.wheel(0, 100 * steps)

    def reads(self, text, where="#status"):
        """Wait until it stands there."""
        found = f"document.querySelector('{where}').innerText"
        try:
            self.page.wait_for_function(f"text => {found}.trim().startsWith(text)", arg=text, timeout=SECONDS)
        except Exception as error:
            raise AssertionError(f"{where} says {self.page.evaluate(found)!r}, not {text!r}") from error

    def sees(self, case, position):
        """Wait until the page shows what the same case has on a slice."""
        state = case.state(position)
        size = "no mask yet" if state.mask is None else f"{int(state.mask.sum()):,} pixels"
        self.reads(f"slice {position} of {len(case.slices)}, {size}")
        for view, answer in (("tuned", state.answer), ("untuned", state.untuned)):
            score = "" if answer is None else f"predicted IoU {answer.predicted_iou:.2f}"
            self.reads("corrected by hand" if state.corrected and view == "tuned" else score, f"#{view} .score")

    def download(self):
        self.page.click("#download")
        link = self.page.locator("#mask a[download]").first
        link.wait_for(timeout=SECONDS)
        with self.page.expect_download() as started:
            link.click()
        return started.value


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def seat(models, tmp_path, browser, monkeypatch):
    """A tester before the page of the tuned model; no other host is called, by the browser or by this process."""
    from medsam_tune.app.site import make_site

    called, requested = [], []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, place: (called.append(place), connect(self, place))[1])
    (tmp_path / "work").mkdir()
    site = make_site(models, saved=tmp_path / "corrected", licence="Base weights under a licence.", work=tmp_path / "work")
    with serving(site) as address:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        faults = []
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#tuned .slice", timeout=SECONDS)
        yield User(page)
        page.close()
    assert not faults
    assert {url.split("/")[2] for url in requested if url.startswith(("http", "ws"))} == {address.removeprefix("http://")}
    assert not [place for place in called if isinstance(place, tuple) and place[0] not in ("127.0.0.1", "::1", "localhost")]


@needs_browser
@pytest.mark.slow  # a browser and a server, of seconds
@GRADIO_USES_OLD_PANDAS
def test_draw_correct_download_and_save(seat, models, tmp_path):
    volume = write_nifti(tmp_path / "p01.nii.gz")
    same = open_case([volume], models)
    seat.open(volume)
    seat.sees(same, 2)
    assert seat.page.locator("#slice input[type=number]").input_value() == "2"

    seat.drag((3, 4), (24, 15))
    same.box(2, (3.0, 4.0, 24.0, 15.0))
    seat.sees(same, 2)
    seat.choose("Click: not object")
    seat.click(9, 7)
    same.click(2, 9, 7, positive=False)
    seat.sees(same, 2)

    seat.wheel(1)
    seat.sees(same, 3)
    seat.choose("Click: object")
    seat.click(12, 9, view="untuned")
    same.click(3, 12, 9, positive=True)
    seat.reads("slice 3 of 5, this model learnt from boxes")
    seat.choose("Erase")
    seat.page.locator("#radius").wait_for(state="visible", timeout=SECONDS)
    # No pixel's middle lies on the rim of this stroke, so the mouse's rounding does not count.
    seat.drag((2.2, 2.3), (20.2, 2.3))
    same.paint(3, [(2.7, 2.8), (20.7, 2.8)], radius_px=4, adds=False)
    seat.sees(same, 3)
    seat.press("clear")
    same.clear(3)
    seat.sees(same, 3)
    seat.press("undo")
    same.undo(3)
    seat.sees(same, 3)

    got = seat.download()
    assert got.suggested_filename == "p01.nii.gz"
    got.save_as(tmp_path / "got.nii.gz")
    expected = same.write_mask(tmp_path / "expected")
    found, wanted = nibabel.load(tmp_path / "got.nii.gz"), nibabel.load(expected)
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(wanted.dataobj))
    assert np.array_equal(found.affine, wanted.affine)
    assert np.asarray(found.dataobj).any()

    seat.press("save")
    seat.reads("2 pairs of image and mask")
    (own,) = (tmp_path / "corrected/masks").iterdir()
    for position in (2, 3):
        assert np.array_equal(np.asarray(Image.open(own / f"axial_{position:03d}.png")) > 0, same.state(position).mask)


@needs_browser
@pytest.mark.slow  # a browser and a server, of seconds
@GRADIO_USES_OLD_PANDAS
def test_what_goes_wrong_is_said_and_everything_can_be_picked(seat, tmp_path, monkeypatch):
    found = np.zeros((1, HEIGHT, WIDTH), bool)
    found[0, 4:9, 4:9] = True
    monkeypatch.setattr(Models, "candidates", lambda *_: found)
    (tmp_path / "broken.nii.gz").write_bytes(b"no volume")
    seat.press("save")
    seat.reads("Open an image or a volume first.")
    seat.open(tmp_path / "broken.nii.gz")
    seat.reads("Not done: ")
    assert str(tmp_path) not in seat.page.locator("#status").inner_text()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "<b>skin.png")
    seat.page.locator("#files button[aria-label='Clear']").first.click()
    seat.reads("Drop an image")
    seat.open(tmp_path / "<b>skin.png")
    seat.reads("no mask yet")
    assert not seat.page.locator("#slice").is_visible()
    seat.click(5, 5)
    seat.reads("Not done: that was a click. Drag a box")
    seat.press("find")
    seat.reads("1 found")
    seat.choose("Click: object")
    seat.click(5, 5)
    seat.page.wait_for_timeout(500)
    got = seat.download()
    got.save_as(tmp_path / "got.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "got.png")), found[0] * np.uint8(255))


@pytest.mark.parametrize("data", [{}, {"trail": []}, {"trail": [[2, 0]]}, {"trail": [[float("nan"), 0]]}, {"trail": "all"}])
def test_what_no_mouse_draws_is_refused(data):
    with pytest.raises(ValueError, match="does not lie on the picture"):
        drawn(json.loads(json.dumps(data)), (HEIGHT, WIDTH))


def test_the_files_of_a_series_come_into_one_folder_and_none_is_lost(models, tmp_path):
    write_series(tmp_path / "all", np.random.default_rng(0).integers(0, 900, (4, 20, 30)).astype(np.int16))
    files = []
    for number, file in enumerate(sorted((tmp_path / "all").iterdir())):
        (tmp_path / f"upload{number}").mkdir()
        files.append(file.rename(tmp_path / f"upload{number}" / "IM.dcm"))
    case = open_case(gathered(files, tmp_path), models)
    assert len(case.slices) == 4
    case.paint(1, [(5, 5)], radius_px=2, adds=True)
    assert case.write_mask(tmp_path / "out").name == "series.dcm"
    assert gathered(files[:1], tmp_path) == files[:1]


def test_places_become_pixels_and_the_border_belongs_to_the_last():
    places = drawn({"trail": [[0, 0], [0.999, 0.5], [1, 1]]}, (10, 20))
    assert [pixel(place, (10, 20)) for place in places] == [(0, 0), (19, 5), (19, 9)]


@pytest.fixture
def build(tmp_path):
    """Build a page that nobody serves; the event loops that Gradio then leaves open are no fault of ours."""
    from medsam_tune.app.page import Page

    yield lambda models: Page(models, saved=tmp_path, licence="none", work=tmp_path).build()
    gc.collect()


@GRADIO_LEAVES_LOOPS_OPEN
def test_the_page_of_untuned_weights_has_one_view(build):
    page = build(Models.of(open_model("random_tiny")))
    named = {block.elem_id for block in page.blocks.values() if getattr(block, "elem_id", None)}
    assert "tuned" in named
    assert "untuned" not in named


@GRADIO_LEAVES_LOOPS_OPEN
def test_only_what_takes_long_waits_in_the_queue_whose_stream_closes_between_two_actions(build, models):
    page = build(models)
    named = {page.blocks[block].elem_id: each.queue for each in page.fns.values() for block, _ in each.targets if block}
    assert {name for name, queued in named.items() if queued} == {"find", "all"}
    assert {"files", "slice", "tool", "tuned", "untuned", "undo", "clear", "download", "save"} <= set(named)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "99999"], "--port: cannot listen"),
        (["--label", "tumour"], "--label: the model has no classes"),
        (["--save-to", __file__], "is a file; the images and masks need a folder"),
    ],
)
def test_what_does_not_fit_is_said_before_the_page_is_opened(words, said, capsys):
    assert main(["app", "random_tiny", "--port", "0", *words]) == 2
    assert said in capsys.readouterr().err
