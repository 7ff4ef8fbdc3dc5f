"""The frozen network that finds priors, and how it is identified without being loaded."""

from __future__ import annotations

from pathlib import Path

from medsam_tune.backbone.sam import SamBackbone
from medsam_tune.backbone.weights import WEIGHTS, fetch_weights
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.files import sha256_of
from medsam_tune.precompute import PriorOrigin, PriorSettings


def prior_origin(settings: PriorSettings) -> PriorOrigin:
    """Return what priors of these settings depend on; released weights are identified by their file, without loading them.

    Raises:
        RecipeError: If the weights are unknown; the message names ``data.priors.weights``.
        CheckpointError: If a file cannot be found, downloaded or verified.
    """
    if settings.weights not in WEIGHTS:
        backbone = build_prior_network(settings)
        return PriorOrigin(settings, backbone.weights.sha256, backbone.input_rule)
    path = fetch_weights(settings.weights) if settings.checkpoint is None else Path(settings.checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file. Correct data.priors.checkpoint.")
    return PriorOrigin(settings, sha256_of(path), WEIGHTS[settings.weights].input_rule())


def build_prior_network(settings: PriorSettings) -> SamBackbone:
    """Build the frozen network that makes the priors.

    Raises:
        RecipeError: If the weights are unknown; the message names ``data.priors.weights``.
        CheckpointError: If a file cannot be found, verified or loaded strictly.
    """
    try:
        return SamBackbone(settings.weights, checkpoint=settings.checkpoint).eval()
    except RecipeError as error:
        raise RecipeError(str(error).replace("model.backbone.", "data.priors.")) from error
