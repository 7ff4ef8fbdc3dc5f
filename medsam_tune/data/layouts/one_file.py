"""Files that hold an image and its mask together, as MedSAM's ``.npz`` do."""

from __future__ import annotations

from medsam_tune.data.layouts.base import Layout, Listing, Pair, Pairing
from medsam_tune.data.patterns import PathPattern
from medsam_tune.errors import DataError


class OneFile(Layout):
    """Take files whose format may keep masks beside the image."""

    name = "image and mask in one file"

    def find(self, listing: Listing) -> Pairing | str:
        """Take every file that has masks; one that cannot be read is taken too, and listed as a fault when it is."""
        if not listing.format.holds_labels:
            return ""
        everything = PathPattern("{name}")
        pairs, lonely = [], []
        for file in listing.files:
            try:
                holds = listing.format.read_label_header(file.path) is not None
            except DataError:
                holds = True
            if holds:
                pairs.append(Pair(file.stem, file, (file,)))
            else:
                lonely.append(file)
        if not pairs:
            return "none of the files holds masks"
        return Pairing(self.name, listing.format, everything, everything, tuple(pairs), without_mask=tuple(lonely))
