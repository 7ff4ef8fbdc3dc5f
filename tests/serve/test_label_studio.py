"""Label Studio's protocol for ML backends, over a real port; masks are decoded by a reader of the format that stands here."""

import base64
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Header, Response
from PIL import Image

from medsam_tune.data.intensity import AS_STORED
from medsam_tune.runs.asked_model import open_model
from medsam_tune.serve.label_studio.app import make_app
from medsam_tune.serve.label_studio.brush import decode_brush, encode_brush
from medsam_tune.serve.label_studio.images import TaskImages
from medsam_tune.serve.served_model import ServedModel
from tests.serve.conftest import IMAGES, export_folder, serving

CONFIG = """<View>
  <Image name="img" value="$picture" zoom="true"/>
  <BrushLabels name="brush" toName="img"><Label value="wall"/><Label value="lumen"/></BrushLabels>
  <KeyPointLabels name="point" toName="img" smart="true"><Label value="wall"/><Label value="lumen"/></KeyPointLabels>
  <RectangleLabels name="box" toName="img" smart="true"><Label value="lumen"/></RectangleLabels>
</View>"""
SIZE = (40, 50)
KEY = "a-key-of-this-test-alone"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(str(export_folder(tmp_path_factory.mktemp("tuned") / "export", **IMAGES)))


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, SIZE, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x 1.png")
    return pixels


@contextmanager
def backend(model, *, folder=None, address=None, token=None, key=None, headers=None):
    served = ServedModel.of(model)
    images = TaskImages(served.data, folder=folder, address=address, token=token, most_bytes=10**6)
    app = make_app(served, images, version="mine", key=key, hosts=("127.0.0.1",), most_bytes=10**6)
    with serving(app) as place, httpx.Client(base_url=place, headers=headers, timeout=60) as client:
        yield client


def region(kind, value, *, label="lumen", **more):
    return {"type": kind, "original_width": SIZE[1], "original_height": SIZE[0], "value": {**value, kind: [label]}, **more}


def ask(client, *regions, picture="/data/upload/1/0a1b2c3d-x%201.png", config=CONFIG):
    """Ask as Label Studio does when somebody draws."""
    context = {"result": list(regions)} if regions else None
    task = {"id": 7, "data": {"picture": picture}, "annotations": []}
    body = {"tasks": [task], "label_config": config, "project": "1.17", "params": {"login": None, "context": context}}
    return client.post("/predict", json=body)


def shown(answer):
    """Return the one mask of an answer, by a reader that follows the format bit by bit."""
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"][0]["result"]
    bits = "".join(f"{each:08b}" for each in result["value"]["rle"])
    place = 0

    def take(length):
        nonlocal place
        place += length
        return int(bits[place - length : place], 2)

    count, word, lengths = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < count:
        repeated, run = take(1), take(lengths[take(2)]) + 1
        values += [take(word)] * run if repeated else [take(word) for _ in range(run)]
    alpha = np.array(values).reshape(result["original_height"], result["original_width"], 4)[..., 3]
    return alpha == 255, result


