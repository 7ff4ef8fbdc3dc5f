"""One mask a class: the decoder against segment_anything's own, what learns, and who wins a pixel."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.evaluation.predict import predict_masks
from medsam_tune.export.trained import trained_names
from medsam_tune.losses import SoftmaxDiceLoss
from medsam_tune.metrics import overlap_counts
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters import SamSegmenter, SemanticSegmenter
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.semantic import class_margins
from medsam_tune.types import MaskPrediction
from tests.class_batches import make_class_batch
from tests.factories import make_batch, with_masks

NAMES = ("wall", "lumen", "clot", "stent", "plaque")
HEADS = ("mask_tokens", "output_hypernetworks_mlps")


def segmenter_of(n_classes=2, *, trainable=()):
    return SemanticSegmenter(SamParts(SamBackbone("random_tiny", trainable=trainable)), NAMES[:n_classes])


def learning(segmenter):
    return {name: p for name, p in segmenter.named_parameters() if p.requires_grad}


def test_scores_are_those_of_segment_anythings_decoder_with_as_many_mask_tokens():
    segmenter, batch = segmenter_of(5).eval(), make_class_batch(5)
    with torch.no_grad():
        for p in learning(segmenter).values():
            p += 0.1 * torch.randn_like(p)
        embeddings = segmenter.encode(batch.images, batch.frames)
        sparse, dense = segmenter.backbone.prompt_encoder(points=None, boxes=None, masks=None)
        decoder, pe = segmenter.backbone.mask_decoder, segmenter.backbone.image_pe()
        expected = [decoder.predict_masks(one[None], pe, sparse, dense)[0] for one in embeddings]
        found = segmenter(batch).class_logits
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_three_classes_start_as_sams_candidates_and_the_background_as_its_single_mask():
    segmenter, batch = segmenter_of(3).eval(), make_class_batch(3)
    stock = SamSegmenter(SamParts(SamBackbone("random_tiny"))).eval()
    with torch.no_grad():
        embeddings = stock.image_embeddings(batch)
        prompts = stock.backbone.embed_prompts(2)
        single = stock.backbone.decode(embeddings, torch.arange(2), prompts).low_res_masks
        several = stock.backbone.decode(embeddings, torch.arange(2), prompts, multimask_output=True).low_res_masks
        found = segmenter(batch).class_logits
    torch.testing.assert_close(found, torch.cat([single, several], dim=1), atol=1e-5, rtol=1e-5)


def test_more_classes_than_sam_has_candidates_start_as_copies_in_turn():
    decoder = segmenter_of(5).backbone.mask_decoder
    stock = SamBackbone("random_tiny").mask_decoder
    assert torch.equal(decoder.mask_tokens.weight, stock.mask_tokens.weight[[0, 1, 2, 3, 1, 2]])
    first, fourth = (decoder.output_hypernetworks_mlps[i].layers[0].weight for i in (1, 4))
    assert torch.equal(first, fourth)
    assert first is not fourth


def test_only_the_new_heads_learn_unless_the_recipe_names_more():
    heads = {name for name in learning(segmenter_of()) if any(head in name for head in HEADS)}
    assert set(learning(segmenter_of())) == heads
    assert len(heads) == 1 + 3 * 6
    whole = set(learning(segmenter_of(trainable=["mask_decoder"])))
    decoder = {name for name, _ in segmenter_of().named_parameters() if name.startswith("backbone.mask_decoder.")}
    assert decoder - whole == {name for name in decoder if "iou_prediction_head" in name}


def test_what_is_frozen_is_exactly_what_the_base_weights_hold():
    segmenter = segmenter_of(trainable=["mask_decoder"])
    stock = SamSegmenter(SamParts(SamBackbone("random_tiny"))).state_dict()
    state = segmenter.state_dict()
    frozen = state.keys() - set(trained_names(segmenter))
    assert frozen
    assert all(torch.equal(state[name], stock[name]) for name in frozen)


def test_a_batch_gives_what_each_image_gives_alone_for_every_class():
    segmenter = segmenter_of().eval()
    both, first, second = (make_class_batch(sizes=sizes) for sizes in (((40, 64), (40, 64)), ((40, 64),), ((40, 64),)))
    with torch.no_grad():
        rows = segmenter(both).low_res_masks
        assert rows.shape == (4, 1, 16, 16)
        torch.testing.assert_close(rows[:2], segmenter(first).low_res_masks, atol=2e-4, rtol=1e-4)
    assert torch.equal(second.images[0], first.images[0])
    assert not torch.equal(rows[:2], rows[2:])


def test_a_box_prompts_the_image_once_around_all_its_classes():
    batch, drawn = make_class_batch(), []

    class Watching(BoxPrompt):
        def boxes(self, batch):
            drawn.append((super().boxes(batch), batch.image_index.tolist(), batch.original_masks[0].shape[0]))
            return drawn[-1][0]

    segmenter = segmenter_of()
    segmenter.prompts = Watching()
    segmenter(batch)
    ((boxes, index, rows),) = drawn
    assert index == [0, 1]
    assert rows == 1
    occupied = batch.masks[:2].any(dim=0)[0].nonzero()
    (top, left), (bottom, right) = occupied.amin(dim=0).tolist(), occupied.amax(dim=0).tolist()
    assert boxes[0].tolist() == [left, top, right, bottom]


def test_each_pixel_of_the_original_image_goes_to_the_largest_interpolated_score():
    batch = make_class_batch(3, sizes=((37, 64),))
    scores = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = class_margins(scores)[:, 1:].flatten(0, 1)[:, None]
    (masks,) = predict_masks(MaskPrediction(rows, class_logits=scores), batch, 64)
    upsampled = F.interpolate(scores, (64, 64), mode="bilinear", align_corners=False)[0, :, :37]
    winner = upsampled.argmax(dim=0)
    assert torch.equal(masks, torch.stack([winner == number for number in (1, 2, 3)]))


def test_classes_that_share_the_largest_score_lose_both():
    margins = class_margins(torch.tensor([0.0, 3.0, 3.0, 1.0]).view(1, 4, 1, 1)).flatten()
    assert margins.tolist() == [-3.0, 0.0, 0.0, -2.0]


def test_objects_instead_of_classes_are_refused_with_the_key():
    with pytest.raises(RecipeError, match=r"\(wall, lumen\), but .* 3 objects on 2 images\. Set data\.target: per_class"):
        segmenter_of()(make_batch(objects=(2, 1)))


@pytest.mark.parametrize(
    ("classes", "message"), [((), r"expected at least one class, got 0"), (("a", "a"), r"a name stands twice")]
)
def test_no_class_or_one_class_twice_is_refused(tiny_backbone, classes, message):
    with pytest.raises(RecipeError, match=rf"model\.segmenter\.classes: {message}"):
        SemanticSegmenter(SamParts(tiny_backbone), classes)


def test_data_with_another_target_or_other_labels_is_refused_before_training():
    segmenter = segmenter_of()
    agreeing = SimpleNamespace(target="per_class", label_names={1: "wall", 2: "lumen"})
    segmenter.check_data(agreeing)
    with pytest.raises(RecipeError, match=r"got binary\. Set data\.target: per_class"):
        segmenter.check_data(SimpleNamespace(target="binary", label_names={1: "object"}))
    with pytest.raises(RecipeError, match=r"which are \['lumen', 'wall'\]\. Make them and data\.source\.labels agree"):
        segmenter.check_data(SimpleNamespace(target="per_class", label_names={1: "lumen", 2: "wall"}))
    SamSegmenter(SamParts(SamBackbone("random_tiny"))).check_data(SimpleNamespace(target="binary"))


def test_the_heads_alone_learn_to_tell_two_regions_from_the_background():
    batch = make_class_batch(2, sizes=((64, 64),))
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[0, :, :, :32], masks[1, :, :32, 32:] = True, True
    batch = with_masks(batch, masks, (masks[:, 0],))
    segmenter = segmenter_of(trainable=["mask_decoder"])
    with torch.no_grad():
        batch = replace(batch, image_embeddings=segmenter.encode(batch.images, batch.frames))
    optimizer = torch.optim.AdamW(learning(segmenter).values(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        sum(segmenter.training_losses(batch, SoftmaxDiceLoss()).values()).backward()
        optimizer.step()
    with torch.no_grad():
        (masks,) = predict_masks(segmenter.eval()(batch), batch, 64)
    counts = overlap_counts(masks, batch.original_masks[0].dense()).double()
    dice = 2 * counts[:, 0] / (2 * counts[:, 0] + counts[:, 1:].sum(dim=1))
    assert (dice > 0.9).all(), dice


def test_a_hundred_and_seventeen_classes_have_a_row_each_on_sams_four_mask_tokens(tiny_backbone):
    names = [f"k{number}" for number in range(117)]
    segmenter = SemanticSegmenter(SamParts(tiny_backbone), names).eval()
    batch = make_class_batch(117, sizes=((40, 64),))
    with torch.no_grad():
        prediction = segmenter(batch)
    assert list(segmenter.classes()) == names
    assert prediction.class_logits.shape[1] == 118
    assert len(prediction.low_res_masks) == 117
    # Before any training they are SAM's own four masks, in turn.
    assert len({row.sum().item() for row in prediction.class_logits[0]}) == 4
