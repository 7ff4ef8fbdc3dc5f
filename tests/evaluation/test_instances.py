from dataclasses import replace

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.evaluation import instances
from medsam_tune.evaluation.instances import instance_line, score_automatic, summarise_instances
from medsam_tune.inference.automatic_settings import AutomaticSettings
from medsam_tune.metrics.instances import match_instances
from medsam_tune.samples import Sample
from medsam_tune.types import AutomaticMasks


def masks(*spans):
    rows = torch.zeros(len(spans), 4, 20, dtype=torch.bool)
    for row, (start, stop) in enumerate(spans):
        rows[row, :, start:stop] = True
    return rows


@pytest.fixture
def finds(monkeypatch):
    """Let the generator find what a test says."""

    def set_found(found, scores):
        class Generator:
            def __init__(self, backbone, settings):
                assert settings.points_per_side == 8

            def generate(self, image):
                return AutomaticMasks(found, torch.tensor(scores), torch.ones(len(scores)))

        monkeypatch.setattr(instances, "AutomaticMaskGenerator", Generator)

    return set_found


def sample(true, case="a", ignored=None):
    return Sample(
        torch.zeros(3, 4, 20), true, torch.ones(len(true), dtype=torch.int64), image_id=case, case_id=case, ignored=ignored
    )


def score(samples):
    return score_automatic(SamBackbone("random_tiny"), samples, AutomaticSettings(points_per_side=8))


def test_what_is_found_is_matched_by_case(finds):
    finds(masks((0, 4), (10, 14)), [0.9, 0.8])
    matches = score([sample(masks((0, 4), (10, 14))), sample(masks((0, 4)), "b"), sample(masks((5, 9)), "b")])
    summary = summarise_instances(matches)
    # Case a is perfect. In case b one of four masks is one of two objects.
    assert summary["f1_50"]["mean"] == pytest.approx((1 + 2 * 1 / (4 + 2)) / 2)
    assert summary["ap50_stardist"]["mean"] == pytest.approx((1 + 1 / 5) / 2)
    assert (summary["n_true"], summary["n_found"], summary["n_cases"]) == (4, 6, 2)
    assert "TP/(TP+FP+FN) at 0.5 0.600" in instance_line(summary)


def test_pixels_that_nobody_annotated_count_on_neither_side(finds):
    finds(masks((0, 4), (10, 14)), [0.9, 0.8])
    ignored = masks((3, 20))[0]
    summary = summarise_instances(score([sample(masks((0, 3), (15, 19)), ignored=ignored)]))
    assert (summary["n_true"], summary["n_found"]) == (1, 1)
    assert summary["aji"]["mean"] == 1


def test_a_network_that_finds_nothing_scores_zero_and_images_without_either_do_not_count(finds):
    finds(masks(), [])
    summary = summarise_instances(score([sample(masks((0, 4))), sample(masks(), "b")]))
    assert (summary["ap_coco"], summary["f1_50"]["mean"], summary["n_cases"]) == (0, 0, 1)
    nothing = summarise_instances(score([sample(masks(), "b")]))
    assert (nothing["ap_coco"], nothing["f1_50"]["mean"], nothing["n_cases"]) == (None, None, 0)
    assert "AP (COCO) undefined" in instance_line(nothing)


def test_the_real_generator_answers_with_masks_of_the_image(finds):
    settings = AutomaticSettings(points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0)
    torch.manual_seed(0)
    noisy = replace(sample(masks((0, 4))), image=torch.rand(3, 4, 20) * 255)
    summary = summarise_instances(score_automatic(SamBackbone("random_tiny"), [noisy], settings))
    assert summary["n_true"] == 1


def test_settings_name_their_own_key():
    with pytest.raises(RecipeError, match=r"^run\.automatic\.points_per_side: must be at least 1"):
        AutomaticSettings(points_per_side=0)


def test_a_matching_needs_no_scores():
    assert match_instances(masks((0, 4)), masks((0, 4))).hits.all()
