"""Imported last by the server of processes: what it has imported is never looked through for garbage, nor copied for it."""

import gc

gc.freeze()
gc.set_threshold(50_000)
gc.enable()
