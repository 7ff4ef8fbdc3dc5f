import pytest

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.weights import WEIGHTS
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.files import sha256_of
from medsam_tune.inference import prior_network as module
from medsam_tune.inference.prior_network import build_prior_network, prior_origin
from medsam_tune.precompute import PriorOrigin, PriorSettings


def test_released_weights_are_identified_by_their_file_without_being_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SamBackbone", None)
    checkpoint = tmp_path / "mine.pth"
    checkpoint.write_bytes(b"not even weights")
    origin = prior_origin(PriorSettings(weights="sam_vit_b", checkpoint=str(checkpoint)))
    assert origin.weights_sha256 == sha256_of(checkpoint)
    assert origin.rule == WEIGHTS["sam_vit_b"].input_rule()


def test_identity_is_that_of_the_network_that_makes_the_priors():
    for settings in (PriorSettings("random_tiny"), PriorSettings("lite_medsam")):
        network = build_prior_network(settings)
        assert prior_origin(settings) == PriorOrigin(settings, network.weights.sha256, network.input_rule)
        assert isinstance(network, SamBackbone)
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_unknown_weights_are_refused_by_the_key_of_the_priors():
    with pytest.raises(RecipeError, match=r"^data\.priors\.weights: 'sam_vit_x' is unknown. Known: lite_medsam"):
        prior_origin(PriorSettings(weights="sam_vit_x"))


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none.pth: there is no such file. Correct data\.priors\.checkpoint"):
        prior_origin(PriorSettings(checkpoint=str(tmp_path / "none.pth")))
