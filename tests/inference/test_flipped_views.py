"""A test that averages flipped views of an image: what is flipped, what comes back, and where it is left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medsam_tune import Predictor
from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.evaluation.predict import predict_masks
from medsam_tune.export.build import build_segmenter
from medsam_tune.geometry import InputRule, to_original
from medsam_tune.inference.flipped_views import VIEWS, flip_valid, flipped_batch, seen_in_views
from medsam_tune.inference.stitching import answer
from medsam_tune.prompt_encoders import EmbeddingPromptGenerator
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts, Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.training.module import TuningModule
from medsam_tune.types import MaskPrediction
from tests.factories import make_batch

SIDE, FLIPS = 16, VIEWS["flips"]


class _Pixelwise(Segmenter):
    """Answer each pixel by its own brightness, and by where it lies if ``slope`` says so."""

    views_at_test = "flips"

    def __init__(self, *, slope=0.0, low_res=SIDE, classes=0):
        super().__init__()
        self.slope, self.low_res, self.n_classes, self.seen = slope, low_res, classes, 0
        self.scale = nn.Parameter(torch.tensor(1.0))

    @property
    def input_rule(self):
        return InputRule(side=SIDE)

    def base_weights(self):
        return None

    def forward(self, batch):
        self.seen += 1
        logits = self.scale * (batch.images.mean(dim=1, keepdim=True) - 128) / 32
        logits = logits + self.slope * torch.arange(SIDE)
        logits = nn.functional.avg_pool2d(logits, SIDE // self.low_res)
        if self.n_classes:
            scores = torch.cat([logits * k for k in range(1 + self.n_classes)], dim=1)
            rows = torch.zeros(batch.n_objects, 1, self.low_res, self.low_res)
            return MaskPrediction(rows, class_logits=scores)
        return MaskPrediction(logits[batch.image_index])


def batch():
    return make_batch(side=SIDE, sizes=((10, 16), (16, 12)))


def test_padding_stays_and_two_flips_give_the_image_back():
    given = batch()
    for axes in FLIPS:
        flipped = flip_valid(given.images, given.frames, axes)
        assert not flipped[0, :, 10:].any()
        assert not flipped[1, :, :, 12:].any()
        assert torch.equal(flip_valid(flipped, given.frames, axes), given.images)
    assert torch.equal(flip_valid(given.images, given.frames, (-1,))[1, :, :, 0], given.images[1, :, :, 11])
    assert torch.equal(flip_valid(given.images, given.frames, (-2,))[0, :, 0], given.images[0, :, 9])


@pytest.mark.parametrize("low_res", [SIDE, SIDE // 2])
def test_a_network_that_flips_along_answers_as_with_one_view(low_res):
    # Of 10 of 16 rows 5 of 8 low-res rows are valid, so nothing of the padding is mixed in.
    network, given = _Pixelwise(low_res=low_res), batch()
    several, one = seen_in_views(network, given), network(given)
    assert network.seen == len(FLIPS) + 1
    for row, frame in enumerate(given.frames):
        ours, expected = (to_original(each.low_res_masks[[row]], frame, SIDE) for each in (several, one))
        torch.testing.assert_close(ours[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-4, rtol=1e-4)


def test_views_are_averaged_as_probabilities_at_their_own_place():
    network, given = _Pixelwise(slope=0.5), batch()
    given = replace(given, images=torch.full_like(given.images, 128.0))
    logits = seen_in_views(network, given).low_res_masks
    # Column 2 of 16 is column 13 of a mirrored image: logits 1 and 6.5, twice each.
    expected = torch.logit((torch.tensor(1.0).sigmoid() + torch.tensor(6.5).sigmoid()) / 2)
    torch.testing.assert_close(logits[0, 0, :10, 2], expected.expand(10))
    network.views_at_test = "mirror"
    torch.testing.assert_close(seen_in_views(network, given).low_res_masks, logits)
    # The other image is 12 wide: column 2 becomes 9.
    expected = torch.logit((torch.tensor(1.0).sigmoid() + torch.tensor(4.5).sigmoid()) / 2)
    torch.testing.assert_close(logits[1, 0, :, 2], expected.expand(16))


def test_classes_are_averaged_after_the_softmax():
    network, given = _Pixelwise(slope=0.5, classes=2), batch()
    given = replace(given, images=torch.full_like(given.images, 128.0))
    found = seen_in_views(network, given)
    scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, 6.5, 13.0]]).softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(found.class_logits[0, :, 4, 2].exp(), scores)
    assert found.low_res_masks.shape == (4, 1, SIDE, SIDE)
    assert found.low_res_masks[1, 0, 4, 2] > 0 > found.low_res_masks[0, 0, 4, 2]


def test_flipped_views_bring_neither_truth_nor_the_embedding_of_the_image_as_it_lies():
    given = replace(batch(), image_embeddings=torch.zeros(2, 4, 4, 4), priors=torch.rand(2, 2, SIDE, SIDE))
    flipped = flipped_batch(given, (-1,))
    assert flipped.truth is None
    assert flipped.image_embeddings is None
    assert torch.equal(flipped.priors[0, :, :10, 0], given.priors[0, :, :10, 15])
    assert flipped_batch(given, ()) is given


def test_prompts_and_validations_are_seen_once():
    network = _Pixelwise()
    seen_in_views(network, replace(batch(), one_view=True))
    assert network.seen == 1
    prompted = batch()
    prompted = replace(prompted, queries=replace(prompted.queries, boxes=torch.zeros(2, 4)))
    seen_in_views(network, prompted)
    assert network.seen == 2


def tuned(views="flips"):
    torch.manual_seed(0)
    parts = SamParts(SamBackbone("random_tiny"), prompt_encoder=EmbeddingPromptGenerator(8), views_at_test=views)
    segmenter = SamSegmenter(parts).eval()
    nn.init.normal_(segmenter.prompt_encoder.trunk.head.weight)
    return segmenter


def test_predictor_answers_as_the_test_does():
    segmenter = tuned()
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    predictor = Predictor(segmenter)
    predictor.set_image(image)
    given = make_batch(sizes=((40, 64),), rule=segmenter.input_rule)
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    images = torch.zeros_like(given.images)
    images[0, :, :40] = pixels
    given = replace(given, images=images)
    with torch.no_grad():
        logits = [segmenter(flipped_batch(given, axes)).low_res_masks for axes in FLIPS]
        (expected,) = predict_masks(answer(segmenter, given), given, segmenter.input_rule.side)
    assert np.array_equal(predictor.predict()[0][0], expected[0].numpy())
    assert np.array_equal(predictor.segment_many([image])[0], expected[0].numpy())
    # By another way: each view's probabilities at the size of the image, flipped and averaged there.
    probs = [
        to_original(each, given.frames[0], segmenter.input_rule.side).sigmoid().flip(axes or (0,))
        for each, axes in zip(logits, FLIPS, strict=True)
    ]
    mean = torch.stack(probs).mean(dim=0)[0, 0]
    sure = (mean - 0.5).abs() > 1e-4
    assert torch.equal((mean > 0.5)[sure], expected[0][sure])
    one = Predictor(tuned("one"))
    one.set_image(image)
    assert not np.allclose(one.predict(return_logits=True)[0], predictor.predict(return_logits=True)[0])


def test_a_described_model_is_built_with_its_views():
    model = {
        "backbone": {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": {"weights": "random_tiny"}},
        "prompt_encoder": {"class_path": "medsam_tune.prompt_encoders.EmbeddingPromptGenerator"},
    }
    assert build_segmenter({**model, "views_at_test": "flips"}).views_at_test == "flips"
    assert build_segmenter(model).views_at_test == "one"
    with pytest.raises(RecipeError, match="views_at_test"):
        build_segmenter({**model, "views_at_test": "turns"})


def learning():
    return SamBackbone("random_tiny", trainable=["mask_decoder"])


def test_a_model_that_is_asked_by_boxes_is_refused():
    with pytest.raises(RecipeError, match="asked by BoxPrompt on the image as it lies"):
        TuningModule(
            backbone=SamBackbone("random_tiny", trainable=["mask_decoder"]), prompts=BoxPrompt(), views_at_test="flips"
        )


def test_a_segmenter_that_does_not_keep_the_key_is_refused():
    def forgetful(parts):
        return SamSegmenter(replace(parts, views_at_test="one"))

    with pytest.raises(RecipeError, match="SamSegmenter does not keep it"):
        TuningModule(
            backbone=SamBackbone("random_tiny", trainable=["mask_decoder"]), segmenter=forgetful, views_at_test="flips"
        )
