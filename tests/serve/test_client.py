"""nnInteractive's own client, unmodified, drives a tuned model over a real port."""

import logging
from contextlib import contextmanager
from dataclasses import replace

import httpx
import nibabel
import numpy as np
import pytest
from nnInteractive.inference.remote import (
    ServerAtCapacityError,
    SessionExpiredError,
    nnInteractiveRemoteInferenceSession,
)

from medsam_tune import Predictor, SamBackbone
from medsam_tune.data.intensity import AS_STORED, Intensity, apply_intensity_8bit
from medsam_tune.inference.new_files import find_files
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.runs.asked_model import AskedModel, open_model
from medsam_tune.serve.app import make_app
from medsam_tune.serve.served_model import ServedModel
from tests.inference.test_writers import write_volume
from tests.serve.conftest import IMAGES, export_folder, serving

RULE = Intensity("percentile", (1.0, 99.0))
KEY = "a-key-of-this-test-alone"


@contextmanager
def clients(model, *, number=1, orientation="SPL", label=None, key=None, rules=None, **limits):
    served = ServedModel.of(model, orientation=orientation, label=label, rules=rules)
    with serving(make_app(served, key=key, hosts=("127.0.0.1",), **limits)) as address:
        opened = [nnInteractiveRemoteInferenceSession(address, api_key=key) for _ in range(number)]
        try:
            yield opened if number > 1 else opened[0]
        finally:
            for each in opened:
                each.close()


def show(client, image):
    client.set_image(image[None], {"spacing": np.array([2.0, 0.5, 0.5])})
    client.set_target_buffer(np.zeros(image.shape, np.uint8))
    return client.target_buffer


@pytest.fixture
def volume():
    """Slices, rows, columns: all of other lengths, without any symmetry."""
    return np.random.default_rng(0).normal(size=(5, 20, 30)).astype(np.float32)


def predictor_of(model, volume, position):
    levels = apply_intensity_8bit(volume, RULE, "test")
    model.predictor.set_image(levels[position], intensity=AS_STORED)
    return model.predictor


def refused(error):
    """Close what the client leaves open when its first request fails."""
    for entry in error.traceback:
        client = entry.frame.f_locals.get("self")
        if isinstance(client, nnInteractiveRemoteInferenceSession):
            client._http.close()
    return error


def detail(error):
    return error.value.response.json()["detail"]


def test_capabilities_name_boxes_and_points_only_and_the_licence_of_the_base_weights(model):
    with clients(model) as client:
        assert [name for name, there in client.supported_interactions.items() if there] == ["points", "bbox2d"]
        assert client.license.startswith("Base weights random_tiny under a licence that this server does not know")
        assert client.supports_undo
        assert client.ping()
        assert 1700 < client.heartbeat() <= 1800


def test_licence_of_released_weights_is_named():
    with clients(open_model("lite_medsam")) as client:
        assert client.license == "Base weights lite_medsam under Apache-2.0; terms of the training data may apply."


def test_box_points_and_correction_equal_the_predictor_on_that_slice(model, volume):
    with clients(model) as client:
        mask = show(client, volume)
        # As napari sends them: fractions, half-open.
        changed = client.add_bbox_interaction([[2.0, 3.0], [4.4, 15.6], [2.6, 24.9]], True)
        assert changed == [[2, 3], [0, 20], [0, 30]]
        expected = np.zeros_like(mask)
        predictor = predictor_of(model, volume, 2)
        expected[2] = predictor.predict(box=(3, 4, 24, 15))[0][0]
        assert np.array_equal(mask, expected)
        assert 0 < mask[2].sum() < mask[2].size

        client.add_point_interaction((2, 7, 9), False)
        expected[2] = predictor.predict(box=(3, 4, 24, 15), point_coords=[(9, 7)], point_labels=[0])[0][0]
        assert np.array_equal(mask, expected)

        assert client.add_point_interaction([3.9, 7.0, 9.2], True) == [[4, 5], [0, 20], [0, 30]]
        expected[4] = predictor_of(model, volume, 4).predict(point_coords=[(9, 7)], point_labels=[1])[0][0]
        assert np.array_equal(mask, expected)


