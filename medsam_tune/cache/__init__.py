"""Stores for what a frozen network computes once per image; importing this package loads no torch."""

from medsam_tune.cache.keys import embedding_key, store_name
from medsam_tune.cache.location import CacheSummary, cache_root, clear, embeddings_folder, entries, open_store
from medsam_tune.cache.prior_settings import PriorSettings
from medsam_tune.cache.prior_store import PriorOrigin, PriorStore, open_prior_store, priors_folder
from medsam_tune.cache.store import EmbeddingStore

__all__ = [
    "CacheSummary",
    "EmbeddingStore",
    "PriorOrigin",
    "PriorSettings",
    "PriorStore",
    "cache_root",
    "clear",
    "embedding_key",
    "embeddings_folder",
    "entries",
    "open_prior_store",
    "open_store",
    "priors_folder",
    "store_name",
]
