"""HarDNet: the published counts, the harmonic links, the taps, and weight files under both names."""

import pytest
import torch

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.prompt_encoders.hardnet import HarDNet, HarDNetFeatures, hardnet_spec, plan_block
from medsam_tune.prompt_encoders.hardnet_weights import _pytorchcv_names, from_pytorchcv, load_hardnet, read_hardnet


@pytest.mark.parametrize(
    ("arch", "parameters"), [("39ds", 3_488_228), ("68ds", 4_180_602), ("68", 17_565_348), ("85", 36_670_212)]
)
def test_classifier_has_the_published_number_of_parameters(arch, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in HarDNet(arch).parameters()) == parameters


def test_block_links_are_those_of_the_papers_table():
    # k = 24, m = 1.7, eight layers on 96 channels, worked out from the paper's rule.
    expected = [
        ((0,), 96, 24),
        ((1, 0), 120, 40),
        ((2,), 40, 24),
        ((3, 2, 0), 160, 70),
        ((4,), 70, 24),
        ((5, 4), 94, 40),
        ((6,), 40, 24),
        ((7, 6, 4, 0), 230, 118),
    ]
    plan = plan_block(96, growth=24, multiplier=1.7, n_layers=8)
    assert [(layer.links, layer.in_channels, layer.out_channels) for layer in plan] == expected


def test_block_output_is_the_odd_layers_and_the_last():
    with torch.device("meta"):
        blocks = [layer.out_channels for layer in HarDNet("85").base if hasattr(layer, "links")]
    assert blocks == [214, 392, 458, 588, 784, 1252]


@pytest.mark.parametrize(
    ("arch", "channels"),
    [
        ("39ds", (48, 96, 320, 640, 1024)),
        ("68", (64, 128, 320, 640, 1024)),
        ("68ds", (64, 128, 320, 640, 1024)),
        ("85", (96, 192, 320, 720, 1280)),
    ],
)
def test_feature_maps_have_the_published_channels_and_strides(arch, channels):
    with torch.device("meta"):
        features = HarDNetFeatures(arch, strides=(2, 4, 8, 16, 32))
        maps = features(torch.zeros(1, 3, 64, 64))
    assert features.channels == channels
    assert [m.shape for m in maps] == [(1, c, 64 // s, 64 // s) for c, s in zip(channels, (2, 4, 8, 16, 32), strict=True)]


def test_features_of_85_end_at_the_map_of_stride_16():
    with torch.device("meta"):
        features = HarDNetFeatures("85")
        whole = HarDNetFeatures("85", strides=(4, 8, 16, 32))
    assert len(features.base) == 15
    # The authors' backbone without classifier has 35,389,212 parameters; what follows base.14 never learns.
    assert sum(p.numel() for p in whole.parameters()) == 35_389_212
    assert sum(p.numel() for p in features.parameters()) == 35_389_212 - (17_506_176 - 512)


def test_every_parameter_of_the_features_has_a_gradient():
    features = HarDNetFeatures("39ds")
    sum(m.square().mean() for m in features(torch.randn(2, 3, 32, 32))).backward()
    assert [name for name, p in features.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_features_are_the_inner_maps_of_the_classifier():
    network, features = HarDNet("39ds").eval(), HarDNetFeatures("39ds", strides=(4, 16)).eval()
    features.load_state_dict({name: network.state_dict()[name] for name in features.state_dict()})
    images, inner = torch.randn(1, 3, 64, 64), []
    with torch.no_grad():
        x = images
        for index, layer in enumerate(network.base[:-1]):
            x = layer(x)
            if index in (4, 10):
                inner.append(x)
        found = features(images)
    for ours, theirs in zip(found, inner, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_unknown_architecture_and_stride_are_refused():
    with pytest.raises(RecipeError, match="expected one of 39ds, 68ds, 68, 85, got '39'"):
        HarDNetFeatures("39")
    with pytest.raises(RecipeError, match=r"has feature maps at strides \[2, 4, 8, 16, 32\], got \[64\]"):
        HarDNetFeatures("39ds", strides=(4, 64))


def test_official_file_fills_the_truncated_features(tmp_path):
    network, features = HarDNet("39ds"), HarDNetFeatures("39ds")
    torch.save(network.state_dict(), tmp_path / "hardnet39ds.pth")
    load_hardnet(features, tmp_path / "hardnet39ds.pth")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in features.state_dict().items())


@pytest.mark.parametrize(
    ("arch", "theirs", "ours"),
    [
        ("39ds", "features.init_block.downsample.bn.weight", "base.2.norm.weight"),
        ("39ds", "features.stage2.unit1.blocks.block8.dw_conv.conv.weight", "base.6.layers.7.layer2.dwconv.weight"),
        ("39ds", "features.stage1.unit1.downsample.conv.weight", "base.5.dwconv.weight"),
        ("68", "features.stage2.unit2.blocks.block16.bn.bias", "base.8.layers.15.norm.bias"),
        ("85", "features.stage4.unit1.conv.bn.running_var", "base.18.norm.running_var"),
        ("85", "output.fc.bias", "base.19.3.bias"),
    ],
)
def test_pytorchcv_names_map_to_the_authors_names(arch, theirs, ours):
    assert list(from_pytorchcv({theirs: torch.zeros(1)}, arch)) == [ours]


def test_pytorchcv_file_gives_the_same_weights(tmp_path):
    network = HarDNet("68ds").state_dict()
    back = {ours: theirs for theirs, ours in _pytorchcv_names(hardnet_spec("68ds"))}
    stored = {f"{back[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in network.items()}
    torch.save(stored, tmp_path / "hardnet68ds.pth")
    read = read_hardnet(tmp_path / "hardnet68ds.pth", "68ds")
    assert read.keys() == network.keys()
    assert all(torch.equal(read[name], network[name]) for name in network)


def test_file_without_batch_counters_loads(tmp_path):
    network, features = HarDNet("39ds"), HarDNetFeatures("39ds")
    torch.save({n: v for n, v in network.state_dict().items() if "num_batches" not in n}, tmp_path / "old.pth")
    load_hardnet(features, tmp_path / "old.pth")
    assert torch.equal(features.base[0].conv.weight, network.base[0].conv.weight)


def test_file_of_another_hardnet_is_named(tmp_path):
    torch.save(HarDNet("39ds").state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"file\.pth: holds HarDNet 39ds, the recipe asks for 68ds\. Set arch: '39ds'"):
        read_hardnet(tmp_path / "file.pth", "68ds")


def test_file_of_another_network_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(first: conv1\.weight\)\. Check that the file"):
        read_hardnet(tmp_path / "file.pth", "39ds")
