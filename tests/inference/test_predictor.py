import numpy as np
import pytest
import torch

from medsam_tune.geometry import InputRule
from medsam_tune.inference.new_images import image_tensor
from medsam_tune.inference.predictor import Predictor
from medsam_tune.prompts.box import BoxPrompt
from medsam_tune.segmenters.base import SamParts, Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import SemanticSegmenter
from medsam_tune.types import MaskPrediction
from tests.factories import make_batch


def grey(height=40, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.fixture
def predictor(tiny_backbone):
    return Predictor(SamSegmenter(SamParts(tiny_backbone)))


def test_prediction_equals_the_segmenters_own_forward_pass(predictor):
    batch = make_batch(sizes=((40, 64),))
    image = batch.images[0, :, :40, :64].round().byte().permute(1, 2, 0).numpy()
    rounded = make_batch(sizes=((40, 64),))
    rounded.images[0, :, :40, :64] = torch.from_numpy(image).permute(2, 0, 1).float()
    with torch.no_grad():
        expected = predictor.segmenter(rounded)
    predictor.set_image(image)
    masks, scores, low_res_logits = predictor.predict()
    np.testing.assert_allclose(low_res_logits, expected.low_res_masks[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(scores, expected.iou_predictions[0].numpy(), atol=1e-5)
    assert masks.dtype == np.bool_
    assert masks.shape == (1, 40, 64)


def test_image_is_encoded_once_for_several_prompts(predictor, monkeypatch):
    calls = []
    encode = predictor.segmenter.backbone.encode
    monkeypatch.setattr(predictor.segmenter.backbone, "encode", lambda *arguments: calls.append(1) or encode(*arguments))
    predictor.set_image(grey())
    predictor.predict()
    predictor.predict(box=(3, 4, 20, 30))
    assert len(calls) == 1


def test_many_images_give_the_masks_of_one_by_one(predictor):
    images = [grey(40, 64, 1), grey(30, 20, 2), grey(64, 64, 3)]
    together = predictor.segment_many(images, batch_size=2)
    for image, mask in zip(images, together, strict=True):
        np.testing.assert_array_equal(mask, predictor.segment(image))


def test_several_boxes_and_a_mask_from_before_are_answered_like_one_by_one_from_one_encoding(predictor, monkeypatch):
    calls = []
    encode = predictor.segmenter.backbone.encode
    monkeypatch.setattr(predictor.segmenter.backbone, "encode", lambda *given: calls.append(1) or encode(*given))
    predictor.set_image(grey())
    boxes = np.array([[5, 5, 30, 30], [1, 1, 9, 9], [3, 3, 20, 20]])
    masks, ious, low_res_masks = predictor.predict_many(boxes=boxes)
    for row, box in enumerate(boxes):
        alone, iou, low_res_mask = predictor.predict(box=box)
        np.testing.assert_array_equal(masks[row], alone)
        np.testing.assert_allclose(ious[row], iou, rtol=1e-5)
        np.testing.assert_allclose(low_res_masks[row], low_res_mask, rtol=1e-4, atol=1e-5)
    points = {"point_coords": np.array([[10, 10], [40, 5]]), "point_labels": np.array([1, 0])}
    again = predictor.predict(**points, mask_input=low_res_masks[0], multimask_output=True)
    assert again[0].shape == (3, 40, 64)
    assert len(calls) == 1


def test_view_with_negative_strides_is_read_like_its_copy(predictor):
    image = grey()
    np.testing.assert_array_equal(predictor.segment(image[::-1, ::-1]), predictor.segment(image[::-1, ::-1].copy()))


def test_model_trained_with_user_boxes_asks_for_one(tiny_backbone):
    predictor = Predictor(SamSegmenter(SamParts(tiny_backbone, BoxPrompt("tight"))))
    with pytest.raises(ValueError, match=r"Give box=\(x1, y1, x2, y2\)"):
        predictor.segment(grey())
    assert Predictor(SamSegmenter(SamParts(tiny_backbone, BoxPrompt("whole_image")))).segment(grey()).shape == (40, 64)


def test_grey_image_equals_the_same_image_in_three_channels(predictor):
    image = grey()
    np.testing.assert_array_equal(predictor.segment(image), predictor.segment(np.stack([image] * 3, axis=-1)))


def test_intensity_maps_its_limits_to_0_and_255():
    image = np.array([[-200.0, -100.0], [0.0, 400.0]])
    tensor = image_tensor(image, intensity=(-100, 100))
    torch.testing.assert_close(tensor[0], torch.tensor([[0.0, 0.0], [127.5, 255.0]]))
    assert torch.equal(tensor[0], tensor[2])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.float32), r"got float32. Scale it .* or pass intensity=\(low, high\)"),
        (np.zeros((4, 4), np.uint16), "must be uint8 in 0..255, got uint16"),
        (np.zeros((4, 4, 5), np.uint8), "Move channels last"),
        (np.zeros((3, 9, 9), np.uint8), "Move channels last"),
    ],
)
def test_unfit_image_is_refused_with_the_remedy(predictor, image, message):
    with pytest.raises(ValueError, match=message):
        predictor.set_image(image)


