import numpy as np

from medsam_tune.data.recent import RecentArrays


class Reader:
    def __init__(self):
        self.read = []

    def __call__(self, recent, key):
        return recent.get(key, lambda: self.read.append(key) or (np.full(10, key, np.uint8),))[0][0]


def test_least_recently_used_entry_is_forgotten():
    recent, reader = RecentArrays(max_items=2, max_bytes=1000), Reader()
    assert [reader(recent, key) for key in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert reader.read == [1, 2, 3, 2]


def test_bytes_are_bounded_too():
    recent, reader = RecentArrays(max_items=100, max_bytes=25), Reader()
    for key in (1, 2, 3, 2, 1):
        reader(recent, key)
    assert reader.read == [1, 2, 3, 1]


def test_entry_larger_than_the_bound_is_still_served():
    recent, reader = RecentArrays(max_items=3, max_bytes=5), Reader()
    assert [reader(recent, key) for key in (1, 1, 2)] == [1, 1, 2]
    assert reader.read == [1, 2]
