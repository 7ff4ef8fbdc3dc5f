"""Keep what was read last, up to a number of entries and bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

Key = TypeVar("Key", bound=Hashable)
Arrays = tuple[NDArray[Any], ...]


class RecentArrays(Generic[Key]):
    """Keep arrays by key and forget the least recently used; each worker process has its own.

    Args:
        max_items: Entries kept.
        max_bytes: Bytes kept over all entries.
    """

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self.max_items, self.max_bytes = max_items, max_bytes
        self._kept: OrderedDict[Key, Arrays] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key, read: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of ``key``; call ``read`` where they are not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        arrays = read()
        self._kept[key] = arrays
        self._bytes += sum(array.nbytes for array in arrays)
        while len(self._kept) > self.max_items or (self._bytes > self.max_bytes and len(self._kept) > 1):
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= sum(array.nbytes for array in dropped)
        return arrays
