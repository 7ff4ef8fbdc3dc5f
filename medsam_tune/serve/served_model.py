"""The model that a server offers, with all that its clients are told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from medsam_tune.backbone.base import WeightsIdentity
from medsam_tune.backbone.weights import WEIGHTS
from medsam_tune.inference.asked_slices import EncodedSlices, check_label
from medsam_tune.inference.held_image import ORIENTATION, check_orientation
from medsam_tune.inference.propagation import PropagationRules, check_propagation
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.runs.asked_model import AskedModel
from medsam_tune.serve.asked_volume import AskedVolume

# The generation of nnInteractive's session that the endpoints belong to; nninteractive-client 2.6.0 speaks 2.
_SESSION_VERSION = 2


@dataclass(frozen=True)
class ServedModel:
    """Hold a model and how it is offered.

    Attributes:
        encoded: The network, and the slices of all clients that were encoded.
        data: What it was trained on.
        orientation: Where the axes of the clients' arrays run.
        label: The class that is shown.
        rules: How an object is followed from the slice that was drawn on; None answers that slice alone.
    """

    encoded: EncodedSlices
    data: TrainedData
    orientation: str = ORIENTATION
    label: str | None = None
    rules: PropagationRules | None = None

    @classmethod
    def of(
        cls,
        model: AskedModel,
        *,
        orientation: str = ORIENTATION,
        label: str | None = None,
        rules: PropagationRules | None = None,
    ) -> ServedModel:
        """Prepare a model, on the GPU where there is one.

        Raises:
            RecipeError: If the orientation or the label does not fit, or the model's objects cannot be followed.
        """
        check_orientation(orientation)
        if rules is not None:
            check_propagation(model.predictor.segmenter)
        check_label(model.predictor.segmenter, label)
        if torch.cuda.is_available():
            model.predictor.segmenter.to("cuda")
        return cls(EncodedSlices(model.predictor, find_priors=model.prior_finder()), model.data, orientation, label, rules)

    def open_volume(self) -> AskedVolume:
        """Return what a new client asks about."""
        return AskedVolume(self.encoded, self.data, orientation=self.orientation, label=self.label, rules=self.rules)

    def licence(self) -> str:
        """Return what a user must know of the licence of the weights."""
        return licence_of(self.encoded.predictor.segmenter.base_weights())

    def capabilities(self) -> dict[str, Any]:
        """Return what nnInteractive's clients ask at first: which buttons to offer, and the licence that they show."""
        prompts = self.encoded.predictor.segmenter.takes_prompts()
        return {
            "supported_interactions": {
                "points": prompts,
                "bbox2d": prompts,
                "bbox3d": False,
                "scribble": False,
                "lasso": False,
            },
            "channel_mapping": {},
            "num_interaction_channels": 0,
            "supports_initial_label": False,
            "supports_zero_shot_label_refinement": False,
            "preferred_scribble_thickness": [1, 1, 1],
            "interaction_decay": None,
            "do_autozoom": False,
            "inference_session_version": _SESSION_VERSION,
            "license": self.licence(),
            "supports_undo": True,
        }


def licence_of(weights: WeightsIdentity | None) -> str:
    """Return the licence of the base weights in one line.

    Examples:
        >>> licence_of(None)
        'All weights were trained by the owner of this server; terms of the training data may apply.'
    """
    if weights is None:
        return "All weights were trained by the owner of this server; terms of the training data may apply."
    known = WEIGHTS.get(weights.name)
    licence = "a licence that this server does not know" if known is None else known.licence
    return f"Base weights {weights.name} under {licence}; terms of the training data may apply."
