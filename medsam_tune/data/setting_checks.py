"""What settings of the data exclude each other, said before a file is read."""

from __future__ import annotations

from medsam_tune.errors import RecipeError


def check_views(views: int, *, augmented: bool, cached: bool) -> None:
    """Refuse a number of views that cannot be shown.

    Raises:
        RecipeError: Naming the key.
    """
    if views < 1:
        raise RecipeError(f"data.views: expected at least 1, got {views}.")
    if views > 1 and not augmented:
        raise RecipeError(f"data.views: {views} views need data.augmentation, which is not set. Set it, or views: 1.")
    if augmented and cached and views == 1:
        raise RecipeError(
            "data.augmentation: a cached embedding shows one fixed view, so nothing would be augmented. Set data.views: K to "
            "cache K views of each training image (view 0 unaugmented), or data.cache_embeddings: false."
        )


def check_refresh(share: float, views: int) -> None:
    """Refuse a share of views that cannot be drawn anew.

    Raises:
        RecipeError: Naming the key.
    """
    if not 0 <= share <= 1:
        raise RecipeError(f"data.views_refresh: expected a share from 0 to 1, got {share}.")
    if share and views == 1:
        raise RecipeError("data.views_refresh: needs data.views above 1. Set data.views, or leave data.views_refresh out.")


def check_counts(**counts: int | None) -> None:
    """Refuse counts below 1.

    Raises:
        RecipeError: Naming the key.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise RecipeError(f"data.{name}: expected at least 1, got {value}.")


def check_tiles(tiled: bool, chunk: int) -> None:
    """Refuse slices that travel together as tiles.

    Raises:
        RecipeError: Naming the key.
    """
    if tiled and chunk > 1:
        raise RecipeError(f"data.tiles: tiles travel alone, but data.chunk joins {chunk} slices. Keep one of the two keys.")


def check_stride(stride: int, chunk: int) -> None:
    """Refuse windows that do not touch, which would leave slices without an answer.

    Raises:
        RecipeError: Naming the key.
    """
    if not 1 <= stride <= chunk:
        raise RecipeError(
            f"data.chunk_stride: expected 1 to {chunk}, the slices of a chunk (data.chunk), got {stride}. Lower it, or raise "
            "data.chunk."
        )
