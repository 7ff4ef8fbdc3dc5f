"""Several adapters on one backbone: switching is exact, in both directions, and what cannot share a backbone is refused."""

import pytest
import torch

from medsam_tune.errors import CheckpointError
from medsam_tune.export import AdapterSwitch, load_adapter, save_export
from medsam_tune.export.build import build_segmenter
from tests.export.test_adapter import BOTTLENECK, LORA, classes_config, edit, export, logits, model_config


def lora(rank, **settings):
    init_args = {"r": rank, "lora_alpha": 400, **settings}
    config = {"class_path": "peft.LoraConfig", "init_args": init_args}
    return {"class_path": LORA["class_path"], "init_args": {"config": config, "parts": ["image_encoder.attention.qkv"]}}


PAIRS = {
    "lora of two ranks": (lora(2), lora(4)),
    "bottlenecks of two widths": (BOTTLENECK, {**BOTTLENECK, "init_args": {"rank": 3, "placement": ["mlp"]}}),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("trainable", [(), ("mask_decoder.mask_tokens",)], ids=["adapter alone", "with decoder tokens"])
def test_switching_gives_each_adapters_own_logits(tmp_path, pair, trainable):
    folders = {name: tmp_path / name for name in ("liver", "lung")}
    for folder, tuner, seed in zip(folders.values(), PAIRS[pair], (0, 1), strict=True):
        torch.manual_seed(seed)
        export(folder, model_config(tuner, trainable=trainable))
    expected = {name: logits(load_adapter(folder).segmenter) for name, folder in folders.items()}
    assert not torch.allclose(expected["liver"], expected["lung"], atol=1e-4)
    adapters = AdapterSwitch("liver", folders["liver"])
    adapters.add("lung", folders["lung"])
    assert adapters.names == ("liver", "lung")
    assert adapters.active == "liver"
    for name in ("liver", "lung", "liver"):
        found = logits(adapters.use(name).segmenter)
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in adapters.predictor.segmenter.parameters())


def test_switching_forgets_the_current_image(tmp_path):
    export(tmp_path / "a", model_config())
    export(tmp_path / "b", model_config())
    adapters = AdapterSwitch("a", tmp_path / "a")
    adapters.add("b", tmp_path / "b")
    adapters.predictor.set_image(torch.zeros(9, 7, dtype=torch.uint8).numpy())
    with pytest.raises(RuntimeError, match="no image is set"):
        adapters.use("b").predict()


def test_unknown_and_taken_names_are_refused(tmp_path):
    export(tmp_path / "a", model_config())
    adapters = AdapterSwitch("a", tmp_path / "a")
    with pytest.raises(CheckpointError, match="'b' is no loaded adapter; there are a"):
        adapters.use("b")
    with pytest.raises(CheckpointError, match="'a' is the name of a loaded adapter"):
        adapters.add("a", tmp_path / "a")


def test_adapters_of_another_network_are_refused(tmp_path):
    export(tmp_path / "a", model_config())
    export(tmp_path / "method", model_config(BOTTLENECK))
    export(tmp_path / "decoder", model_config(trainable=["mask_decoder.mask_tokens"]))
    export(tmp_path / "weights", model_config())
    edit(tmp_path / "weights" / "export.json", base_weights={"name": "sam_vit_b", "sha256": "0" * 64})
    adapters = AdapterSwitch("a", tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"its method is BOTTLENECK_ADAPTER, that of .* is LORA"):
        adapters.add("b", tmp_path / "method")
    with pytest.raises(CheckpointError, match=r"its trained beside the adapter is .*mask_tokens"):
        adapters.add("b", tmp_path / "decoder")
    with pytest.raises(CheckpointError, match="trained on base weights sam_vit_b"):
        adapters.add("b", tmp_path / "weights")
    assert adapters.names == ("a",)


def test_adapters_whose_networks_differ_in_classes_or_settings_are_refused(tmp_path):
    configs = {name: classes_config() for name in ("a", "b")}
    configs["b"]["segmenter"]["init_args"]["classes"] = ["vein", "artery"]
    for name, config in configs.items():
        segmenter = build_segmenter(config)
        save_export(tmp_path / name, segmenter=segmenter, model_config=config, metrics={}, data_description={})
    adapters = AdapterSwitch("a", tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"segmenter\.classes is \['vein', 'artery'\], that of .* is \['anterior', 'post"):
        adapters.add("b", tmp_path / "b")
    export(tmp_path / "box", model_config())
    with pytest.raises(CheckpointError, match=r"its segmenter is SamSegmenter, that of .* is SemanticSegmenter"):
        adapters.add("box", tmp_path / "box")
    assert adapters.names == ("a",)


def test_an_adapter_that_rewrote_the_frozen_weights_is_refused(tmp_path):
    export(tmp_path / "pissa", model_config(lora(2, init_lora_weights="pissa")))
    with pytest.raises(CheckpointError, match="pissa, which rewrites the frozen weights"):
        AdapterSwitch("a", tmp_path / "pissa")
