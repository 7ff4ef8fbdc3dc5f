"""Images and masks in shards: plain tar files with WebDataset's names, as ``medsam-tune prepare --shards`` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from medsam_tune.data.image_folder import ImageFolder
from medsam_tune.data.intensity import Intensity
from medsam_tune.data.mask_files import MaskFile
from medsam_tune.data.paired import Pairs
from medsam_tune.data.pairing import first_names, pair_files
from medsam_tune.data.shards.index import ShardIndex
from medsam_tune.data.shards.members import stated_patient
from medsam_tune.data.shards.scanning import open_index
from medsam_tune.errors import DataError, PartlyUsable


class ImageShards(ImageFolder):
    """Read images and masks from the tar files of a folder, each where it lies; nothing is unpacked.

    A sample is ``KEY.png`` (or ``.jpg``, ...), its mask ``KEY.mask.png`` and, if there is one, its record ``KEY.json`` with
    the names of ``image``, ``case`` and ``patient``. The index beside the shards says where they lie; without one the
    headers are read once and remembered. Everything else is as in ``ImageFolder``.

    Args:
        case_pattern: As in ``ImageFolder``; in place of the cases that the records name. Without either every image is a case.
        labels: As in ``ImageFolder``.
        mask_threshold: As in ``ImageFolder``.
        intensity: As in ``ImageFolder``.
        exclude: Members that are left out, with or without ending, where ``*`` is any text.
    """

    def __init__(
        self,
        case_pattern: str | None = None,
        labels: dict[str, list[int | str]] | None = None,
        mask_threshold: int | None = None,
        intensity: Intensity | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(
            images=".",
            masks=".",
            mask_suffix=".mask",
            case_pattern=case_pattern,
            labels=labels,
            mask_threshold=mask_threshold,
            intensity=intensity,
            exclude=exclude,
        )
        self._case_of_name: dict[str, str] = {}
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._n_shards = 0

    def find_pairs(self, root: Path, *, require_masks: bool) -> Pairs:
        """Take the pairs from the index.

        Raises:
            DataError: If there are no shards, one is damaged, or the index is not theirs.
            PartlyUsable: If an image has no mask.
        """
        if not root.is_dir():
            raise DataError(f"{root}: no such folder. Set data.root to the folder that holds the shards.")
        index = open_index(root)
        found = [each for each in index.paths(root) if not self._is_left_out(each[1], each[2], root)]
        self._remember(index, found)
        images: dict[str, Path] = {name: image for name, image, _ in found}
        masks: dict[str, tuple[Path, ...]] = {name: (mask,) for name, _, mask in found if mask is not None}
        self._mask_files = {mask: MaskFile(mask) for (mask,) in masks.values()}
        self.label_groups()  # refuses names that are none
        paired = pair_files(images, masks, root=root, require_masks=False, hint="")
        pairs: Pairs = [(name, image, files or ()) for name, image, files in paired]
        if require_masks and (lonely := [image for _, image, files in pairs if not files]):
            usable = [pair for pair in pairs if pair[2]]
            raise PartlyUsable(f"{root}: masks are missing", [_without_mask(lonely)], usable)
        return pairs

    def check_pair(self, image: Path, masks: tuple[Path, ...]) -> None:
        """Compare the sizes that headers state, where nobody did when the shards were written."""
        if image not in self._sizes:
            super().check_pair(image, masks)

    def size(self, index: int) -> tuple[int, int]:
        """Return (H, W) from the index, else from an image's header."""
        known = self._sizes.get(self._pairs[index][1])
        return super().size(index) if known is None else known

    def patient_ids(self) -> tuple[str | None, ...]:
        """Return the patient that each sample's record names."""
        return tuple(stated_patient(image) for _, image, _ in self._pairs)

    def case_files(self, indices: Sequence[int]) -> list[Path]:
        """Return images, then masks, as a prepared folder of the same samples lists them, so that both have one checksum."""
        pairs = sorted((self._pairs[index] for index in indices), key=lambda pair: Path(f"{pair[0]}{pair[1].suffix}"))
        return [*(image for _, image, _ in pairs), *(mask for _, _, masks in pairs for mask in masks)]

    def describe(self) -> dict[str, object]:
        """Return rules and counts."""
        told = super().describe()
        for place in ("other_files", "pairs", "mask_pattern", "image_pattern"):
            del told[place]
        return {**told, "shards": self._n_shards}

    def _remember(self, index: ShardIndex, found: Sequence[tuple[str, Path, Path | None]]) -> None:
        self._n_shards = len(index.shards)
        self._case_of_name = {name: case for name, case in zip(index.texts["names"], index.texts["cases"], strict=True) if case}
        sizes = dict(zip(index.texts["names"], index.numbers[:, 5:].tolist(), strict=True))
        self._sizes = {image: (h, w) for name, image, _ in found for h, w in [sizes[name]] if h and w}

    def _case_of(self, name: str, path: Path) -> str:
        return super()._case_of(name, path) if self.case_pattern is not None else self._case_of_name.get(name, name)

    def _is_left_out(self, image: Path, mask: Path | None, root: Path) -> bool:
        if not self.exclude:
            return False
        members = [path.relative_to(root.resolve()).as_posix().partition("/")[2] for path in (image, mask) if path is not None]
        names = {name for member in members for name in (member, member.rpartition(".")[0])}
        return any(fnmatchcase(name, pattern) for pattern in self.exclude for name in names)


def _without_mask(images: list[Path]) -> str:
    more = f"; so have {len(images) - 1} more ({first_names([path.name for path in images[1:]])})" if len(images) > 1 else ""
    return f"{images[0]}: has no mask {images[0].stem}.mask.png in its shard{more}. Add the masks, or remove the images."
