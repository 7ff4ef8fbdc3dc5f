"""A folder of shards as a pairing: keys say what belongs together, records name cases and patients."""

from __future__ import annotations

from pathlib import Path

from medsam_tune.data.formats import RasterFormat
from medsam_tune.data.layouts.base import DataFile, Pair, Pairing
from medsam_tune.data.patterns import PathPattern
from medsam_tune.data.shards.scanning import open_index
from medsam_tune.errors import DataError


def pairing_of_shards(root: Path) -> Pairing:
    """Return the pairs of a folder of shards.

    Args:
        root: For which ``holds_shards`` is true.

    Raises:
        DataError: If a shard or the index is damaged, or no image has a mask.
    """
    index = open_index(root)
    pairs: list[Pair] = []
    lonely: list[DataFile] = []
    for name, image, mask in index.paths(root):
        file = DataFile(image, _stem(image, root))
        if mask is None:
            lonely.append(file)
        else:
            pairs.append(Pair(name, file, (DataFile(mask, _stem(mask, root)),)))
    if not pairs:
        raise DataError(
            f"{root}: its tar files hold no image with a mask. Expected a.png and a.mask.png; unpack archives of other layouts."
        )
    cases = {name: case for name, case in zip(index.texts["names"], index.texts["cases"], strict=True) if case}
    return Pairing(
        f"{len(index.shards)} shards",
        RasterFormat(),
        PathPattern("{name}"),
        PathPattern("{name}.mask"),
        tuple(pairs),
        without_mask=tuple(lonely),
        shard_cases=cases,
    )


def _stem(member: Path, root: Path) -> str:
    """Return the member's name without its ending."""
    inside = member.relative_to(root.resolve()).as_posix().partition("/")[2]
    return inside.rpartition(".")[0]
