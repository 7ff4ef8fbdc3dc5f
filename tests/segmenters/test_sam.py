from dataclasses import replace

import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.fusion import AddRgb, Concat, StackGrey
from medsam_tune.geometry import normalise
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters import SamSegmenter
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import objects_at_once
from medsam_tune.tuners import NoTuner
from tests.factories import make_batch


class CarelessTuner(NoTuner):
    """Lets a parameter learn that it does not own."""

    def attach(self, backbone):
        backbone.mask_decoder.iou_token.weight.requires_grad_(True)


class IdleTuner(NoTuner):
    """Owns a parameter that it leaves frozen."""

    def is_tuned(self, parameter_name):
        return parameter_name == "mask_decoder.iou_token.weight"


def test_parameter_that_learns_without_being_asked_for_is_refused(tiny_backbone):
    with pytest.raises(RecipeError, match=r"learn but should not: mask_decoder\.iou_token\.weight"):
        SamSegmenter(SamParts(tiny_backbone, tuner=CarelessTuner()))


def test_parameter_that_should_learn_but_is_frozen_is_refused(tiny_backbone):
    with pytest.raises(RecipeError, match=r"should learn but are frozen or absent: mask_decoder\.iou_token\.weight"):
        SamSegmenter(SamParts(tiny_backbone, tuner=IdleTuner()))


def test_objects_decoded_in_chunks_give_what_they_give_together(tiny_backbone):
    batch = make_batch(objects=(3, 2))
    with torch.no_grad():
        together = SamSegmenter(SamParts(tiny_backbone, BoxPrompt(), objects_per_decode=5)).eval()(batch)
        chunked = SamSegmenter(SamParts(tiny_backbone, BoxPrompt(), objects_per_decode=2)).eval()(batch)
    torch.testing.assert_close(chunked.low_res_masks, together.low_res_masks)
    torch.testing.assert_close(chunked.iou_predictions, together.iou_predictions)


def test_device_rules_how_many_objects_are_decoded_at_once(tiny_backbone, monkeypatch):
    sizes, decode = [], tiny_backbone.decode

    def counted(embeddings, image_index, *arguments, **keywords):
        sizes.append(len(image_index))
        return decode(embeddings, image_index, *arguments, **keywords)

    monkeypatch.setattr(tiny_backbone, "decode", counted)
    batch = make_batch(objects=(3, 3))
    with torch.no_grad():
        by_device = SamSegmenter(SamParts(tiny_backbone, BoxPrompt())).eval()(batch)
        together = SamSegmenter(SamParts(tiny_backbone, BoxPrompt(), objects_per_decode=6)).eval()(batch)
    assert sizes == [4, 2, 6]
    torch.testing.assert_close(by_device.low_res_masks, together.low_res_masks)
    assert objects_at_once(torch.device("cuda"), 6) == 6


def test_cached_embedding_gives_what_the_image_gives(tiny_backbone):
    segmenter, batch = SamSegmenter(SamParts(tiny_backbone, BoxPrompt())).eval(), make_batch()
    with torch.no_grad():
        cached = replace(batch, image_embeddings=segmenter.encode(batch.images, batch.frames))
        assert torch.equal(segmenter(cached).low_res_masks, segmenter(batch).low_res_masks)


def test_learning_encoder_is_named_as_what_rules_the_cache_out(tiny_backbone):
    assert SamSegmenter(SamParts(tiny_backbone)).not_precomputable() is None
    tiny_backbone.image_encoder.requires_grad_(True)
    reason = SamSegmenter(SamParts(tiny_backbone)).not_precomputable()
    assert reason is not None
    assert reason.startswith("model.backbone.trainable")


def batch_with_priors():
    batch = make_batch()
    priors = torch.zeros(2, 2, 64, 64)
    priors[:, 0, 4:20, 4:30], priors[:, 1, 4, 4:30] = 0.9, 1.0
    return replace(batch, priors=priors)


def encoder_input(segmenter, batch):
    seen = []
    handle = segmenter.backbone.image_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        segmenter(batch)
    handle.remove()
    return seen[0]


def test_priors_of_zeros_change_nothing_under_add_rgb(tiny_backbone):
    batch = replace(make_batch(), priors=torch.zeros(2, 2, 64, 64))
    with torch.no_grad():
        plain = SamSegmenter(SamParts(tiny_backbone, BoxPrompt())).eval()(batch).low_res_masks
        for space in ("image", "normalised"):
            fused = SamSegmenter(SamParts(tiny_backbone, BoxPrompt(), fusion=AddRgb(space=space))).eval()(batch)
            assert torch.equal(fused.low_res_masks, plain)


@pytest.mark.parametrize("kind", [AddRgb, StackGrey])
def test_encoder_sees_the_fused_image_normalised(tiny_backbone, kind):
    batch, segmenter = batch_with_priors(), SamSegmenter(SamParts(tiny_backbone, fusion=kind()))
    expected = normalise(kind()(batch.images, batch.priors), batch.frames, tiny_backbone.input_rule)
    torch.testing.assert_close(encoder_input(segmenter, batch), expected)


def test_overlapping_priors_leave_the_contrast_of_the_other_channels_under_a_min_max_rule(tiny_backbone):
    tiny_backbone.input_rule = replace(tiny_backbone.input_rule, min_max=True, mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = batch_with_priors()
    batch.priors[:, 0, 4:8, 4:12] = 3.0  # three masks over each other
    seen = encoder_input(SamSegmenter(SamParts(tiny_backbone, fusion=AddRgb())), batch)
    plain = normalise(batch.images, batch.frames, tiny_backbone.input_rule)
    assert torch.equal(seen[:, 0], plain[:, 0])
    assert plain[:, 0].amax(dim=(1, 2)).min() > 0.9
    image = batch.images[0, :, :40]
    torch.testing.assert_close((seen - plain)[0, 1, 5, 5], 3 * 255 / (image.max() - image.min()))


def test_encoder_sees_priors_added_after_normalisation_where_the_fusion_says_so(tiny_backbone):
    batch, segmenter = batch_with_priors(), SamSegmenter(SamParts(tiny_backbone, fusion=AddRgb(space="normalised")))
    seen, plain = encoder_input(segmenter, batch), normalise(batch.images, batch.frames, tiny_backbone.input_rule)
    torch.testing.assert_close(seen[:, 1:] - plain[:, 1:], batch.priors)
    assert torch.equal(seen[:, 0], plain[:, 0])


def test_fusion_rules_the_cache_out_and_five_channels_are_refused(tiny_backbone):
    assert SamSegmenter(SamParts(tiny_backbone, fusion=AddRgb())).not_precomputable().startswith("model.fusion")
    with pytest.raises(RecipeError, match=r"Concat returns 5 channels, SAM's encoder takes 3\. Use AddRgb or StackGrey"):
        SamSegmenter(SamParts(tiny_backbone, fusion=Concat()))
