"""Adapt the Segment Anything Model to medical images by training a few percent of its weights."""

__version__ = "0.1.0"
