"""One encoder pass an image, and answers that depend on the question alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.data.base import VoxelSize
from medsam_tune.errors import RecipeError
from medsam_tune.inference.predictor import Predictor
from medsam_tune.masks import ObjectMasks
from medsam_tune.metrics.instances import match_instances
from medsam_tune.protocols.asking import AskableModel, AskedImage, StudiedImage
from medsam_tune.protocols.huang import HuangSettings
from medsam_tune.protocols.mazurowski import MazurowskiSettings
from medsam_tune.protocols.questions import Displacement, Question
from medsam_tune.protocols.segment import SegmentProtocol
from medsam_tune.protocols.selection import Candidates
from medsam_tune.protocols.studies import HuangProtocol, MazurowskiProtocol
from medsam_tune.protocols.sweep import PromptsProtocol
from medsam_tune.samples import Sample
from tests.protocols.shapes import four_pieces, rectangle

QUICK = (
    HuangProtocol(HuangSettings(displacements=(Displacement(0, 10),), draws=1, points_per_side=2)),
    MazurowskiProtocol(MazurowskiSettings(clicks=3)),
    PromptsProtocol(jitter=(0.0, 0.1), depths=(1.0, 0.0), clicks=2, draws=1),
    SegmentProtocol(),
)
EVERY_PROTOCOL = pytest.mark.parametrize("protocol", QUICK, ids=lambda protocol: protocol.name)


def studied(masks=None, *, case="a", size=(40, 70), number=0, ignored=None):
    """An image with two objects: the border, several pieces and a size that is not square among them."""
    masks = [four_pieces(), rectangle(20, 40, 40, 70, 40, 70)] if masks is None else masks
    planes = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *size, dtype=torch.bool)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(number)) * 255
    sample = Sample(
        image=image,
        masks=ObjectMasks.of(planes),
        labels=torch.arange(1, len(masks) + 1),
        image_id=f"{case}_{number}",
        case_id=case,
        spacing_mm=(1.0, 1.0),
        index=number,
        volume_id=case,
        slice_index=number,
        ignored=ignored,
    )
    return StudiedImage(sample, case, case, {1: "one", 2: "two"})


def rows_of(protocol, images, *, batch_size=0, backbone=None, seed=0):
    model = AskableModel("tiny", Predictor(backbone or SamBackbone("random_tiny")), batch_size=batch_size, is_untuned=True)
    return list(protocol.rows(images, model, seed=seed))


@EVERY_PROTOCOL
def test_an_image_is_encoded_once_for_all_questions(protocol):
    backbone, passes = SamBackbone("random_tiny"), []
    encoder = backbone.image_encoder
    encoder.register_forward_hook(lambda *_: passes.append(1))
    assert rows_of(protocol, [studied(), studied(number=1)], backbone=backbone)
    assert len(passes) == 2


def test_single_mask_and_candidates_of_a_question_come_from_one_pass_of_the_decoder():
    backbone, passes = SamBackbone("random_tiny"), []
    backbone.mask_decoder.output_upscaling.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    asked = AskedImage(AskableModel("tiny", Predictor(backbone)), studied().sample)
    answers = asked.answers(
        [Question("point", points=((5.0, 6.0, 1),)), Question("point", points=((9.0, 8.0, 0),))], name="one"
    )
    assert passes == [2]
    assert [answer.masks.shape for answer in answers] == [(4, 40, 70)] * 2


@EVERY_PROTOCOL
def test_no_figure_depends_on_how_many_prompts_are_decoded_at_once(protocol):
    one, many = (rows_of(protocol, [studied()], batch_size=size) for size in (1, 64))
    for a, b in zip(one, many, strict=True):
        estimates = a.pop("predicted_iou", None), b.pop("predicted_iou", None)
        assert a == b
        assert estimates[0] == pytest.approx(estimates[1], abs=1e-5)


@EVERY_PROTOCOL
def test_images_without_an_object_give_no_row_and_no_pass(protocol):
    assert rows_of(protocol, [studied([])]) == []
    assert rows_of(protocol, [studied([rectangle(0, 0, 0, 0, 40, 70)])]) == []


@EVERY_PROTOCOL
def test_rows_have_the_columns_of_the_table(protocol):
    assert all(set(row) == set(protocol.columns) for row in rows_of(protocol, [studied()]))


@EVERY_PROTOCOL
def test_an_object_is_asked_the_same_whatever_stands_beside_it(protocol):
    both = [row for row in rows_of(protocol, [studied()]) if row["label"] == "one"]
    alone = rows_of(protocol, [studied([four_pieces()])])
    # Everything mode and the plain test have nothing of their own to ask about an object.
    assert both == alone


def test_candidates_are_those_of_the_predictor():
    image = studied()
    predictor = Predictor(SamBackbone("random_tiny"))
    answer = AskedImage(AskableModel("tiny", predictor), image.sample).answers(
        [Question("box", boxes=((3.0, 4.0, 30.0, 39.0),))], name="one"
    )[0]
    predictor.set_image(image.sample.image.permute(1, 2, 0).numpy(), intensity=(0.0, 255.0))
    single, estimate, _ = predictor.predict(box=(3, 4, 30, 39))
    three, estimates, _ = predictor.predict(box=(3, 4, 30, 39), multimask_output=True)
    assert answer.masks.tolist() == np.concatenate([single, three]).tolist()
    assert answer.predicted_iou == pytest.approx(np.concatenate([estimate, estimates]))


def test_pixels_that_nobody_annotated_do_not_count():
    ignored = torch.zeros(40, 70, dtype=torch.bool)
    ignored[:, 35:] = True
    each = next(studied(ignored=ignored).objects())
    assert not each.mask[:, 35:].any()
    assert each.overlap(each.mask | ignored.numpy()) == (1.0, 1.0)


def test_the_oracle_is_never_worse_than_a_rule_on_the_same_three():
    scores = {}
    for row in rows_of(QUICK[0], [studied()]):
        if row["strategy"] != "S1":
            key = (row["object"], row["strategy"], row["displacement"], row["draw"])
            scores.setdefault(key, {})[row["selection"]] = row["dice"]
    assert scores
    assert all(found["oracle"] >= max(found["first"], found["pred_iou"]) for found in scores.values())


def test_everything_mode_that_finds_nothing_scores_zero():
    rows = [row for row in rows_of(QUICK[0], [studied()]) if row["strategy"] == "S1"]
    assert {row["selection"] for row in rows} == {"pred_iou", "oracle"}
    assert all(row["dice"] == 0 and row["predicted_iou"] is None for row in rows)


def test_another_seed_moves_prompts_and_nothing_else():
    rows = {seed: rows_of(QUICK[0], [studied()], seed=seed) for seed in (0, 1)}
    still = [[row for row in found if not row["displacement"]] for found in rows.values()]
    assert still[0] == still[1]
    assert rows[0] != rows[1]


def test_segment_scores_a_volume_whole_and_in_millimetres():
    """Two slices, one with the organ and one without: pixels are pooled, distances are those of the file."""
    voxel = VoxelSize(2.0, 2.0, 5.0)
    images = [replace(studied([rectangle(5, 5, 25, 45, 40, 70)], number=number), voxel=voxel) for number in range(2)]
    row = rows_of(SegmentProtocol(), images)[0]
    assert (row["n_slices"], row["distance_unit"], row["size_unit"]) == (2, "mm", "ml")
    assert row["true_size"] == pytest.approx(2 * 800 * 20 / 1000)
    assert row["size_difference"] == pytest.approx((row["fp"] - row["fn"]) * 20 / 1000)
    assert row["dice"] == pytest.approx(2 * row["tp"] / (2 * row["tp"] + row["fp"] + row["fn"]))


def test_several_objects_of_a_label_are_scored_apart_too(monkeypatch):
    """Nuclei of 100, 100 and 60 pixels; the answers hit one, half of the next, and lie beside the last."""
    true = [rectangle(0, 0, 10, 10, 40, 70), rectangle(0, 20, 10, 30, 40, 70), rectangle(20, 0, 26, 10, 40, 70)]
    found = [true[0], rectangle(0, 20, 5, 30, 40, 70), rectangle(30, 0, 36, 10, 40, 70)]
    answers = iter(found)
    said = staticmethod(lambda questions, *, name: [Candidates(next(answers)[None], None)])
    monkeypatch.setattr(AskedImage, "answers", said)
    image = studied(true)
    image = replace(image, sample=replace(image.sample, labels=torch.ones(3).long()))
    row = rows_of(SegmentProtocol(), [image])[0]
    assert row["dice"] == row["pixel_f"] == pytest.approx(2 * 150 / (210 + 260))
    assert row["aji"] == pytest.approx((100 + 50 + 0) / (100 + 100 + 60 + 60))


def test_a_single_object_is_no_instance():
    row = rows_of(SegmentProtocol(), [studied()])[0]
    assert row["aji"] is row["pixel_f"] is None


def test_a_mode_is_asked_the_same_whatever_other_modes_are():
    """The line has many innermost pixels, among which one is drawn."""
    image, few = studied([rectangle(10, 0, 11, 70, 40, 70)]), MazurowskiSettings(modes=("mode 2",), clicks=0)
    every, alone = (
        [{**row, "predicted_iou": round(row["predicted_iou"], 4)} for row in rows_of(MazurowskiProtocol(settings), [image])]
        for settings in (MazurowskiSettings(clicks=0), few)
    )
    two = [row for row in every if row["strategy"] == "mode 2"]
    assert two == alone
    # Of one piece, mode 2 is mode 1.
    assert [{**row, "strategy": "mode 2"} for row in every if row["strategy"] == "mode 1"] == two


def test_matches_of_a_shared_mask_are_not_one_to_one():
    """Everything mode may give one mask to two objects; matching of instances may not."""
    true = torch.from_numpy(np.stack([rectangle(0, 0, 10, 10), rectangle(0, 12, 10, 22)]))
    assert match_instances(true.any(dim=0, keepdim=True), true).n_matched[0] <= 1


def test_a_network_without_prompts_is_refused_with_what_to_do():
    class Deaf(Predictor):
        """Takes no prompt."""

    predictor = Deaf(SamBackbone("random_tiny"))
    predictor.segmenter.takes_prompts = lambda: False
    model = AskableModel("deaf", predictor)
    with pytest.raises(RecipeError, match=r"so huang cannot ask it\. Use --protocol segment"):
        QUICK[0].check(model)
    predictor.segmenter.classes = lambda: ("liver",)
    with pytest.raises(RecipeError, match="deaf: labels pixels, so huang cannot ask for objects"):
        QUICK[0].check(model)
    with pytest.raises(RecipeError, match=r"deaf: takes no boxes of objects\. Leave --boxed out"):
        SegmentProtocol(boxed=True).check(model)
