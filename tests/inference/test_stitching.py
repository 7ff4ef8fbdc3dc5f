"""Tiles become the image they were cut from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.backbone import SamBackbone
from medsam_tune.data import ImageFolder, SegmentationDataModule, Tiles
from medsam_tune.evaluation.predict import predict_masks, update_metric
from medsam_tune.geometry import Frame, InputRule
from medsam_tune.inference.stitching import answer, asked_images, embedded, known_pixels, stitched, true_masks
from medsam_tune.metrics.overlap import OverlapMetric
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import MaskPrediction

RULE = InputRule(side=16)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for k in range(5):
        values = np.zeros((20, 40), np.uint16)
        values[4:8, 10:30], values[12:18, 34:38], values[0, :2] = 300, 4, 999
        Image.fromarray(random.integers(0, 255, (20, 40), dtype=np.uint8)).save(tmp_path / "images" / f"p{k}.png")
        Image.fromarray(values).save(tmp_path / "masks" / f"p{k}.png")
    return tmp_path


def batch_of(folder, target, *, tiles=True, rule=RULE):
    source = ImageFolder() if target == "per_instance" else ImageFolder(labels={"a": [300], "b": [4]})
    data = SegmentationDataModule(
        source,
        str(folder),
        target=target,
        ignore_label=999,
        cache_embeddings=False,
        eval_batch_size=1 if not tiles else 4,
        tiles=Tiles(size=16, overlap=4) if tiles else None,
    )
    data.open(rule)
    return next(iter(data.test_dataloader()))


@pytest.mark.parametrize("target", ["binary", "per_label", "per_class", "per_instance"])
def test_truth_and_unknown_pixels_of_tiles_are_those_of_the_whole_image(folder, target):
    tiles, whole = batch_of(folder, target), batch_of(folder, target, tiles=False)
    ((image,), (expected,)) = (asked_images(tiles), asked_images(whole))
    assert (image.image_id, image.case_id, image.size) == (expected.image_id, expected.case_id, expected.size)
    assert (image.sample_index, image.case_index) == (expected.sample_index, expected.case_index)
    assert image.labels.tolist() == expected.labels.tolist()
    order = [0, 1] if target != "per_instance" else np.argsort(_numbers(tiles, image)).tolist()
    reference = [0, 1] if target != "per_instance" else np.argsort(_numbers(whole, expected)).tolist()
    order, reference = order[: len(image.labels)], reference[: len(image.labels)]
    assert torch.equal(true_masks(tiles, image).dense()[order], true_masks(whole, expected).dense()[reference])
    assert torch.equal(known_pixels(tiles, image), known_pixels(whole, expected))


def _numbers(batch, image):
    return [int(batch.object_ids[places[0][0]]) for places in image.objects]


@pytest.mark.parametrize("target", ["binary", "per_label", "per_class", "per_instance"])
def test_the_truth_as_logits_scores_one_on_the_whole_image(folder, target):
    batch = batch_of(folder, target)
    perfect = MaskPrediction(torch.where(batch.masks, 9.0, -9.0))
    metric = OverlapMetric()
    update_metric(metric, batch, perfect, 16)
    scores = metric.scores()
    assert scores.dice[~scores.excluded].tolist() == [1.0] * int((~scores.excluded).sum())
    # Counted once where tiles overlap: 4 x 20 and 6 x 4 pixels.
    assert scores.tp.sum() == 80 + 24
    assert len(scores.slices.sample_index) == len(set(batch.labels.tolist()))


def test_logits_are_averaged_where_tiles_overlap_by_hand():
    # Two tiles of 2 x 4 in an image of 2 x 6: they share the two columns in the middle.
    frame = Frame((2, 4), (2, 4))
    maps = torch.tensor([[[6.0] * 4] * 4, [[-2.0] * 4] * 4])
    areas = [(slice(0, 2), slice(0, 4)), (slice(0, 2), slice(2, 6))]
    logits = stitched(maps, [frame, frame], areas, (2, 6), 4)
    assert logits.tolist() == [[6.0, 6.0, 2.0, 2.0, -2.0, -2.0]] * 2


def test_a_pixel_on_none_of_an_objects_tiles_is_not_the_object():
    logits = stitched(torch.full((1, 4, 4), 5.0), [Frame((4, 4), (4, 4))], [(slice(0, 4), slice(0, 4))], (4, 6), 4)
    assert (logits[:, :4] == 5).all()
    assert (logits[:, 4:] < 0).all()


def test_classes_are_compared_after_their_scores_are_averaged(folder):
    batch = batch_of(folder, "per_class")
    scores = torch.zeros(batch.n_images, 3, 16, 16)
    for row, tile in enumerate(batch.tiles):
        # The tiles on the left say class 1 with 2, those further right class 2 with 3.
        scores[row, 1 if tile.left == 0 else 2] = 2.0 if tile.left == 0 else 3.0
    (masks,) = predict_masks(MaskPrediction(torch.zeros(batch.n_objects, 1, 16, 16), class_logits=scores), batch, 16)
    assert masks[0, :, :12].all()
    # Averages where both lie: 1 for class 1, 1.5 for class 2.
    assert masks[1, :, 12:].all()


def test_a_network_sees_a_few_tiles_at_a_time_and_answers_the_same(folder):
    torch.manual_seed(0)
    backbone = SamBackbone("random_tiny")
    segmenter = SamSegmenter(SamParts(backbone, BoxPrompt("tight"))).eval()
    batch = batch_of(folder, "per_instance", rule=segmenter.input_rule)
    seen = []
    encode = backbone.encode
    backbone.encode = lambda inputs, *rest: seen.append(len(inputs.images)) or encode(inputs, *rest)
    with torch.no_grad():
        few, together = answer(segmenter, batch), answer(segmenter, replace(batch, at_once=0))
        ready = embedded(segmenter, batch)
    assert seen == [4, 2, 6, 4, 2]
    assert torch.allclose(few.low_res_masks, together.low_res_masks, atol=1e-5)
    assert ready.image_embeddings.shape[0] == 6