def test_box_beyond_the_border_is_cut_off_and_a_second_one_replaces_the_first(model, volume):
    with clients(model) as client:
        mask = show(client, volume)
        client.add_bbox_interaction([[0, 1], [5, 9], [5, 9]], True)
        client.add_bbox_interaction([[0, 1], [-3, 99], [-3, 12]], True)
        expected = predictor_of(model, volume, 0).predict(box=(0, 0, 11, 19))[0][0]
        assert np.array_equal(mask[0], expected)


def test_reset_and_a_new_image_begin_anew(model, volume):
    with clients(model) as client:
        mask = show(client, volume)
        client.add_bbox_interaction([[2, 3], [4, 16], [3, 25]], True)
        client.reset_interactions()
        assert not mask.any()
        client.add_point_interaction((2, 7, 9), True)
        expected = predictor_of(model, volume, 2).predict(point_coords=[(9, 7)], point_labels=[1])[0][0]
        assert np.array_equal(mask[2], expected)  # the box is forgotten

        other = np.random.default_rng(1).normal(size=(3, 16, 12)).astype(np.float32)
        mask = show(client, other)
        assert client.original_image_shape == (1, 3, 16, 12)
        client.add_point_interaction((2, 7, 9), True)
        expected = predictor_of(model, other, 2).predict(point_coords=[(9, 7)], point_labels=[1])[0][0]
        assert np.array_equal(mask[2], expected)
        assert not mask[:2].any()


def test_a_negative_point_alone_changes_nothing_and_counts_later(model, volume):
    with clients(model) as client:
        mask = show(client, volume)
        assert client.add_point_interaction((1, 3, 3), False) is None
        assert not mask.any()
        client.add_point_interaction((1, 7, 9), True)
        expected = predictor_of(model, volume, 1).predict(point_coords=[(3, 3), (9, 7)], point_labels=[0, 1])[0][0]
        assert np.array_equal(mask[1], expected)


def test_prompts_that_wait_are_answered_together(model, volume):
    with clients(model) as client:
        mask = show(client, volume)
        assert client.add_bbox_interaction([[1, 2], [4, 16], [3, 25]], True, run_prediction=False) is None
        client.add_bbox_interaction([[3, 4], [4, 16], [3, 25]], True, run_prediction=False)
        assert client._predict() == [[1, 4], [0, 20], [0, 30]]
        for position in (1, 3):
            expected = predictor_of(model, volume, position).predict(box=(3, 4, 24, 15))[0][0]
            assert np.array_equal(mask[position], expected)
        assert not mask[2].any()
        assert client._predict() is None


def test_undo_takes_back_one_interaction(model, volume):
    with clients(model) as client:
        mask = show(client, volume)
        client.add_bbox_interaction([[2, 3], [4, 16], [3, 25]], True)
        before = mask.copy()
        client.add_point_interaction((2, 7, 9), False)
        assert client.undo()
        assert np.array_equal(mask, before)
        assert not client.undo()
        client.add_point_interaction((2, 2, 2), False)
        predictor = predictor_of(model, volume, 2)
        expected = predictor.predict(box=(3, 4, 24, 15), point_coords=[(2, 2)], point_labels=[0])[0][0]
        assert np.array_equal(mask[2], expected)


def test_a_box_across_slices_or_of_what_is_no_object_is_refused_with_what_to_do(model, volume):
    with clients(model) as client:
        show(client, volume)
        with pytest.raises(httpx.HTTPStatusError, match="400") as error:
            client.add_bbox_interaction([[0, 4], [7, 8], [3, 25]], True)
        assert detail(error) == (
            "this model looks at axial slices, which lie along axis 0 of the image; the box is 4 voxels thick there. "
            "Draw it in that view, one voxel thick."
        )
        for box, positive, said in (
            ([[0, 1], [3, 9], [3, 9]], False, "no negative boxes"),
            ([[0, 1], [9, 3], [3, 9]], True, "is empty"),
            ([[0, 1], [30, 40], [3, 9]], True, "outside the image"),
            ([[0, 1], [3, 9]], True, "3 pairs"),
        ):
            with pytest.raises(httpx.HTTPStatusError, match="400") as error:
                client.add_bbox_interaction(box, positive)
            assert said in detail(error)
        for point in ((9, 3, 3), (0, 3, -1), (1, 2)):
            with pytest.raises(httpx.HTTPStatusError, match="400"):
                client.add_point_interaction(point, True)
        assert not client.target_buffer.any()


