"""Files that people hand over: whatever they hold, a reader takes them or refuses them in words that begin with the file."""

import contextlib
import io
import json
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsam_tune.data.coco_files import read_coco
from medsam_tune.data.formats.npz import array_shapes, read_key
from medsam_tune.data.split_file import read_splits
from medsam_tune.errors import MedsamTuneError, RecipeError
from medsam_tune.export.description import read_description
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.sweeps.sweep_file import read_sweep
from medsam_tune.training.checkpoint_schema import check_goes_on, check_schema
from medsam_tune.training.limits import check_numbers, check_recipe_files
from medsam_tune.training.short_keys import load_named_classes
from medsam_tune.yaml_files import read_yaml

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["a.png", "1e-5", "DIR", "~", "../x", "\x00", "NaN"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


def with_keys(*keys):
    """Mappings that hold some of the keys that a reader looks for, and anything behind them."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, values))


@contextmanager
def taken_or_refused(path):
    said = ""
    try:
        yield
    except MedsamTuneError as error:
        said = str(error)
    assert not said or path.name in said


TO_GO_ON = ("loops", "optimizer_states", "lr_schedulers", "callbacks", "images_per_batch")
ANNOTATION = with_keys("id", "image_id", "category_id", "segmentation", "iscrowd", "bbox")
COCO = st.fixed_dictionaries(
    {},
    optional={
        "images": st.one_of(values, st.lists(with_keys("id", "file_name", "height", "width"), max_size=2)),
        "categories": st.one_of(values, st.lists(with_keys("id", "name"), max_size=2)),
        "annotations": st.one_of(values, st.lists(ANNOTATION, max_size=2)),
    },
)
SOUND = {
    "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
    "categories": [{"id": 1, "name": "cell"}],
    "annotations": [],
}
SHAPE = st.one_of(values, with_keys("size", "counts"), st.lists(st.lists(st.floats(), max_size=8), max_size=2))


@few
@given(COCO)
def test_coco_file_of_anything(tmp_path, content):
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    with taken_or_refused(path):
        read_coco([path], [tmp_path / "a.png"])


@few
@given(SHAPE)
def test_coco_annotation_of_any_shape(tmp_path, shape):
    path = tmp_path / "all.json"
    each = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": shape}
    path.write_text(json.dumps({**SOUND, "annotations": [each]}))
    with taken_or_refused(path):
        for found in read_coco([path], [tmp_path / "a.png"]).objects[tmp_path / "a.png"]:
            found.mask((4, 4))


@few
@given(st.one_of(values, with_keys("version", "base", "segmenter", "backbone", "prompts", "tuner", "tensors")))
def test_description_of_an_export_of_anything(tmp_path, content):
    path = tmp_path / "export.json"
    path.write_text(json.dumps(content))
    with taken_or_refused(tmp_path):
        read_description(tmp_path)


@few
@given(st.one_of(values, with_keys("train", "val", "test", "patients", "files", "how")))
def test_splits_of_anything(tmp_path, content):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    with taken_or_refused(path):
        read_splits(path)


@few
@given(st.one_of(values, st.lists(with_keys("image", "x1", "y1", "x2", "y2", "x", "y", "label", "slice"), max_size=2), COCO))
@pytest.mark.parametrize("kind", ["boxes", "points"])
def test_prompts_of_anything(tmp_path, kind, content):
    path = tmp_path / "drawn.json"
    path.write_text(json.dumps(content))
    with taken_or_refused(path):
        read_prompts(path, kind)


@few
@given(
    st.one_of(values, with_keys("program", "command", "method", "metric", "parameters", "run_cap", "early_terminate", "name"))
)
def test_sweep_of_anything(tmp_path, content):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    with taken_or_refused(path):
        read_sweep(path)


@few
@given(st.one_of(values, with_keys("model", "data", "trainer", "run", "seed_everything", "sections"), st.just({"model": {}})))
def test_recipe_of_anything(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    with taken_or_refused(path):
        check_recipe_files([f"--config={path}"], ["model", "data", "trainer", "run", "seed_everything"])


@few
@given(with_keys("backbone", "loss", "warmup_steps", "seed", "width"), with_keys("root", "batch_size", "num_workers", "source"))
def test_numbers_of_a_recipe_of_anything(model, data):
    with contextlib.suppress(RecipeError):
        check_numbers({"model": model, "data": data})


@few
@given(
    with_keys("base_weights", "frozen", "epoch", "global_step", "pytorch-lightning_version", "train_means", *TO_GO_ON),
    st.one_of(values, st.just({})),
)
def test_checkpoint_of_anything(content, weights):
    path = Path("last.ckpt")
    with taken_or_refused(path):
        check_goes_on(path, check_schema(path, {**content, "state_dict": weights}), [])
    sound = {"base_weights": None, "frozen": {}, "epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.6.0"}
    with taken_or_refused(path):
        check_goes_on(path, check_schema(path, {**content, **sound, "state_dict": {}, "train_means": {}}), [])


@few
@given(st.binary(max_size=200))
def test_bytes_in_every_reader(tmp_path, content):
    for name, read in (
        ("a.yaml", lambda path: load_named_classes(read_yaml(path))),
        ("a.npz", array_shapes),
        ("a.json", lambda path: read_coco([path], [])),
        ("b.json", lambda path: read_prompts(path, "boxes")),
        ("b.csv", lambda path: read_prompts(path, "points")),
        ("splits.json", read_splits),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with taken_or_refused(path):
            read(path)


@few
@given(st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_npz_with_a_byte_changed_or_its_end_cut_off_is_itself_or_refused(tmp_path, place, byte, cut):
    buffer = io.BytesIO()
    stored = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(buffer, imgs=stored)
    content = bytearray(buffer.getvalue())
    place %= len(content)
    content = content[:place] if cut else content[:place] + bytes([byte]) + content[place + 1 :]
    path = tmp_path / "a.npz"
    path.write_bytes(bytes(content))
    with taken_or_refused(path):
        # A checksum guards the values; what guards the names is that they are looked up.
        if "imgs" in array_shapes(path):
            assert read_key(path, "imgs").tobytes() == stored.tobytes()


def test_npz_with_members_of_other_kinds_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "imgs.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + b"x"
        )
    with pytest.raises(MedsamTuneError, match=r"a\.npz: "):
        read_key(path, "imgs")


@pytest.mark.parametrize("corner", [1e9, float("nan"), float("inf"), -1e9])
def test_polygon_that_leaves_its_image_by_far_is_refused_at_once(tmp_path, corner):
    path = tmp_path / "all.json"
    each = {"id": 7, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, corner, 0, 3, 3]]}
    path.write_text(json.dumps({**SOUND, "annotations": [each]}))
    (found,) = read_coco([path], [tmp_path / "a.png"]).objects[tmp_path / "a.png"]
    with pytest.raises(MedsamTuneError, match=r"all\.json.*a corner far outside the image of 4 x 4 pixels"):
        found.mask((4, 4))
