import errno

import pytest
import torch

from medsam_tune.errors import CheckpointError
from medsam_tune.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from tests.training.tiny_runs import build


@pytest.fixture
def best(finished):
    return finished[1].checkpoints / "best.ckpt"


def test_checkpoint_holds_no_frozen_weight(best):
    stored = set(torch.load(best, weights_only=True)["state_dict"])
    assert stored
    assert all(name.startswith("segmenter.prompt_encoder.") for name in stored)
    assert best.stat().st_size < 150_000  # the frozen network alone has 104,060 parameters, 416 kB


def test_trained_decoder_is_stored_and_the_rest_of_the_backbone_is_not(workplace):
    cli = build("--model.backbone.trainable=[mask_decoder]")
    checkpoint = {"state_dict": cli.model.state_dict()}
    cli.model.on_save_checkpoint(checkpoint)
    learning = {f"segmenter.{name}" for name, p in cli.model.segmenter.named_parameters() if p.requires_grad}
    assert set(checkpoint["state_dict"]) == learning
    assert any("mask_decoder" in name for name in learning)


def test_checkpoint_names_the_weights_beneath_it(best, workplace):
    identity = build().model.segmenter.base_weights()
    assert read_checkpoint(best)["base_weights"] == {"name": "random_tiny", "sha256": identity.sha256}


def test_loading_changes_what_was_trained_and_keeps_what_was_frozen(best, workplace):
    module = build().model
    frozen = {name: p.clone() for name, p in module.named_parameters() if not p.requires_grad}
    stored = read_checkpoint(best)
    trained = dict(stored["state_dict"])
    module.on_load_checkpoint(stored)
    module.load_state_dict(stored["state_dict"], strict=True)
    now = module.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in trained.items())
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items())


def test_other_base_weights_are_refused_by_name(best, workplace):
    module = build("--model.backbone.seed=1").model
    with pytest.raises(CheckpointError, match=r"trained on base weights random_tiny .*Set model.backbone.weights"):
        module.on_load_checkpoint(read_checkpoint(best))


def test_other_architecture_is_refused_with_the_names_that_differ(best, workplace):
    module = build("--model.prompt_encoder.width=16").model
    with pytest.raises(CheckpointError, match=r"of another shape \(segmenter.prompt_encoder.trunk.*config.yaml of the run"):
        module.on_load_checkpoint(read_checkpoint(best))
    module = build("--model.prompt_encoder.dilations=[1,2]").model
    with pytest.raises(CheckpointError, match=r"4 missing \(segmenter.prompt_encoder.trunk.blocks.1.conv.weight"):
        module.on_load_checkpoint(read_checkpoint(best))


def test_generator_of_an_earlier_version_is_refused_with_the_way_out(best, workplace):
    checkpoint = read_checkpoint(best)
    old = {name.replace(".prompt_encoder.", ".prompt_source."): value for name, value in checkpoint["state_dict"].items()}
    assert old.keys() != checkpoint["state_dict"].keys()
    checkpoint["state_dict"] = old
    with pytest.raises(CheckpointError, match=r"earlier version, .* recipes upgrade FILE`\) and train again\."):
        build().model.on_load_checkpoint(checkpoint)


def test_base_weights_of_another_name_but_the_same_checksum_are_accepted(best, workplace):
    checkpoint = read_checkpoint(best)
    checkpoint["base_weights"]["name"] = "renamed.pth"
    build().model.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensor: tensor.fill_(float("nan")), r"1 with NaN or infinity \(segmenter"),
        (lambda tensor: tensor.to(torch.complex64), r"1 of another type \(segmenter\.\S+ complex64 for float32"),
        (lambda tensor: tensor.to(torch.int64), r"1 of another type \(segmenter\.\S+ int64 for float32"),
    ],
)
def test_damaged_values_are_refused_by_name(best, workplace, damage, message):
    checkpoint = read_checkpoint(best)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name] = damage(checkpoint["state_dict"][name])
    with pytest.raises(CheckpointError, match=message):
        build().model.on_load_checkpoint(checkpoint)


def test_a_frozen_module_of_the_training_must_be_there_again(best, workplace):
    checkpoint = read_checkpoint(best)
    assert checkpoint["frozen"] == {}
    checkpoint["frozen"] = {"prompt_encoder.text": {"name": "clip.pt", "sha256": "0" * 64}}
    with pytest.raises(CheckpointError, match=r"prompt_encoder\.text is frozen .* clip\.pt \(sha256 0{12}\), here it is none"):
        build().model.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_truncated_checkpoint_is_refused(best, tmp_path, kept):
    broken = tmp_path / "last.ckpt"
    broken.write_bytes(best.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"last.ckpt: cannot be read as weights.*Use another file"):
        read_checkpoint(broken)


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Code:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"state_dict": {}, "code": Code()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="Python objects, which are never loaded"):
        read_checkpoint(tmp_path / "evil.ckpt")


def test_weights_without_training_state_are_refused(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights.pth: holds no state_dict"):
        read_checkpoint(tmp_path / "weights.pth")


COMPLETE = {"base_weights": None, "frozen": {}, "epoch": 0, "global_step": 1, "pytorch-lightning_version": "2.6.0"}


def test_failing_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint(COMPLETE | {"state_dict": {"step": torch.tensor(1)}}, target)

    def half_a_file(data, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half_a_file)
    with pytest.raises(CheckpointError, match=r"No space left on device.*previous checkpoint is intact"):
        writer.save_checkpoint(COMPLETE | {"state_dict": {"step": torch.tensor(2)}}, target)
    monkeypatch.undo()
    assert writer.load_checkpoint(target)["state_dict"]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
