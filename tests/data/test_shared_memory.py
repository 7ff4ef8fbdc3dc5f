"""Batches of loader workers must fit into shared memory, or the first worker without room waits for ever."""

from types import SimpleNamespace

import pytest
import torch

from medsam_tune.data import SegmentationDataModule, shared_memory
from medsam_tune.data.shared_memory import WORKER_TIMEOUT_SECONDS, check_shared_memory, check_workers, tensor_bytes
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import InputRule
from tests.factories import make_batch

RULE = InputRule(side=64, grid=4)


@pytest.fixture
def free(monkeypatch):
    """Return a function that says how many bytes are free."""

    def set_free(count):
        monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: SimpleNamespace(free=count))

    return set_free


def test_batches_that_just_fit_are_taken_and_one_byte_less_is_named(free):
    free(16_000_000)
    check_shared_memory(1_000_000, batches=16)
    free(15_999_999)
    said = r"^data\.num_workers: .* room for 16 batches of 1\.0 MB in /dev/shm, which has 16\.0 MB free\. .*--shm-size=1g\.$"
    with pytest.raises(RecipeError, match=said):
        check_shared_memory(1_000_000, batches=16)


def test_system_without_such_a_folder_sets_no_limit(free, monkeypatch, tmp_path):
    free(0)
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "none")
    check_shared_memory(1_000_000, batches=3)


def test_tensors_of_queries_and_truth_count_too():
    batch = make_batch()
    expected = sum(
        tensor.numel() * tensor.element_size()
        for tensor in (
            batch.images,
            batch.truth.masks.pixels,
            batch.image_index,
            batch.labels,
            batch.sample_index,
            batch.case_index,
            *(masks.pixels for masks in batch.original_masks),
        )
    )
    assert tensor_bytes(batch) == expected
    assert tensor_bytes((torch.zeros(3), (torch.zeros(2, dtype=torch.bool), None, "text"))) == 14


@pytest.mark.parametrize(
    ("settings", "processes", "batches"),
    [
        ({"num_workers": 1, "eval_batch_size": 1}, 1, 4),  # two read ahead, one in use, one next
        ({"num_workers": 2, "eval_batch_size": 1}, 1, 6),
        ({"num_workers": 2, "eval_batch_size": 3}, 1, 3),  # 8 images make no more
        ({"num_workers": 1, "eval_batch_size": 1}, 2, 8),
        ({"num_workers": 1, "eval_batch_size": 99}, 1, 1),
    ],
)
def test_data_that_would_not_fit_are_refused_before_a_worker_starts(array_source, free, settings, processes, batches):
    data = SegmentationDataModule(array_source(8), "anywhere", **settings)
    data.open(RULE)
    # Image (3, 64, 64) float32, embedding (256, 4, 4) float32, the object's box in both frames, and some bytes of indices.
    size = min(settings["eval_batch_size"], 8)
    item = data.dataset("predict")[0]
    boxes = item.masks.pixels.numel() + item.sample.masks.pixels.numel()
    needed = batches * size * (4 * 3 * 64 * 64 + boxes + 4 * 256 * 4 * 4)
    free(1.01 * needed)
    check_workers(data, "predict", processes=processes)
    free(needed)
    with pytest.raises(RecipeError, match=rf"^data\.num_workers: workers need room for {batches} batches of "):
        check_workers(data, "predict", processes=processes)
    data.num_workers = 0
    check_workers(data, "predict", processes=processes)


def test_worker_that_gives_nothing_is_not_waited_for_for_ever(array_source):
    data = SegmentationDataModule(array_source(8), "anywhere", num_workers=1)
    data.open(RULE)
    assert data.train_dataloader().timeout == data.test_dataloader().timeout == WORKER_TIMEOUT_SECONDS
    data.num_workers = 0
    assert data.train_dataloader().timeout == 0
