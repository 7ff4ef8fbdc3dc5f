"""Imported last by the server of processes: what it has imported is never looked through for garbage, nor copied for it."""

import gc

from medsam_tune.heap import keep_heap

gc.freeze()
gc.set_threshold(50_000)
gc.enable()
keep_heap()
