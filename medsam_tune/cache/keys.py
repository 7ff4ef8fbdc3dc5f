"""Names of cached embeddings: content, transform, weights and precision are all in them, so nothing goes stale."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from medsam_tune.geometry import Frame, InputRule

# Part of every store's name: raise it when a change of the code changes what an encoder returns for the same input.
CACHE_FORMAT = 1


def embedding_key(image: Tensor, frame: Frame) -> str:
    """Return the key of one network input: 32 hexadecimal digits.

    The key reads the pixels after resizing, augmentation and padding, and the valid area; the file's name, its original size
    and the epoch are irrelevant to the embedding and stay out of it.

    Args:
        image: (3, S, S) in 0..255.
        frame: Its ``input_size`` says where the padding begins.
    """
    pixels = image.detach().float().cpu().contiguous()
    digest = hashlib.blake2b(f"{tuple(pixels.shape)} {tuple(frame.input_size)}".encode(), digest_size=16)
    digest.update(pixels.numpy().data)
    return digest.hexdigest()


def store_name(weights_sha256: str, rule: InputRule, precision: str = "fp16") -> str:
    """Return the folder name of the store for these weights under this input rule.

    Args:
        weights_sha256: Checksum of the weights file; its first twelve digits appear in the name.
        rule: All its numbers are part of the name's second field.
        precision: How the store keeps numbers.
    """
    text = json.dumps([CACHE_FORMAT, asdict(rule)], sort_keys=True)
    return f"{weights_sha256[:12]}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}-{precision}"
