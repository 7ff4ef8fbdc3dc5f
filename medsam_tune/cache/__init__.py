"""Stores for what a frozen network computes once per image; importing this package loads no torch."""

from medsam_tune.cache.keys import embedding_key, store_name
from medsam_tune.cache.location import CacheSummary, cache_root, clear, embeddings_folder, entries, open_store
from medsam_tune.cache.store import EmbeddingStore

__all__ = [
    "CacheSummary",
    "EmbeddingStore",
    "cache_root",
    "clear",
    "embedding_key",
    "embeddings_folder",
    "entries",
    "open_store",
    "store_name",
]
