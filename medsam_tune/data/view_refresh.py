"""``data.views_refresh``: which of an image's fixed views are drawn anew as the epochs go on.

A view is drawn anew by taking the next generation of its number: view v of generation g is view ``v + g * n_views``, made from
the seed of that number. So what an epoch shows is a function of seed, image and epoch, and a share of 0 is the plain rule.
"""

from __future__ import annotations

from collections.abc import Iterator

from medsam_tune.data.transforms import view_seed

_STEPS = 2**31


def is_refreshed(seed: int, name: str, epoch: int, share: float) -> bool:
    """Tell whether an image's view is drawn anew in an epoch.

    Args:
        seed: Of the run.
        name: Of the image, or of its chunk's first.
        epoch: The epoch.
        share: ``data.views_refresh``, the probability.
    """
    return view_seed(seed, f"refresh/{name}", epoch) % _STEPS < share * _STEPS


def shown_view(seed: int, name: str, epoch: int, *, n_views: int, share: float) -> int:
    """Return the number of the view that an epoch shows of an image; view 0, the image as stored, is never drawn anew.

    Args:
        seed: Of the run.
        name: Of the image, or of its chunk's first.
        epoch: From 0.
        n_views: Of each image.
        share: Part of the images whose view is drawn anew in an epoch, of those that have shown it before.

    Example:
        >>> [shown_view(0, "a", epoch, n_views=3, share=0.0) for epoch in range(5)]
        [0, 1, 2, 0, 1]
        >>> [shown_view(0, "a", epoch, n_views=3, share=1.0) for epoch in range(9)]
        [0, 1, 2, 0, 4, 5, 0, 7, 8]
    """
    view = epoch % n_views
    if view == 0 or share == 0:
        return view
    again = range(view + n_views, epoch + 1, n_views)
    return view + n_views * sum(is_refreshed(seed, name, each, share) for each in again)


def shown_views(seed: int, name: str, epochs: int, *, n_views: int, share: float) -> Iterator[int]:
    """Yield the number of every view that so many epochs show of an image, each once.

    Args:
        seed: As for ``shown_view``.
        name: As for ``shown_view``.
        epochs: Of the whole training.
        n_views: As for ``shown_view``.
        share: As for ``shown_view``.

    Example:
        >>> sorted(shown_views(0, "a", 9, n_views=3, share=1.0)), sorted(shown_views(0, "a", 9, n_views=3, share=0.0))
        ([0, 1, 2, 4, 5, 7, 8], [0, 1, 2])
    """
    current = list(range(n_views))
    yield from current[:epochs]
    for epoch in range(n_views, epochs):
        view = epoch % n_views
        if view and is_refreshed(seed, name, epoch, share):
            current[view] += n_views
            yield current[view]