def test_scribbles_lassos_and_refinement_are_refused_and_a_mask_is_taken_as_it_is(model, volume):
    with clients(model) as client:
        mask = show(client, volume)
        drawn = (volume > 1).astype(np.uint8)
        for ask in (client.add_scribble_interaction, client.add_lasso_interaction):
            with pytest.raises(httpx.HTTPStatusError, match="400") as error:
                ask(drawn, True)
            assert "Use points and boxes" in detail(error)
        with pytest.raises(httpx.HTTPStatusError, match="400"):
            client.add_initial_seg_interaction(drawn, run_prediction=True)
        client.add_initial_seg_interaction(drawn)
        client.add_bbox_interaction([[2, 3], [4, 16], [3, 25]], True)
        client.undo()
        assert np.array_equal(mask, drawn)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_arrays_in_the_files_own_orientation_give_the_masks_of_the_file(model, tmp_path, axis):
    _, affine = write_volume(tmp_path)
    path = tmp_path / "images/case_1.nii.gz"
    data = replace(model.data, axis=axis)
    (file,) = find_files(path)
    slices = SlicedFile(file, data)
    stored = np.asarray(nibabel.load(path).dataobj)
    orientation = "".join(nibabel.aff2axcodes(affine))
    thin = {"sagittal": "LR", "coronal": "PA", "axial": "IS"}[axis]
    (sliced,) = (number for number, letter in enumerate(orientation) if letter in thin)
    with clients(replace(model, data=data), orientation=orientation) as client:
        mask = show(client, stored)
        for index in range(stored.shape[sliced]):
            box = [[0, length] for length in stored.shape]
            box[sliced] = [index, index + 1]
            client.add_bbox_interaction(box, True)
    expected = {}
    for position in range(len(slices)):
        levels = slices.levels(position)
        model.predictor.set_image(levels, intensity=AS_STORED)
        box = (0, 0, levels.shape[1] - 1, levels.shape[0] - 1)
        expected[position] = model.predictor.predict(box=box)[0][0].astype(np.uint8)
    assert np.array_equal(mask, slices.assemble(expected))
    assert mask.any()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_image_is_taken_as_a_model_of_images_reads_it(tmp_path, channels):
    model = open_model(str(export_folder(tmp_path / "export", **IMAGES)))
    image = np.random.default_rng(0).integers(0, 256, (channels, 1, 20, 30), dtype=np.uint8)
    with clients(model) as client:
        client.set_image(image)
        client.set_target_buffer(np.zeros((1, 20, 30), bool))
        client.add_bbox_interaction([[0, 1], [4, 16], [3, 25]], True)
        mask = client.target_buffer
        with pytest.raises(httpx.HTTPStatusError, match="400") as error:
            client.set_image(image.astype(np.float32) * 3)
        assert "not grey levels 0..255" in detail(error)
    model.predictor.set_image(image[0, 0] if channels == 1 else np.moveaxis(image[:, 0], 0, -1))
    assert mask.dtype == bool
    assert np.array_equal(mask[0], model.predictor.predict(box=(3, 4, 24, 15))[0][0])


def test_a_model_without_prompts_answers_every_slice_when_it_is_run(volume):
    predictor = Predictor(SamBackbone("random_tiny"))
    model = AskedModel("tiny", predictor, TrainedData(intensity=RULE, of_volumes=True), "identity")
    with clients(model) as client:
        mask = show(client, volume)
        assert client._predict() == [[0, 5], [0, 20], [0, 30]]
        for position in range(5):
            assert np.array_equal(mask[position], predictor_of(model, volume, position).predict()[0][0])


