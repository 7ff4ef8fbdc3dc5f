"""Whether stored tensors are those a network expects: by name, shape, kind of number, and every value finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 1e10
"""Beyond what any weight is trained to. A flipped bit of an exponent leads there, which no checksum of safetensors tells."""


def misfits(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, several: int = 3) -> str:
    """Say what keeps stored tensors from being loaded in place of the expected ones.

    A floating point tensor may be stored in another precision. Integer, complex, sparse or quantised values in its place, NaN,
    infinity and values beyond ``LARGEST`` are what damaged files and wrong conversions leave behind.

    Args:
        stored: Tensors from a file.
        expected: The network's own.
        several: How many names each kind of fault lists.

    Returns:
        One line such as ``2 missing (a, b); 1 with NaN or infinity (c)``; empty if all fits.

    Examples:
        >>> import torch
        >>> misfits({"a": torch.tensor([1.0, float("nan")])}, {"a": torch.zeros(2)})
        '1 with NaN or infinity (a)'
    """
    both = [name for name in expected if name in stored]
    reshaped = [name for name in both if stored[name].shape != expected[name].shape]
    other = [name for name in both if name not in reshaped and not _is_of_kind(stored[name], expected[name])]
    alike = [name for name in both if name not in reshaped and name not in other]
    broken = [name for name in alike if not _is_finite(stored[name])]
    faults = {
        "missing": [name for name in expected if name not in stored],
        "unexpected": [name for name in stored if name not in expected],
        "of another shape": [f"{name} {tuple(stored[name].shape)} for {tuple(expected[name].shape)}" for name in reshaped],
        "of another type": [f"{name} {_type(stored[name])} for {_type(expected[name])}" for name in other],
        "with NaN or infinity": broken,
        f"with values beyond {LARGEST:.0e}": [name for name in alike if name not in broken and _is_huge(stored[name])],
    }
    return "; ".join(f"{len(names)} {fault} ({shortened(names, several)})" for fault, names in faults.items() if names)


def shortened(names: Sequence[str], limit: int) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def damaged(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of weights that no network could have been trained to, each with what is wrong with it.

    For files whose network is not known yet: complex, sparse or quantised values, integers where the name says weight or bias,
    NaN, infinity and values beyond ``LARGEST``.
    """
    wrong = [
        f"{name} is {_type(tensor)}"
        for name, tensor in tensors.items()
        if not _is_plain(tensor) or (name.endswith(("weight", "bias")) and not tensor.is_floating_point())
    ]
    wrong = wrong or [f"{name} holds NaN or infinity" for name, tensor in tensors.items() if not _is_finite(tensor)]
    return wrong or [f"{name} holds values beyond {LARGEST:.0e}" for name, tensor in tensors.items() if _is_huge(tensor)]


def _is_plain(tensor: Tensor) -> bool:
    import torch

    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_complex()


def _is_of_kind(stored: Tensor, expected: Tensor) -> bool:
    return _is_plain(stored) and stored.is_floating_point() == expected.is_floating_point()


def _is_finite(tensor: Tensor) -> bool:
    import torch

    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _is_huge(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool((tensor.abs() > LARGEST).any())


def _type(tensor: Tensor) -> str:
    layout = "" if str(tensor.layout) == "torch.strided" else f"{str(tensor.layout).removeprefix('torch.')} "
    return layout + str(tensor.dtype).removeprefix("torch.")
