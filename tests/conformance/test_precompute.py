"""What every kind of precomputed value must do: embeddings, prefixes, priors, and one that is not ours."""

import json
import pickle

import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.geometry import Frame, InputRule
from medsam_tune.precompute import (
    EmbeddingPrecompute,
    Precompute,
    PrefixPrecompute,
    PriorOrigin,
    PriorPrecompute,
    PriorSettings,
    clear,
    entries,
    open_store,
)
from medsam_tune.precompute.fill import fill, lookup
from medsam_tune.types import AutomaticMasks

RULE = InputRule(16)
ITEMS = [(3,), (5,), (8,)]


def image(item):
    return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(item[0])) * 255


class Histograms(Precompute):
    """A kind of a user's own: the histogram of an image."""

    kind = "histograms"
    doing = "Counting"

    def facts(self):
        return {"weights_sha256": "f" * 64, "bins": 8}

    def weights_name(self):
        return "none"

    def read(self, item):
        return image(item)

    def pixels(self, image):
        return "", image

    def compute(self, images):
        return [torch.histc(image, 8) for image in images]

    def pack(self, value):
        return value

    @staticmethod
    def unpack(entry):
        return entry


ENCODER = {
    "weights_name": "lite",
    "weights_sha256": "a" * 64,
    "rule": RULE,
    "load": lambda item: (image(item), Frame((16, 16), (16, 16))),
    "encode": lambda images, frames: images[:, :, ::4, ::4] / 255,
    "batch_size": 2,
}


def embeddings():
    return EmbeddingPrecompute(**ENCODER)


def prefixes():
    return PrefixPrecompute("image_encoder.blocks.9", **ENCODER)


def priors():
    def find(pixels):
        masks = pixels > 128
        return AutomaticMasks(masks, pixels.mean(dim=(1, 2)) / 255, pixels.std(dim=(1, 2)) / 255)

    return PriorPrecompute(PriorOrigin(PriorSettings(), "b" * 64, RULE), image, lambda: find)


KINDS = {"embeddings": embeddings, "prefixes": prefixes, "priors": priors, "histograms": Histograms}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def precompute(request):
    return request.param()


def value_of(precompute, item):
    return precompute.compute([precompute.read(item)])[0]


def test_facts_are_json_and_name_the_weights(precompute):
    facts = precompute.stored_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert len(facts["weights_sha256"]) == 64
    assert facts["kind"] == precompute.kind


def test_value_survives_packing(precompute):
    value = value_of(precompute, (3,))
    again = precompute.unpack(precompute.pack(value))
    assert precompute.difference(again, value) == ""
    assert torch.equal(precompute.pack(again), precompute.pack(value))


def test_other_image_gives_a_value_that_is_told_apart(precompute):
    assert precompute.difference(value_of(precompute, (5,)), value_of(precompute, (3,))) != ""


def test_key_is_a_function_of_the_pixels_and_of_the_identity(precompute):
    key = precompute.key(precompute.read((3,)))
    assert key == precompute.key(precompute.read((3,)))
    assert key != precompute.key(precompute.read((5,)))
    assert key.startswith(f"{precompute.identity()}-")


def test_identities_of_kinds_differ():
    assert len({make().identity() for make in KINDS.values()}) == len(KINDS)


def test_filled_once_found_by_a_pickled_lookup_listed_and_cleared(precompute, tmp_path):
    store = open_store(precompute, tmp_path)
    filled = fill(store, precompute, ITEMS)
    assert filled.made == len(ITEMS)
    again = fill(open_store(precompute, tmp_path), precompute, ITEMS)
    assert (again.made, again.keys) == (0, filled.keys)
    find = pickle.loads(pickle.dumps(lookup(store, precompute, filled.keys)))
    for item in ITEMS:
        assert precompute.difference(find(*item), value_of(precompute, item)) == ""
    (summary,) = entries(tmp_path)
    assert (summary.kind, summary.images, summary.weights) == (precompute.kind, len(ITEMS), precompute.weights_name())
    assert clear(summary.folder) == summary.bytes
    assert entries(tmp_path) == []


def test_store_of_another_kind_in_its_place_is_refused(precompute, tmp_path):
    store = open_store(precompute, tmp_path)
    (store.folder / "info.json").write_text(json.dumps({**precompute.stored_facts(), "kind": "another"}))
    with pytest.raises(DataError, match=r"these values were made with kind 'another'"):
        open_store(precompute, tmp_path)