def test_nan_is_refused_and_counted(predictor):
    with pytest.raises(ValueError, match="image holds 2 values that are NaN or infinite"):
        predictor.set_image(np.array([[np.nan, 1.0], [np.inf, 2.0]]), intensity=(0, 2))


@pytest.mark.parametrize("box", [(10, 4, 2, 20), (1, 2, 3), (-1, 2, 5, 6), (1, 2, 500, 6), (1, 2, np.nan, 6)])
def test_unfit_box_is_refused(predictor, box):
    predictor.set_image(grey())
    with pytest.raises(ValueError, match="box must"):
        predictor.predict(box=box)


def test_box_of_one_pixel_is_valid(predictor):
    assert predictor.segment(grey(), box=(3, 5, 3, 5)).shape == (40, 64)


def test_predict_without_an_image_says_what_to_call(predictor):
    with pytest.raises(RuntimeError, match="Call set_image"):
        predictor.predict()


def test_predictor_leaves_no_gradient_and_eval_mode(predictor):
    predictor.segmenter.train()
    predictor = Predictor(predictor.segmenter)
    predictor.segment(grey())
    assert not any(module.training for module in predictor.segmenter.modules())
    assert all(p.grad is None for p in predictor.segmenter.parameters())


class Threshold(Segmenter):
    """A network without prompts, encoder or predicted IoU: bright pixels are the object."""

    input_rule = InputRule(side=64)

    def __init__(self):
        super().__init__()
        self.grey = torch.nn.Parameter(torch.tensor(100.0))

    def forward(self, batch):
        return MaskPrediction(batch.images[:, :1] - self.grey)

    def base_weights(self):
        return None


def test_network_without_prompts_segments_and_refuses_a_box():
    predictor = Predictor(Threshold())
    image = np.zeros((64, 32), np.uint8)
    image[10:20, 5:9] = 200
    np.testing.assert_array_equal(predictor.segment(image), image > 100)
    assert predictor.predict()[1] is None
    with pytest.raises(ValueError, match="Threshold takes no prompt"):
        predictor.predict(box=(1, 2, 3, 4))


@pytest.fixture
def labelling(tiny_backbone):
    """A predictor of two classes whose scores do not all favour one of them."""
    segmenter = SemanticSegmenter(SamParts(tiny_backbone), ["wall", "lumen"])
    with torch.no_grad():
        segmenter.backbone.mask_decoder.mask_tokens.weight.normal_(generator=torch.Generator().manual_seed(3))
    return Predictor(segmenter)


def test_classes_come_by_name_and_share_no_pixel(labelling):
    image = grey()
    masks = labelling.segment_classes(image)
    assert list(masks) == ["wall", "lumen"]
    assert not (masks["wall"] & masks["lumen"]).any()
    assert masks["wall"].any() or masks["lumen"].any()
    labelling.set_image(image)
    stacked, scores, low_res_logits = labelling.predict()
    np.testing.assert_array_equal(stacked, np.stack(list(masks.values())))
    assert scores is None
    assert ((low_res_logits > 0).sum(axis=0) <= 1).all()


def test_one_mask_of_several_classes_is_refused_with_what_to_call(labelling, predictor):
    with pytest.raises(ValueError, match=r"segment returns one mask.*classes wall, lumen\. Call segment_classes\(image\)"):
        labelling.segment(grey())
    with pytest.raises(ValueError, match=r"segment_many returns one mask"):
        labelling.segment_many([grey()])
    with pytest.raises(ValueError, match=r"SamSegmenter predicts one object, no classes\. Call segment\(image\)"):
        predictor.segment_classes(grey())


@pytest.mark.parametrize("smallest_part", [0.0, 0.9])
def test_single_mask_and_candidates_in_one_pass_are_those_of_two(tiny_backbone, smallest_part):
    predictor = Predictor(SamSegmenter(SamParts(tiny_backbone, BoxPrompt(), smallest_part=smallest_part)))
    predictor.set_image(grey())
    boxes = np.array([[5, 5, 30, 30], [1, 1, 60, 39]])
    apart = [predictor.predict_many(boxes=boxes, multimask_output=several) for several in (False, True)]
    together = predictor.predict_many(boxes=boxes, multimask_output=True, single_mask_too=True)
    for found, *parts in zip(together, *apart, strict=True):
        np.testing.assert_array_equal(found, np.concatenate(parts, axis=1))
    logits, _, _ = predictor.predict_many(boxes=boxes, multimask_output=True, single_mask_too=True, return_logits=True)
    assert (logits > 0).tolist() != together[0].tolist() if smallest_part else (logits > 0).tolist() == together[0].tolist()
