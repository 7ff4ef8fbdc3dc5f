"""Shards: image and mask pairs in plain tar files with WebDataset's names, read by offset through an index.

A key names a sample and the ending says what a member is: ``p1/slice_3.png``, ``p1/slice_3.mask.png``, ``p1/slice_3.json``.
"""
