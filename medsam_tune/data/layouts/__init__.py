"""What a folder of one's own is: its layout, found by trying the known ones in a stated order."""

from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pair, Pairing
from medsam_tune.data.layouts.detect import LAYOUTS, detect, pairing_of_patterns

__all__ = ["LAYOUTS", "DataFile", "Layout", "Listing", "Pair", "Pairing", "detect", "pairing_of_patterns"]
