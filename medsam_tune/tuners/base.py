"""The seam of what is inserted into a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from medsam_tune.backbone.base import Backbone
from medsam_tune.backbone.freezing import set_trainable
from medsam_tune.errors import CheckpointError, RecipeError


class Tuner(ABC):
    """Insert trainable modules into a frozen backbone and own their parameters exactly.

    Attributes:
        declares_identity: Whether the output is that of the untouched backbone before training. A tuner that is none by design,
            or by its settings, sets it to False and says why in ``identity_note``.
        identity_note: Why the output moves already before training; empty for an identity.
        mixes_slices: Whether the slices of a chunk see each other. The encoder is then given whole chunks only, see
            ``Backbone.encode``.
    """

    declares_identity: bool = True
    identity_note: str = ""
    mixes_slices: bool = False

    @abstractmethod
    def attach(self, backbone: Backbone) -> None:
        """Insert the modules in place; the output must not change before training.

        Raises:
            RecipeError: If the backbone has no place for this tuner, or a tuner is attached already.
        """

    @abstractmethod
    def is_tuned(self, parameter_name: str) -> bool:
        """Tell whether the backbone's parameter of this dotted name belongs to the tuner."""

    def changes_encoder(self) -> bool:
        """Tell whether the image embedding depends on the tuner, which rules the embedding cache out."""
        return True

    def auxiliary_loss(self) -> Tensor:
        """Return a scalar added to the loss, such as AdaLoRA's orthogonality; 0 by default."""
        return torch.zeros(())

    def after_backward(self, step: int) -> None:  # noqa: B027 - a hook that most tuners leave out
        """Run after each backward pass, before the optimizer's step number ``step``; nothing by default."""

    def after_step(self, step: int) -> None:  # noqa: B027 - a hook that most tuners leave out
        """Run after the optimizer's step number ``step``, counted from 0, gradients still at hand; nothing by default."""

    def merge(self) -> None:
        """Fold what was trained into the network's own weights and remove what was inserted; the output in eval mode stays.

        Raises:
            CheckpointError: If the method cannot be merged, as most that put a module between two layers.
        """
        raise CheckpointError(
            f"model.tuner: {type(self).__name__} cannot be merged: what it inserts acts between layers, and no weight of the "
            "network can hold it. Export the run's own folder instead."
        )

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the parameters, as tensors and plain values; nothing by default.

        Whatever ``after_backward`` and ``after_step`` keep from one step to the next belongs here, or a resumed run differs.
        """
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - a hook that most tuners leave out
        """Go on from what ``extra_state`` returned; its tensors lie on the CPU. Nothing by default."""


class InsertingTuner(Tuner):
    """Own exactly the parameters that ``insert`` names; all tuners of this package but ``NoTuner`` are of this kind."""

    def __init__(self) -> None:
        self._owned: frozenset[str] = frozenset()
        self._backbone: Backbone | None = None

    @abstractmethod
    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Change the backbone in place and return the dotted names of the parameters, new or old, that the tuner trains.

        Raises:
            RecipeError: If the backbone has no place for this tuner.
        """

    def attach(self, backbone: Backbone) -> None:
        """Insert the modules and let exactly their parameters learn, beside what the backbone's ``trainable`` names.

        Raises:
            RecipeError: If the backbone has no place for this tuner, or a tuner is attached already.
        """
        attached = getattr(backbone, "attached_tuner", None)
        if attached is not None or self._owned:
            raise RecipeError(
                f"model.tuner: {type(self).__name__} cannot be attached: {attached or 'this tuner'} is attached already. "
                "Build a fresh backbone and a fresh tuner."
            )
        names = list(self.insert(backbone))
        self._backbone = backbone
        set_trainable(backbone, names)
        self._owned = frozenset(names)
        backbone.attached_tuner = type(self).__name__
        backbone.mixes_slices = self.mixes_slices
        backbone.train(backbone.training)

    def is_tuned(self, parameter_name: str) -> bool:
        """Tell whether the backbone's parameter of this dotted name belongs to the tuner."""
        return parameter_name in self._owned

    def backbone(self) -> Backbone:
        """Return the network that the tuner is attached to.

        Raises:
            RuntimeError: Before ``attach``.
        """
        if self._backbone is None:
            raise RuntimeError("the tuner is not attached; build a SamSegmenter with it, or call attach(backbone)")
        return self._backbone

    def changes_encoder(self) -> bool:
        """Tell whether any parameter of the tuner lies in the image encoder."""
        return any(name.startswith("image_encoder.") for name in self._owned)


class OwnWeightsTuner(InsertingTuner):
    """Train parameters that the network has already, so that there is nothing to merge."""

    def merge(self) -> None:
        """Leave everything as it is."""


def names_below(backbone: Backbone, modules: Iterable[str]) -> list[str]:
    """Return the dotted names of all parameters at or below the named modules."""
    return [f"{module}.{name}" for module in modules for name, _ in backbone.get_submodule(module).named_parameters()]


def decoder_names(backbone: Backbone) -> list[str]:
    """Return the dotted names of the mask decoder's parameters that a loss on the single mask reaches."""
    anatomy = backbone.anatomy()
    return [name for name in names_below(backbone, ["mask_decoder"]) if anatomy.reached(name, "single_mask")]


class NoTuner(Tuner):
    """Insert nothing: only what the recipe names as trainable, or the prompt encoder, learns."""

    def attach(self, backbone: Backbone) -> None:
        """Leave the backbone as it is."""

    def is_tuned(self, parameter_name: str) -> bool:
        """Return False for every name."""
        return False

    def changes_encoder(self) -> bool:
        """Return False: the encoder stays the released one."""
        return False

    def merge(self) -> None:
        """Leave everything as it is."""
