"""What is frozen is the file's, weights and buffers, after a network was built from it and after a step of training."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.weights import fetch_weights, load_state_dict_file
from tests.backbones import BACKBONES
from tests.conformance.steps import make_segmenter, take_step
from tests.conformance.tuner_cases import RUNS
from tests.factories import make_batch

# Where a tuner of peft, or a place for adapters, keeps the network's own layer.
WRAPPED = ".base_layer."


def frozen_tensors(backbone):
    """Weights that do not learn, and buffers of modules of which no parameter learns, by the name the file has for them."""
    tensors = {}
    for path, module in backbone.named_modules():
        own = list(module.parameters(recurse=False))
        buffers = () if any(p.requires_grad for p in own) else module.named_buffers(recurse=False)
        weights = ((name, p) for name, p in module.named_parameters(recurse=False) if not p.requires_grad)
        for name, tensor in chain(weights, buffers):
            tensors[f"{path}.{name}".removeprefix(".").replace(WRAPPED, ".")] = tensor
    return tensors


def changed(backbone, file):
    """Names of frozen tensors that differ from the file's, those that the file has."""
    frozen = frozen_tensors(backbone)
    assert frozen.keys() & file.keys() or all(p.requires_grad for p in backbone.parameters())
    return [name for name in frozen.keys() & file.keys() if not torch.equal(frozen[name], file[name])]


@pytest.mark.parametrize(("name", "family"), RUNS, ids=lambda value: value)
def test_under_every_tuner_what_is_frozen_stays_the_networks_own(name, family):
    plain = BACKBONES[family]()
    # Also what no file holds, such as TinyViT's index of offsets.
    file = {**plain.state_dict(), **dict(plain.named_buffers())}
    segmenter = make_segmenter(name, family)
    learning = {key.replace(WRAPPED, ".") for key, p in segmenter.backbone.named_parameters() if p.requires_grad}
    found = frozen_tensors(segmenter.backbone).keys() | learning
    norms_that_learn = {key.rpartition(".")[0] for key in learning}
    assert [key for key in file if key not in found and key.rpartition(".")[0] not in norms_that_learn] == []
    assert changed(segmenter.backbone, file) == []
    take_step(segmenter, make_batch(objects=(2, 1)))
    assert changed(segmenter.backbone, file) == []


@pytest.mark.parametrize("trainable", [(), ("mask_decoder",), ("image_encoder.neck", "prompt_encoder")], ids=str)
def test_a_users_file_is_what_a_network_starts_from(tmp_path, trainable):
    path = tmp_path / "own.pth"
    file = SamBackbone("random_tiny", seed=5).state_dict()
    torch.save(file, path)
    backbone = SamBackbone("random_tiny", checkpoint=str(path), trainable=trainable)
    assert all(torch.equal(tensor, file[name]) for name, tensor in backbone.state_dict().items())
    assert backbone.state_dict().keys() == file.keys()


@pytest.mark.slow
def test_the_default_weights_are_the_published_file_also_after_a_step_beside_them():
    file = load_state_dict_file(fetch_weights("lite_medsam"))
    backbone = SamBackbone("lite_medsam", trainable=["mask_decoder"])
    assert backbone.state_dict().keys() == file.keys()
    assert all(torch.equal(tensor, file[name]) for name, tensor in backbone.state_dict().items())
    segmenter = make_segmenter("DecoderTuning", "vit")
    segmenter.backbone = backbone.train()
    take_step(segmenter, make_batch(side=256, sizes=((256, 256),), rule=backbone.input_rule))
    assert changed(backbone, file) == []
    assert not torch.equal(backbone.mask_decoder.mask_tokens.weight, file["mask_decoder.mask_tokens.weight"])