def test_health_setup_and_events_are_answered(model):
    with backend(model) as client:
        assert client.get("/health").json()["status"] == client.get("/").json()["status"] == "UP"
        assert client.post("/setup", json={"project": "1.17", "schema": CONFIG}).json() == {"model_version": "mine"}
        assert client.post("/versions", json={"project": "1"}).json() == {"versions": ["mine"]}
        assert client.post("/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 201


def test_box_clicks_and_brush_are_answered_as_the_predictor_does(model, image, tmp_path):
    box = region("rectanglelabels", {"x": 10, "y": 20, "width": 60, "height": 50, "rotation": 0})
    click = region("keypointlabels", {"x": 31, "y": 51.25, "width": 0.5}, is_positive=1)
    beside = region("keypointlabels", {"x": 91, "y": 51.25}, is_positive=0)
    stroke = np.zeros(SIZE, bool)
    stroke[8:28, 5:35] = True
    brush = region("brushlabels", {"format": "rle", "rle": encode_brush(stroke)}, label="wall")
    model.predictor.set_image(image, intensity=AS_STORED)
    with backend(model, folder=tmp_path) as client:
        mask, result = shown(ask(client, box))
        # 10 % and 20 % of 50 x 40 pixels, 30 wide and 20 high: columns 5 to 34, rows 8 to 27.
        expected = model.predictor.predict(box=(5, 8, 34, 27))[0][0]
        assert np.array_equal(mask, expected)
        assert 0 < mask.sum() < mask.size
        assert (result["from_name"], result["to_name"], result["value"]["brushlabels"]) == ("brush", "img", ["lumen"])
        mask, _ = shown(ask(client, click, beside))
        expected = model.predictor.predict(point_coords=[(15, 20), (45, 20)], point_labels=[1, 0])[0][0]
        assert np.array_equal(mask, expected)
        mask, result = shown(ask(client, brush))
        assert np.array_equal(mask, model.predictor.predict(box=(5, 8, 34, 27))[0][0])
        assert result["value"]["brushlabels"] == ["wall"]


def test_nothing_is_answered_before_something_is_drawn(model, image, tmp_path):
    with backend(model, folder=tmp_path) as client:
        assert ask(client).json()["results"][0]["result"] == []
        beside = region("keypointlabels", {"x": 50, "y": 50}, is_positive=0)
        assert ask(client, beside).json()["results"][0]["result"] == []


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        (region("polygonlabels", {"points": []}), "a region of type polygonlabels was drawn, expected a rectangle"),
        (region("rectanglelabels", {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 30}), "a turned rectangle was drawn"),
        (region("rectanglelabels", {"x": "a", "y": 1}), "a region states x and y as a, 1, expected percent"),
        (
            region("rectanglelabels", {"x": 1, "y": 1}) | {"original_width": 99},
            "was drawn on 40 x 99 pixels, the image has 40 x 50",
        ),
        (region("keypointlabels", {"x": 1, "y": 1}, image_rotation=90), "the image was turned"),
        (region("brushlabels", {"rle": [0, 1]}), "damaged on its way: it is cut off"),
        (region("brushlabels", {"rle": encode_brush(np.ones((3, 3), bool))}), "it holds 36 values of 8 bits, expected 40 x 50"),
    ],
)
def test_what_cannot_be_asked_is_said(model, image, tmp_path, drawn, words):
    with backend(model, folder=tmp_path) as client:
        answer = ask(client, drawn)
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("config", ["<View", "<View/>", '<View><Image name="i" value="$p"/></View>'])
def test_an_interface_without_a_brush_is_refused(model, config):
    with backend(model) as client:
        answer = ask(client, region("keypointlabels", {"x": 1, "y": 1}), config=config)
    assert (answer.status_code, "labelling interface" in answer.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    "picture", ["/data/upload/1/../../secret.png", "http://elsewhere/x.png", "file:///etc/passwd", "/x%201.png/"]
)
def test_no_file_outside_the_folder_is_opened_and_no_other_machine_called(model, image, tmp_path, picture):
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "secret.png")
    with backend(model, folder=tmp_path / "in", address="http://127.0.0.1:9") as client:
        answer = ask(client, region("keypointlabels", {"x": 1, "y": 1}), picture=picture)
    assert answer.status_code in (404, 502)  # 502: asked of Label Studio itself, which is not there
    assert (answer.status_code == 502) == picture.startswith("/")


@pytest.mark.parametrize(("token", "login"), [("abc", "Token abc"), ("a.b.c", "Bearer short")])
def test_images_are_fetched_from_label_studio_alone(model, image, tmp_path, token, login):
    studio = FastAPI()

    @studio.post("/api/token/refresh")
    def refresh() -> dict[str, str]:
        return {"access": "short"}

    @studio.get("/data/upload/1/0a1b2c3d-x 1.png")
    def upload(authorization: str = Header("")) -> Response:
        assert authorization == login
        return Response((tmp_path / "x 1.png").read_bytes())

    drawn = region("rectanglelabels", {"x": 10, "y": 20, "width": 60, "height": 50})
    model.predictor.set_image(image, intensity=AS_STORED)
    with serving(studio) as address, backend(model, address=address, token=token) as client:
        mask, _ = shown(ask(client, drawn))
        assert np.array_equal(mask, model.predictor.predict(box=(5, 8, 34, 27))[0][0])
        assert ask(client, drawn, picture="/data/upload/1/none.png").status_code == 502


def test_a_key_is_the_password_of_any_user(model):
    basic = "Basic " + base64.b64encode(f"anna:{KEY}".encode()).decode()
    for headers, status in (({}, 401), ({"Authorization": basic}, 200), ({"Authorization": basic[:-4]}, 401)):
        with backend(model, key=KEY, headers=headers) as client:
            assert client.post("/setup", json={}).status_code == status
            assert client.get("/health").status_code == 200


def test_strokes_of_label_studio_are_read_whether_values_are_repeated_or_listed():
    # By hand: 8 values of 8 bits, run lengths of 3, 4, 8 and 16 bits; one block that lists four values, one that repeats 0.
    head = f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    listed = f"0{0:02b}{3:03b}" + f"{0:08b}{0:08b}{0:08b}{200:08b}"
    repeated = f"1{0:02b}{3:03b}{0:08b}"
    bits = head + listed + repeated
    packed = [int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8)]
    assert decode_brush(packed, (1, 2)).tolist() == [[True, False]]


@pytest.mark.parametrize("size", [(3, 5), (200, 300)])
def test_masks_keep_every_pixel_through_the_brush(size):
    for mask in (np.random.default_rng(0).random(size) < 0.5, np.zeros(size, bool), np.ones(size, bool)):
        assert np.array_equal(decode_brush(encode_brush(mask), size), mask)


def test_label_studios_own_converter_reads_and_writes_the_same_masks():
    converter = pytest.importorskip("label_studio_sdk.converter.brush", reason="needs label-studio-sdk")
    mask = np.random.default_rng(0).random((30, 41)) < 0.5
    np.testing.assert_array_equal(converter.decode_rle(encode_brush(mask)).reshape(*mask.shape, 4)[..., 3] > 0, mask)
    np.testing.assert_array_equal(decode_brush(converter.mask2rle(mask.astype(np.uint8) * 255), mask.shape), mask)
