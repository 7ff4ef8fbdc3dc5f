from dataclasses import replace

import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.evaluation.baselines import BOXES, evaluate_inference, evaluate_segmenters, shown_objects, untuned_networks
from medsam_tune.evaluation.predict import update_metric
from medsam_tune.fusion import AddRgb
from medsam_tune.metrics.overlap import OverlapMetric
from medsam_tune.prompt_encoders import EmbeddingPromptGenerator
from medsam_tune.prompts import BoxJitter, BoxPrompt, PointPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.interactive import InteractiveSegmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import SemanticSegmenter
from medsam_tune.segmenters.task import TaskSegmenter
from tests.class_batches import make_class_batch
from tests.factories import encode, make_batch


def boxes(backbone, **parts):
    return {name: SamSegmenter(SamParts(backbone, BoxPrompt(kind), **parts)) for name, kind in BOXES.items()}


def counts(scores):
    return [column.tolist() for column in (scores.case_index, scores.tp, scores.fp, scores.fn)]


def by_hand(segmenter, batch):
    metric = OverlapMetric()
    with torch.no_grad():
        update_metric(metric, batch, segmenter.eval()(batch), 64)
    return counts(metric.scores())


def moved(segmenter):
    """The segmenter, as if it had been trained."""
    for parameter in segmenter.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    return segmenter


def test_scores_equal_those_of_the_segmenter_run_by_hand(tiny_backbone):
    batch = make_batch(objects=(2, 1))
    found = evaluate_segmenters(boxes(tiny_backbone, objects_per_decode=1), [batch])
    for name, segmenter in boxes(tiny_backbone).items():
        assert counts(found[name]) == by_hand(segmenter, batch)
    assert counts(found["oracle_box"]) != counts(found["whole_image_box"])


def test_each_image_is_encoded_once_for_all_networks_and_not_at_all_with_a_cache(tiny_backbone, monkeypatch):
    batch = make_batch()
    with torch.no_grad():
        cached = replace(batch, image_embeddings=encode(tiny_backbone, batch.images, batch.frames))
    calls = []
    whole = tiny_backbone.encode
    monkeypatch.setattr(tiny_backbone, "encode", lambda *arguments: calls.append(1) or whole(*arguments))
    plain = evaluate_segmenters(boxes(tiny_backbone), [batch])
    assert len(calls) == 1
    with_cache = evaluate_segmenters(boxes(tiny_backbone), [cached])
    assert len(calls) == 1
    assert counts(plain["oracle_box"]) == counts(with_cache["oracle_box"])


def test_untuned_network_is_asked_with_the_same_moved_boxes():
    jitter = BoxJitter(low=4, high=12)
    parts = SamParts(SamBackbone("random_tiny", trainable=["mask_decoder"]), BoxPrompt(eval_jitter=jitter))
    networks = untuned_networks(moved(SamSegmenter(parts)))
    assert list(networks) == ["same_prompts", "whole_image_box", "oracle_box"]
    batch = make_batch(objects=(2, 1))
    found = evaluate_segmenters(networks, [batch])
    released = SamSegmenter(SamParts(SamBackbone("random_tiny"), BoxPrompt(eval_jitter=jitter)))
    assert counts(found["same_prompts"]) == by_hand(released, batch)
    assert counts(found["same_prompts"]) != counts(found["oracle_box"])


def test_untuned_network_gets_the_same_rounds_of_clicks():
    def segmenter(backbone):
        return InteractiveSegmenter(SamParts(backbone, PointPrompt()), eval_rounds=3, rounds=2)

    networks = untuned_networks(moved(segmenter(SamBackbone("random_tiny", trainable=["mask_decoder"]))))
    batch = make_batch(objects=(2, 1))
    found = evaluate_segmenters(networks, [batch])
    assert counts(found["same_prompts"]) == by_hand(segmenter(SamBackbone("random_tiny")), batch)


def test_network_that_makes_its_own_prompt_is_compared_with_one_that_gets_none():
    generator = EmbeddingPromptGenerator(width=8, dilations=[1])
    networks = untuned_networks(SamSegmenter(SamParts(SamBackbone("random_tiny"), prompt_encoder=generator)))
    assert list(networks) == ["no_prompt", "whole_image_box", "oracle_box"]
    batch = make_batch()
    released = SamSegmenter(SamParts(SamBackbone("random_tiny")))
    assert counts(evaluate_segmenters(networks, [batch])["no_prompt"]) == by_hand(released, batch)


def test_network_with_classes_is_compared_with_boxes_over_the_released_decoder():
    segmenter = SemanticSegmenter(SamParts(SamBackbone("random_tiny")), ["wall", "lumen"])
    networks = untuned_networks(segmenter)
    assert list(networks) == ["whole_image_box", "oracle_box"]
    assert all(network.backbone.mask_decoder.num_mask_tokens == 4 for network in networks.values())


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
    found = evaluate_segmenters(boxes(tiny_backbone), [batch])["oracle_box"]
    assert list(zip(found.case_index.tolist(), found.label.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    without = evaluate_segmenters(boxes(tiny_backbone), [batch], only_shown=BOXES)["oracle_box"]
    assert list(zip(without.case_index.tolist(), without.label.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]
