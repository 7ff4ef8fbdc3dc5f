import struct

import numpy as np
import pytest
from nnInteractive.inference.remote.serialization import pack_array, unpack_array

from medsam_tune.serve.errors import Refusal
from medsam_tune.serve.wire import pack, unpack

IMAGE = np.random.default_rng(0).normal(size=(1, 5, 20, 30)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float16", "float64", "bool"])
def test_what_the_client_packs_is_unpacked_and_back(dtype):
    array = (IMAGE * 50).astype(dtype)
    found = unpack(pack_array(array), most_bytes=10**6)
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    mask = (IMAGE[0] > 0).astype(np.uint8)
    assert np.array_equal(unpack_array(pack(mask)), mask)
    assert np.array_equal(unpack_array(pack(np.zeros((1, 7, 3), np.uint8))), np.zeros((1, 7, 3)))


def test_an_array_that_unpacks_to_more_is_refused_by_its_shape_alone():
    body = pack_array(np.zeros((1, 100, 100, 101), np.uint8))
    assert len(body) < 2000
    with pytest.raises(Refusal, match=r"takes 0\.00 GB when unpacked.*--max-gigabytes") as error:
        unpack(body, most_bytes=10**6)
    assert error.value.status == 413
    assert unpack(body, most_bytes=1_010_000).shape == (1, 100, 100, 101)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: body[:60], "cut off"),
        (lambda body: b"", "its header cannot be read"),
        (lambda body: b"PK\3\4" + body[4:], "does not begin as"),
        (lambda body: body[:-1], "not what stands before it"),
        (lambda body: body + b"more", "do not add up"),
        (lambda body: body.replace(b"float32", b"float64"), "do not add up"),
        (lambda body: body.replace(b"float32", b"object_"), "real numbers"),
        (lambda body: body.replace(b"float32", b"nothing"), "its header cannot be read"),
        (lambda body: body.replace(struct.pack("<q", 30), struct.pack("<q", -30)), "real numbers"),
        # Three lengths stand in a chunk: plain, of a block, packed; the plain one stands before it too.
        (lambda body: struct.pack("<i", 99999).join(body.split(struct.pack("<i", 12000), 1)), "not what stands before it"),
        (lambda body: struct.pack("<i", 99999).join(body.rsplit(struct.pack("<i", 12000), 1)), "not what stands before it"),
    ],
)
def test_a_damaged_array_is_refused_in_words(change, said):
    body = change(pack_array(IMAGE))
    with pytest.raises(Refusal, match=said) as error:
        unpack(body, most_bytes=10**6)
    assert error.value.status == 400


def test_random_damage_is_refused_or_gives_an_array_of_the_size_that_was_allowed():
    rng, body = np.random.default_rng(0), pack_array(IMAGE)
    refused = 0
    for _ in range(300):
        damaged = bytearray(body)
        for place in rng.integers(0, 120, 2):
            damaged[place] = rng.integers(0, 256)
        try:
            assert unpack(bytes(damaged), most_bytes=10**5).nbytes <= 10**5
        except Refusal:
            refused += 1
    assert refused > 100
