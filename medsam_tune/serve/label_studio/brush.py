"""Masks as Label Studio's brush stores them: the run lengths of thi.ng's rle-pack over the four channels of each pixel.

Format: https://github.com/thi-ng/umbrella/blob/develop/packages/rle-pack/src/index.ts, written anew from its layout of bits:
32 for the count of values, 5 for the length of a value, 4 each for four lengths of run lengths, then blocks. A block is a bit
that says whether one value is repeated, 2 that choose a length, the count of values less 1, and the value or the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam_tune.serve.errors import Refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHANNELS = 4
_WORD = 8
_LENGTHS = (3, 4, 8, 16)
_OPAQUE = 255


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Return a mask (H, W) as the bytes of a brush region, object pixels opaque in all channels.

    Example:
        >>> encode_brush(np.array([[True, False]]))
        [0, 0, 0, 8, 57, 27, 252, 127, 241, 128, 0]
    """
    values = mask.reshape(-1)
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    ends = [0, *(int(end) * _CHANNELS for end in changes), values.size * _CHANNELS]
    bits = [f"{values.size * _CHANNELS:032b}", f"{_WORD - 1:05b}", *(f"{length - 1:04b}" for length in _LENGTHS)]
    for first, end in pairwise(ends):
        word = f"{_OPAQUE if values[first // _CHANNELS] else 0:0{_WORD}b}"
        bits += [_block(count, word) for count in _parts(end - first)]
    packed = "".join(bits)
    return np.packbits(np.frombuffer(packed.encode(), np.uint8) - ord("0")).tolist()


def decode_brush(packed: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of a brush region: where its fourth channel, alpha, is not 0.

    Raises:
        Refusal: If the bytes are none of an image of ``size``.
    """
    try:
        bits = np.unpackbits(np.array(packed, np.uint8))
    except (ValueError, TypeError, OverflowError) as error:
        raise _damaged("its bytes are no numbers from 0 to 255") from error
    reader = _Bits(bits)
    count, word, lengths = reader.read(32), reader.read(5) + 1, [reader.read(4) + 1 for _ in _LENGTHS]
    if count != size[0] * size[1] * _CHANNELS or word > _WORD:
        raise _damaged(f"it holds {count} values of {word} bits, expected {size[0]} x {size[1]} pixels of {_CHANNELS} x 8")
    values, place = np.zeros(count, np.uint8), 0
    while place < count:
        repeated = reader.read(1)
        end = place + 1 + reader.read(lengths[reader.read(2)])
        if end > count:
            raise _damaged("a run goes beyond the image")
        values[place:end] = reader.read(word) if repeated else reader.read_words(end - place, word)
        place = end
    found: NDArray[np.bool_] = values.reshape(*size, _CHANNELS)[..., -1] > 0
    return found


class _Bits:
    """Read numbers from a row of bits, the highest first."""

    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self._bits, self._place = bits, 0

    def read(self, length: int) -> int:
        return int(self._take(length) @ (1 << np.arange(length - 1, -1, -1, dtype=np.int64)))

    def read_words(self, count: int, length: int) -> NDArray[Any]:
        return self._take(count * length).reshape(count, length) @ (1 << np.arange(length - 1, -1, -1, dtype=np.int64))

    def _take(self, length: int) -> NDArray[np.uint8]:
        taken = self._bits[self._place : self._place + length]
        if len(taken) < length:
            raise _damaged("it is cut off")
        self._place += length
        return taken


def _parts(length: int) -> list[int]:
    """Cut a run into those that the longest length can count."""
    most = 1 << _LENGTHS[-1]
    return [most] * (length // most) + ([length % most] if length % most else [])


def _block(count: int, word: str) -> str:
    which = next(number for number, length in enumerate(_LENGTHS) if count <= 1 << length)
    return f"1{which:02b}{count - 1:0{_LENGTHS[which]}b}{word}"


def _damaged(why: str) -> Refusal:
    return Refusal(400, f"the brush region was damaged on its way: {why}. Draw it again.")
