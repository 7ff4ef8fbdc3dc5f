from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.input_rules import SAM
from medsam_tune.geometry import InputRule, image_to_input, to_original
from medsam_tune.inference import automatic
from medsam_tune.inference.automatic import AutomaticMaskGenerator
from medsam_tune.precompute.prior_settings import PriorSettings
from medsam_tune.types import ImageEmbeddings, PromptEmbeddings
from tests.backbones import BACKBONES
from tests.factories import encode

# The tiny networks' logits and predicted IoUs are near 0: with these some masks fail each test and some pass.
TINY = PriorSettings(
    points_per_side=5, pred_iou_thresh=0.05, stability_score_offset=0.001, stability_score_thresh=0.75, box_nms_thresh=0.8
)
THRESHOLDS = [
    {},
    {"pred_iou_thresh": 0.0},
    {"stability_score_thresh": 0.85},
    {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.5, "box_nms_thresh": 1.0},
    {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.3},
    {"stability_score_offset": 0.0005, "box_nms_thresh": 0.95, "points_per_side": 4},
]


def settings_of(**changed):
    return PriorSettings(**vars(TINY) | changed)


def with_small_masks(backbone):
    """Lower all logits, so that a mask is a few peaks instead of half of the image, or nothing."""
    decoder = backbone.mask_decoder
    with torch.no_grad():
        decoder.output_upscaling[3].bias += 1
        for network in decoder.output_hypernetworks_mlps:
            network.layers[-1].weight -= network.layers[-1].weight.mean(0)
            network.layers[-1].bias.fill_(-0.01)
    return backbone.eval()


@pytest.fixture
def backbone():
    return with_small_masks(SamBackbone("random_tiny"))


def random_image(height, width):
    """A smooth random image (H, W, 3) of 8 bits."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return (smooth.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy()


def to_tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1).float()


def library_generator(backbone, settings):
    """segment_anything's own generator around the backbone's modules."""
    sam = Sam(backbone.image_encoder, backbone.prompt_encoder, backbone.mask_decoder)
    names = ("pred_iou_thresh", "stability_score_thresh", "stability_score_offset", "box_nms_thresh", "points_per_side")
    return SamAutomaticMaskGenerator(sam, **{name: getattr(settings, name) for name in names})


def read_as(backbone, predictor):
    """Let the library's predictor resize and normalise images as the backbone does; the rest stays its own."""

    def set_image(image):
        image_in, frame = image_to_input(to_tensor(image), backbone.input_rule)
        predictor.original_size, predictor.input_size = frame.original_size, frame.input_size
        predictor.features = encode(backbone, image_in[None], [frame])
        predictor.is_image_set = True

    predictor.set_image = set_image


def assert_equal_masks(ours, theirs):
    """Equal to the pixel, in any order; theirs may hold masks without a pixel."""
    theirs = sorted((record for record in theirs if record["area"]), key=lambda record: -record["predicted_iou"])
    assert len(ours.masks) == len(theirs)
    for row, record in enumerate(theirs):
        assert np.array_equal(ours.masks[row].numpy(), record["segmentation"])
        assert ours.predicted_iou[row].item() == pytest.approx(record["predicted_iou"], abs=1e-6)
        assert ours.stability_score[row].item() == record["stability_score"]


@pytest.mark.parametrize("changed", THRESHOLDS, ids=str)
def test_untouched_library_keeps_the_same_masks_to_the_pixel(backbone, changed):
    # 64 is the network's side, so the library's 8-bit resize changes nothing and nothing of it is replaced.
    image, settings = random_image(48, 64), settings_of(**changed)
    ours = AutomaticMaskGenerator(backbone, settings).generate(to_tensor(image))
    assert 2 <= len(ours.masks) < 3 * settings.points_per_side**2
    assert_equal_masks(ours, library_generator(backbone, settings).generate(image))


