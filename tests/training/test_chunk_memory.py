"""What a step on chunks needs is counted before the run, and the refusal names the key to lower."""

from __future__ import annotations

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.data import NiftiVolumes, SegmentationDataModule
from medsam_tune.errors import RecipeError
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters import SamParts, SamSegmenter
from medsam_tune.training import chunk_memory
from medsam_tune.training.chunk_memory import check_chunk_memory, free_memory, kept_by_a_slice
from medsam_tune.tuners.volume_adapter import VolumeAdapter


def segmenter_of(**settings) -> SamSegmenter:
    return SamSegmenter(SamParts(SamBackbone("random_tiny", **settings), BoxPrompt(), tuner=VolumeAdapter(8)))


def test_what_a_slice_keeps_is_what_autograd_saves_and_grows_with_the_image():
    small, large = kept_by_a_slice(segmenter_of()), kept_by_a_slice(segmenter_of(side=128))
    # Four times the tokens; the tables of relative positions do not grow so.
    assert 3 < large / small < 4.2
    tokens = 16 * 32 * 4
    assert small > 10 * tokens
    assert kept_by_a_slice(segmenter_of(checkpointing=True)) < small


def test_a_batch_that_would_not_fit_is_refused_with_the_key_to_lower(monkeypatch):
    segmenter = segmenter_of()
    one = kept_by_a_slice(segmenter)
    source = NiftiVolumes(axis="axial")
    monkeypatch.setattr(chunk_memory, "free_memory", lambda: 9 * one)
    with pytest.raises(
        RecipeError, match=r"data\.batch_size: 2 chunks of 5 slices keep about .* Set data\.batch_size=1, or model"
    ):
        check_chunk_memory(segmenter, SegmentationDataModule(source, "scans", chunk=5, batch_size=2))
    with pytest.raises(RecipeError, match=r"1 chunks of 10 slices.*Set data\.chunk=5, or model\.backbone\.checkpointing=true"):
        check_chunk_memory(segmenter, SegmentationDataModule(source, "scans", chunk=10, batch_size=1))
    check_chunk_memory(segmenter, SegmentationDataModule(source, "scans", chunk=4, batch_size=2))
    monkeypatch.setattr(chunk_memory, "free_memory", lambda: None)
    check_chunk_memory(segmenter, SegmentationDataModule(source, "scans", chunk=99, batch_size=2))


def test_free_memory_is_a_number_of_bytes_where_the_system_says_it():
    free = free_memory()
    assert free is None or torch.cuda.is_available() or free > 2**20
