from dataclasses import replace

import torch

from medsam_tune.evaluation.baselines import evaluate_inference, evaluate_prompts, shown_objects
from medsam_tune.evaluation.predict import update_metric
from medsam_tune.fusion import AddRgb
from medsam_tune.metrics.overlap import OverlapMetric
from medsam_tune.prompts.box import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.task import TaskSegmenter
from tests.class_batches import make_class_batch
from tests.factories import encode, make_batch

SOURCES = {"whole_image_box": "whole_image", "oracle_box": "tight"}


def sources():
    return {name: BoxPrompt(kind) for name, kind in SOURCES.items()}


def counts(scores):
    return [column.tolist() for column in (scores.case_index, scores.tp, scores.fp, scores.fn)]


def test_scores_equal_those_of_the_segmenter_run_by_hand(tiny_backbone):
    batch = make_batch(objects=(2, 1))
    found = evaluate_prompts(tiny_backbone, [batch], sources(), objects_per_decode=1)
    for name, kind in SOURCES.items():
        metric = OverlapMetric()
        with torch.no_grad():
            update_metric(metric, batch, SamSegmenter(SamParts(tiny_backbone, BoxPrompt(kind))).eval()(batch), 64)
        assert counts(found[name]) == counts(metric.scores())
    assert counts(found["oracle_box"]) != counts(found["whole_image_box"])


def test_each_image_is_encoded_once_for_all_sources_and_not_at_all_with_a_cache(tiny_backbone, monkeypatch):
    batch = make_batch()
    with torch.no_grad():
        cached = replace(batch, image_embeddings=encode(tiny_backbone, batch.images, batch.frames))
    calls = []
    whole = tiny_backbone.encode
    monkeypatch.setattr(tiny_backbone, "encode", lambda *arguments: calls.append(1) or whole(*arguments))
    plain = evaluate_prompts(tiny_backbone, [batch], sources())
    assert len(calls) == 1
    with_cache = evaluate_prompts(tiny_backbone, [cached], sources())
    assert len(calls) == 1
    assert counts(plain["oracle_box"]) == counts(with_cache["oracle_box"])


def test_every_kind_of_inference_scores_as_a_segmenter_set_to_it():
    batch = replace(make_batch(sizes=((64, 64), (64, 48))), priors=torch.rand(2, 2, 64, 64))
    segmenter = TaskSegmenter(SamParts(fusion=AddRgb()), side=64)
    found = evaluate_inference(segmenter, [batch])
    assert list(found) == ["raw", "augmented", "mean", "min_entropy"]
    for name, scores in found.items():
        segmenter.inference, metric = name, OverlapMetric()
        with torch.no_grad():
            update_metric(metric, batch, segmenter(batch), 64)
        assert counts(scores) == counts(metric.scores())
    assert counts(found["raw"]) != counts(found["augmented"])


def test_network_without_a_fusion_has_one_kind_of_inference():
    assert evaluate_inference(TaskSegmenter(SamParts(), side=64), [make_batch()]) == {}


def test_a_class_that_an_image_does_not_show_gets_no_box_and_no_row(tiny_backbone):
    batch = make_class_batch(2)
    shown = shown_objects(batch)
    assert shown.labels.tolist() == [1, 2, 2]
    assert shown.image_index.tolist() == [0, 0, 1]
    assert torch.equal(shown.masks, batch.masks[[0, 1, 3]])
    assert [len(masks) for masks in shown.original_masks] == [2, 1]
    found = evaluate_prompts(tiny_backbone, [batch, shown], {"oracle_box": BoxPrompt()})["oracle_box"]
    assert list(zip(found.case_index.tolist(), found.label.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    without = evaluate_prompts(tiny_backbone, [shown], {"oracle_box": BoxPrompt()})["oracle_box"]
    assert list(zip(without.case_index.tolist(), without.label.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]