def test_clients_do_not_see_each_other(model, volume):
    other = volume[::-1, ::-1].copy()
    with clients(model, number=2) as (first, second):
        masks = [show(first, volume), show(second, other)]
        for client in (first, second, first):
            client.add_bbox_interaction([[2, 3], [4, 16], [3, 25]], True)
        first.reset_interactions()
        first.add_point_interaction((1, 7, 9), True)
        expected = predictor_of(model, volume, 1).predict(point_coords=[(9, 7)], point_labels=[1])[0][0]
        assert np.array_equal(masks[0][1], expected)
        expected = predictor_of(model, other, 2).predict(box=(3, 4, 24, 15))[0][0]
        assert np.array_equal(masks[1][2], expected)
        assert not masks[1][[0, 1, 3, 4]].any()


def test_a_full_server_and_a_released_lease_are_what_the_client_expects(model, volume):
    with clients(model, most_sessions=1) as client:
        address = str(client._http.base_url)
        with pytest.raises(ServerAtCapacityError, match="all 1 places") as error:
            nnInteractiveRemoteInferenceSession(address)
        refused(error)
        client._http.post("/release")
        with pytest.raises(SessionExpiredError, match="Connect again"):
            show(client, volume)
        with nnInteractiveRemoteInferenceSession(address) as another:
            show(another, volume)


@pytest.mark.parametrize("key", [None, "another-key-that-is-wrong", ""])
def test_without_the_key_nobody_gets_in(model, key, monkeypatch):
    monkeypatch.delenv("NN_INTERACTIVE_API_KEY", raising=False)
    with clients(model, key=KEY) as client:
        address = str(client._http.base_url)
        with pytest.raises(httpx.HTTPStatusError, match="401") as error:
            nnInteractiveRemoteInferenceSession(address, api_key=key)
        assert "Enter the key of this server" in detail(refused(error))
        assert httpx.get(f"{address}/healthz").status_code == 200


def test_too_large_an_image_is_refused_before_it_is_unpacked(model, volume):
    # Zeros pack to almost nothing: the 1 MB that the server takes are exceeded by what the array says of itself.
    with clients(model, most_bytes=10**6) as client:
        with pytest.raises(httpx.HTTPStatusError, match="413") as error:
            client.set_image(np.zeros((1, 100, 100, 101), np.uint8))
        assert detail(error).startswith("the array takes 0.00 GB when unpacked")
        with pytest.raises(httpx.HTTPStatusError, match="413") as error:
            client.set_image(np.random.default_rng(0).normal(size=(1, 50, 50, 60)))
        assert "larger than this server takes" in detail(error)
        with pytest.raises(httpx.HTTPStatusError, match="413"):
            client._http.post("/claim", content=b" " * 70_000).raise_for_status()
        show(client, volume)


def test_a_machine_without_memory_says_so_and_goes_on(model, volume, monkeypatch):
    with clients(model) as client:
        mask = show(client, volume)
        with monkeypatch.context() as patched:
            patched.setattr("medsam_tune.serve.asked_volume.answer_slice", lambda *_, **__: np.zeros(2**62, np.uint8))
            with pytest.raises(httpx.HTTPStatusError, match="413") as error:
                client.add_point_interaction((2, 7, 9), True)
            assert "no memory left" in detail(error)
        client.add_bbox_interaction([[2, 3], [4, 16], [3, 25]], True)
        assert mask.any()


def test_a_page_of_another_name_cannot_call_the_server(model):
    with clients(model) as client:
        address = str(client._http.base_url)
        assert httpx.get(f"{address}/capabilities", headers={"Host": "evil.example"}).status_code == 400


def test_nothing_of_what_a_client_sends_is_logged(model, volume, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    secret = "DOE^JANE"
    with clients(model) as client:
        client.set_image(volume[None], {"spacing": [1, 1, 1], "PatientName": secret})
        client._http.post("/add_point_interaction", json={"coordinates": [secret], "include_interaction": True})
        wrong = client._http.post(
            "/set_image", content=secret.encode(), headers={"X-Meta": f'{{"image_properties": "{secret}"}}'}
        )
        assert wrong.status_code == 400
    said = [record.getMessage() for record in caplog.records if record.name.startswith(("medsam_tune", "uvicorn"))]
    written = capfd.readouterr()
    assert not [line for line in (*said, written.out, written.err, wrong.text) if secret in line]
