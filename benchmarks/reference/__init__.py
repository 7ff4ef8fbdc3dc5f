"""The other side of the comparisons: stock segment_anything, driven as the papers' training loops drive it. Written here."""