def test_untouched_library_keeps_the_same_masks_of_an_enlarged_image_under_sams_own_rule(backbone):
    backbone.input_rule = replace(SAM, side=64, grid=4)
    image, settings = random_image(33, 48), settings_of(pred_iou_thresh=0.0)
    ours = AutomaticMaskGenerator(backbone, settings).generate(to_tensor(image))
    assert len(ours.masks) >= 2
    assert_equal_masks(ours, library_generator(backbone, settings).generate(image))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("min_max", [False, True])
@pytest.mark.parametrize("size", [(50, 90), (100, 37)])
def test_both_encoders_keep_the_librarys_masks_of_resized_images(name, min_max, size):
    backbone = with_small_masks(BACKBONES[name]())
    backbone.input_rule = InputRule(64, min_max=min_max)
    image, settings = random_image(*size), settings_of(pred_iou_thresh=0.0, stability_score_thresh=0.5, box_nms_thresh=1.0)
    generator = library_generator(backbone, settings)
    read_as(backbone, generator.predictor)
    ours = AutomaticMaskGenerator(backbone, settings).generate(to_tensor(image))
    assert len(ours.masks) >= 4
    assert_equal_masks(ours, generator.generate(image))


def test_batch_size_changes_no_mask(backbone):
    image = to_tensor(random_image(48, 64))
    one, all_points = (AutomaticMaskGenerator(backbone, TINY, prompts_per_batch=points).generate(image) for points in (1, 25))
    assert torch.equal(one.masks, all_points.masks)
    assert torch.equal(one.stability_score, all_points.stability_score)


def test_prompts_per_batch_below_one_is_refused(backbone):
    with pytest.raises(ValueError, match="prompts_per_batch must be at least 1, got 0"):
        AutomaticMaskGenerator(backbone, TINY, prompts_per_batch=0)


def test_image_is_encoded_once(backbone, monkeypatch):
    seen = []
    encode = backbone.encode
    monkeypatch.setattr(backbone, "encode", lambda inputs: seen.append(len(inputs.images)) or encode(inputs))
    AutomaticMaskGenerator(backbone, TINY).generate(to_tensor(random_image(30, 40)))
    assert seen == [1]


def test_nothing_is_upscaled_where_every_predicted_iou_is_too_low(backbone, monkeypatch):
    monkeypatch.setattr(automatic, "to_original", None)
    monkeypatch.setattr(backbone.mask_decoder, "output_upscaling", None)
    found = AutomaticMaskGenerator(backbone, settings_of(pred_iou_thresh=1.0)).generate(to_tensor(random_image(30, 40)))
    assert found.masks.shape == (0, 30, 40)
    assert found.masks.dtype == torch.bool
    assert found.predicted_iou.shape == found.stability_score.shape == (0,)


def test_masks_without_a_pixel_are_dropped_even_without_thresholds(backbone):
    keep_all = settings_of(pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)
    image = random_image(48, 64)
    ours = AutomaticMaskGenerator(backbone, keep_all).generate(to_tensor(image))
    theirs = library_generator(backbone, keep_all).generate(image)
    assert any(record["area"] == 0 for record in theirs)
    assert ours.masks.flatten(1).any(dim=1).all()
    assert torch.isfinite(ours.stability_score).all()


def test_stability_at_low_resolution_is_measured_on_the_decoders_grid(backbone):
    # At the network's side the decoder's 16 x 16 grid shows 12 rows of the image.
    image = to_tensor(random_image(48, 64))
    settings = settings_of(low_res_stability=True, stability_score_thresh=0.5)
    ours = AutomaticMaskGenerator(backbone, settings, prompts_per_batch=25).generate(image)
    with torch.no_grad():
        image_in, frame = image_to_input(image, backbone.input_rule)
        (sparse,) = AutomaticMaskGenerator(backbone, settings, prompts_per_batch=25)._prompts(frame)
        embeddings = ImageEmbeddings(encode(backbone, image_in[None], [frame]))
        candidates = backbone.prompt_decoder(embeddings, multimask_output=True)(sparse)
        low_res = candidates.logits_of(torch.ones(25, 3, dtype=torch.bool))[:, :12]
    by_iou = dict(zip(candidates.predicted_iou.flatten().tolist(), low_res, strict=True))
    assert len(ours.masks) >= 2
    for iou, stability in zip(ours.predicted_iou.tolist(), ours.stability_score.tolist(), strict=True):
        logits = by_iou[iou]
        assert stability == pytest.approx(((logits > 0.001).sum() / (logits > -0.001).sum()).item())
        assert stability >= 0.5


