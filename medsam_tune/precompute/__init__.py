"""What a frozen network computes once per image: keyed, kept in shards, listed and cleared by one mechanism.

Importing this package loads no torch.
"""

from medsam_tune.precompute.base import Filled, Lookup, Precompute
from medsam_tune.precompute.embeddings import EmbeddingPrecompute
from medsam_tune.precompute.location import StoreSummary, cache_root, clear, entries, open_store
from medsam_tune.precompute.prefixes import PrefixPrecompute
from medsam_tune.precompute.prior_settings import PriorSettings
from medsam_tune.precompute.priors import PriorCounts, PriorOrigin, PriorPrecompute, count_masks
from medsam_tune.precompute.store import Store

__all__ = [
    "EmbeddingPrecompute",
    "Filled",
    "Lookup",
    "Precompute",
    "PrefixPrecompute",
    "PriorCounts",
    "PriorOrigin",
    "PriorPrecompute",
    "PriorSettings",
    "Store",
    "StoreSummary",
    "cache_root",
    "clear",
    "count_masks",
    "entries",
    "open_store",
]
