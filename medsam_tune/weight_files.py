"""Files of weights: read without running any code in them; what torch saved is never read in silence where one bit has changed.

Safetensors has no checksum: there ``backbone.fit`` sees what a changed bit left behind only where no weight could be so large.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

from medsam_tune.errors import CheckpointError, ran_out_of_memory

# What torch.load and safetensors were seen to raise on damaged bytes.
_DAMAGED: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
_CHUNK_BYTES = 1 << 20


def read_weights(path: Path, remedy: str = "Copy it again, or save its state_dict() alone.") -> object:
    """Read a file of ``torch.save`` or safetensors to the CPU; no code in it is ever run.

    Args:
        path: The file.
        remedy: What to do when it cannot be read, as a sentence.

    Returns:
        What the file holds: tensors by name in a safetensors file, in the other whatever was saved.

    Raises:
        CheckpointError: If the file is missing, cut off or corrupt (one flipped bit included, where torch.save stored
            checksums), holds Python objects, or does not fit into memory.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Correct the path.")
    damaged: tuple[type[Exception], ...] = (*_DAMAGED, SafetensorError)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_records(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except damaged as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        if ran_out_of_memory(fault):
            raise CheckpointError(
                f"{path}: does not fit into memory ({reason}). Free some; if {path.stat().st_size / 1e6:.0f} MB should fit, "
                f"the file is corrupt: {remedy[0].lower()}{remedy[1:]}"
            ) from fault
        raise CheckpointError(
            f"{path}: cannot be read as weights ({reason}). Expected tensors saved by torch.save or safetensors; "
            f"the file is cut off, corrupt, or holds Python objects, which are never loaded. {remedy}"
        ) from fault


def _check_records(path: Path) -> None:
    """Compare the records of a ``torch.save`` file with their own checksums, which ``torch.load`` does not.

    Raises:
        zipfile.BadZipFile: If one differs. Files of PyTorch before 1.6, and those saved without checksums, have none.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.CRC:
                with archive.open(record) as content:
                    while content.read(_CHUNK_BYTES):
                        pass
