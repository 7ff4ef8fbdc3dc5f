"""Arrays as nnInteractive sends them, measured before a byte is unpacked.

Format: https://github.com/MIC-DKFZ/nnInteractive, ``inference/remote/serialization.py`` of nninteractive-client 2.6.0, and the
16-byte header of a Blosc2 chunk: https://github.com/Blosc/c-blosc2/blob/main/README_CHUNK_FORMAT.rst. The package's own
functions pack and unpack; they believe the lengths that a sender names, so these are compared with what came beforehand.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam_tune.serve.errors import Refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC, _VERSION, _CODECS = b"NNIA", 1, (1, 2)
_MOST_AXES = 4
# version, versionlz, flags, typesize, then the lengths plain, of a block, and packed.
_CHUNK_HEADER = struct.Struct("<4B3i")
_LENGTHS = struct.Struct("<QQ")
_KINDS = "buif"


def unpack(body: bytes, *, most_bytes: int) -> NDArray[Any]:
    """Return the array of a request's body.

    Args:
        body: As it came.
        most_bytes: What the array may take when it is unpacked.

    Raises:
        Refusal: With status 413 if it would take more, 400 if it is damaged or holds no real numbers.
    """
    try:
        shape, dtype, start = _announced(body)
    except (struct.error, UnicodeDecodeError, TypeError) as error:
        raise _damaged("its header cannot be read") from error
    size = math.prod(shape) * dtype.itemsize
    if size > most_bytes:
        raise Refusal(
            413,
            f"the array takes {size / 1e9:.2f} GB when unpacked, this server takes {most_bytes / 1e9:.2f} GB. "
            "Crop the image, or start the server with a larger --max-gigabytes.",
        )
    _check_chunks(body, start, size)
    from nnInteractive.inference.remote.serialization import unpack_array

    try:
        array: NDArray[Any] = unpack_array(body)
    except (ValueError, RuntimeError, struct.error) as error:
        raise _damaged("it cannot be unpacked") from error
    return array


def pack(array: NDArray[np.uint8]) -> bytes:
    """Return an array as the body of an answer."""
    import blosc2
    from nnInteractive.inference.remote.serialization import pack_array

    # Masks pack best as they are, says the client's own code for the masks that it sends.
    packed: bytes = pack_array(array, filters=[blosc2.Filter.NOFILTER], nthreads=1)
    return packed


def _announced(body: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return the shape and type that the header names, and where the chunks begin."""
    magic, version, codec, n_axes, n_letters = struct.unpack_from("<4s4B", body, 0)
    if magic != _MAGIC or version != _VERSION or codec not in _CODECS:
        raise _damaged("it does not begin as nnInteractive's arrays do")
    dtype = np.dtype(body[8 : 8 + n_letters].decode("ascii"))
    shape = struct.unpack_from(f"<{n_axes}q", body, 8 + n_letters)
    if dtype.kind not in _KINDS or not 1 <= n_axes <= _MOST_AXES or min(shape) < 1:
        raise Refusal(400, f"the array must hold real numbers along 1 to {_MOST_AXES} axes, got {dtype} {shape}.")
    return shape, dtype, 8 + n_letters + 8 * n_axes


def _check_chunks(body: bytes, start: int, size: int) -> None:
    """Compare the lengths that stand before each chunk with those in it, and their sum with the array's."""
    try:
        (n_chunks,) = struct.unpack_from("<I", body, start)
        place, total = start + 4, 0
        for _ in range(n_chunks):
            plain, packed = _LENGTHS.unpack_from(body, place)
            place += _LENGTHS.size
            *_, plain_inside, block, packed_inside = _CHUNK_HEADER.unpack_from(body, place)
            fits = (plain, packed) == (plain_inside, packed_inside) and 0 < block <= plain
            if not fits or place + packed > len(body):
                raise _damaged("the length of a chunk is not what stands before it")
            place, total = place + packed, total + plain
    except struct.error as error:
        raise _damaged("it is cut off") from error
    if total != size or place != len(body):
        raise _damaged("its chunks do not add up to its shape")


def _damaged(why: str) -> Refusal:
    return Refusal(400, f"the array was damaged on its way: {why}. Send it again.")