def test_boxes_ask_for_one_mask_each_around_every_grid_point(backbone):
    image = to_tensor(random_image(48, 64))
    settings = settings_of(
        points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0, box_fractions=(0.25, 1.0)
    )
    ours = AutomaticMaskGenerator(backbone, settings).generate(image)
    # Centres (16, 12), (48, 12), (16, 36), (48, 36); a quarter is 16 x 12 pixels, the whole image is cut at its border.
    quarter = [[8, 6, 23, 17], [40, 6, 55, 17], [8, 30, 23, 41], [40, 30, 55, 41]]
    whole = [[0, 0, 47, 35], [16, 0, 63, 35], [0, 12, 47, 47], [16, 12, 63, 47]]
    with torch.no_grad():
        image_in, frame = image_to_input(image, backbone.input_rule)
        prompts = backbone.embed_prompts(8, boxes=torch.tensor(quarter + whole, dtype=torch.float64))
        embeddings = ImageEmbeddings(encode(backbone, image_in[None], [frame]))
        expected = backbone.decode(embeddings, torch.zeros(8, dtype=torch.int64), prompts)
        masks = to_original(expected.low_res_masks, frame, 64)[:, 0] > 0
    ious, order = expected.iou_predictions[:, 0].sort(descending=True)
    found = masks[order].flatten(1).any(dim=1)
    assert found.sum() >= 2
    assert torch.equal(ours.masks, masks[order][found])
    torch.testing.assert_close(ours.predicted_iou, ious[found])


def test_shared_projections_change_no_logit(backbone):
    embeddings = ImageEmbeddings(torch.randn(1, 32, 4, 4))
    points = backbone.embed_prompts(6, points=(torch.rand(6, 1, 2) * 64, torch.ones(6, 1)))
    sparse = points.sparse_embeddings
    kept = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1]], dtype=torch.bool)
    with torch.no_grad():
        dense = backbone.no_mask_embedding().expand(6, -1, 4, 4)
        expected = backbone.decode(
            embeddings, torch.zeros(6, dtype=torch.int64), PromptEmbeddings(sparse, dense), multimask_output=True
        )
        shared = backbone.prompt_decoder(embeddings, multimask_output=True)(sparse)
        backbone.attached_tuner = "SomeTuner"
        plain = backbone.prompt_decoder(embeddings, multimask_output=True)(sparse)
        for candidates in (shared, plain):
            torch.testing.assert_close(candidates.predicted_iou, expected.iou_predictions, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(candidates.logits_of(kept), expected.low_res_masks[kept], atol=1e-6, rtol=1e-5)


def test_a_tuned_decoder_is_decoded_by_its_own_rules(backbone, monkeypatch):
    called = []
    decode = backbone.decode
    monkeypatch.setattr(backbone, "decode", lambda *a, **k: called.append(len(a[1])) or decode(*a, **k))
    image = to_tensor(random_image(48, 64))
    untuned = AutomaticMaskGenerator(backbone, TINY).generate(image)
    assert called == []
    backbone.attached_tuner = "SomeTuner"
    tuned = AutomaticMaskGenerator(backbone, TINY, prompts_per_batch=10).generate(image)
    assert called == [10, 10, 5]
    assert torch.equal(tuned.masks, untuned.masks)
