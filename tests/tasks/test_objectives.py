"""What the specification of each objective says, on small numbers and on the tiny network."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.geometry import Frame
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tasks import Pretraining
from medsam_tune.tasks.corruption import CellGrid, draw_masked, draw_moved, draw_of
from medsam_tune.tasks.objectives import masked_error, mix, mixed_loss, moved_loss
from medsam_tune.tuners import BiasTuning, NormTuning
from tests.factories import make_batch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(trainable=("image_encoder",), tuner=None, weights="random_tiny", **more):
    return SamSegmenter(SamParts(SamBackbone(weights, trainable=trainable, **more), tuner=tuner))


def attached(segmenter, **settings):
    task = Pretraining(**settings)
    torch.manual_seed(0)
    task.attach(segmenter)
    return task


def images(segmenter, n_images=4, size=None, seed=0):
    """Images of smooth random blobs with their names; the padding holds zeros."""
    side = segmenter.input_rule.side
    height, width = size or (side, side)
    noise = torch.rand(n_images, 3, 5, 5, generator=generator(seed)) * 255
    shown = nn.functional.interpolate(noise, (height, width), mode="bilinear")
    whole = torch.zeros(n_images, 3, side, side)
    whole[..., :height, :width] = shown
    batch = make_batch(side=side, sizes=((side, side),) * n_images)
    return replace(
        batch,
        images=whole,
        frames=(Frame((height, width), (height, width)),) * n_images,
        image_ids=tuple(f"image {number}" for number in range(n_images)),
        truth=None,
        training=True,
    )


def test_each_image_of_emix_weighs_its_own_losses():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.5, 0.0, -1.0], [0.0, 3.0, 1.0]])
    weights, others = torch.tensor([1.0, 0.5, 0.8]), torch.tensor([1, 2, 2])
    by_hand = []
    for row, (weight, other) in enumerate(zip(weights.tolist(), others.tolist(), strict=True)):
        log_sum = math.log(sum(math.exp(value) for value in logits[row].tolist()))
        own, its = log_sum - logits[row, row].item(), log_sum - logits[row, other].item()
        by_hand.append(weight * own + (1 - weight) * its)
    assert mixed_loss(logits, weights, others).item() == pytest.approx(np.mean(by_hand), abs=1e-6)
    # The public code's product of (B, 1, 1) and (B,) weighs each loss by the mean weight.
    own = nn.functional.cross_entropy(logits, torch.arange(3), reduction="none")
    its = nn.functional.cross_entropy(logits, others, reduction="none")
    w = weights[:, None, None]
    assert abs((w * own + (1 - w) * its).mean().item() - np.mean(by_hand)) > 0.01


def test_emix_of_two_images_has_its_hand_value():
    # Softmax of (1, 0) gives 0.3133 for the first; of (0, 0) both 0.6931.
    loss = mixed_loss(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 0.5]), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((0.31326 + 0.69315) / 2, abs=1e-5)


def test_no_gradient_flows_through_the_other_image():
    cells = torch.rand(2, 3, 4, requires_grad=True)
    mixed = mix(cells, torch.full((2, 3, 1), 0.75), torch.tensor([1, 0]))
    mixed[0].sum().backward()
    assert torch.equal(cells.grad[0], torch.full((3, 4), 0.75))
    assert not cells.grad[1].any()
    assert torch.allclose(mixed[0], 0.75 * cells[0] + 0.25 * cells[1])


@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.99])
def test_exactly_k_cells_move_in_one_cycle_and_none_stays(ratio):
    whole = torch.rand(200, generator=generator()) > 0.3
    source, moved = draw_moved(whole, ratio, generator(1))
    count = math.ceil(ratio * int(whole.sum()))
    assert int(moved.sum()) == count
    assert torch.equal(source != torch.arange(200), moved)
    assert not (moved & ~whole).any()
    assert torch.equal(source.sort().values, torch.arange(200))
    # One cycle: following the sources from any moved cell meets all of them.
    place, seen = int(moved.nonzero()[0]), set()
    while place not in seen:
        seen.add(place)
        place = int(source[place])
    assert len(seen) == count


def test_one_cell_that_would_move_alone_is_refused():
    with pytest.raises(ValueError, match="1 of 6 whole cells would move, but two are the fewest"):
        draw_moved(torch.ones(6, dtype=torch.bool), 0.15, generator())


def test_only_whole_cells_are_masked_and_as_many_as_said():
    whole = torch.rand(100, generator=generator()) > 0.5
    masked = draw_masked(whole, 0.75, generator(1))
    assert int(masked.sum()) == math.ceil(0.75 * int(whole.sum()))
    assert not (masked & ~whole).any()


def test_mae_counts_masked_cells_alone_and_is_zero_where_it_tells_them():
    pixels = torch.rand(2, 5, 12, generator=generator())
    masked = torch.tensor([[True, False, True, False, False], [False, False, False, False, True]])
    truth = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
    wrong_elsewhere = torch.where(masked[..., None], truth, 99.0)
    assert masked_error(wrong_elsewhere, pixels, masked).loss.item() == 0
    mean = masked_error(torch.zeros_like(pixels), pixels, masked)
    # Whoever says each patch's mean has the trivial loss: (P - 1) / P of the unbiased variance.
    assert mean.loss.item() == pytest.approx(mean.trivial.item())
    assert mean.trivial.item() == pytest.approx(11 / 12, abs=1e-3)


def test_chance_of_shed_at_15_percent_is_the_specification_s():
    moved = torch.zeros(1, 100, dtype=torch.bool)
    moved[0, :15] = True
    whole = torch.ones(1, 100, dtype=torch.bool)
    rate = torch.tensor([math.log(0.85), math.log(0.15)]).expand(1, 100, 2)
    told = moved_loss(rate, moved, whole)
    assert told.trivial.item() == pytest.approx(0.4227, abs=1e-4)
    assert told.loss.item() == pytest.approx(told.trivial.item(), abs=1e-5)
    # "Never moved" is right 85 times in 100, and half of the balanced accuracy.
    assert (told.hits / told.cells).mean().item() == 0.5


def test_cells_of_padding_count_in_no_loss():
    moved, whole = torch.zeros(1, 6, dtype=torch.bool), torch.tensor([[True, True, True, True, False, False]])
    moved[0, :2] = True
    logits = torch.randn(1, 6, 2, generator=generator())
    elsewhere = torch.where(whole[..., None], logits, torch.tensor(50.0))
    one, other = moved_loss(logits, moved, whole), moved_loss(elsewhere, moved, whole)
    assert one.loss == other.loss
    assert one.cells.tolist() == [2, 2]


@pytest.mark.parametrize("weights", ["random_tiny", "random_lite_medsam", "random_mobile_sam"])
def test_splitting_into_cells_and_joining_again_is_the_identity(weights):
    backbone = SamBackbone(weights, side={"random_tiny": 64, "random_lite_medsam": 64, "random_mobile_sam": 256}[weights])
    grid = CellGrid(backbone, 16)
    embed = backbone.get_submodule(backbone.anatomy().encoder.patch_embed)
    pixels = torch.rand(1, 3, backbone.input_rule.side, backbone.input_rule.side, generator=generator())
    with torch.no_grad():
        embedded = embed(pixels)
        cells = grid.split(embedded)
        assert torch.equal(grid.join(cells), embedded)
        # The first cell is made of the first 16 pixels each way (3 x 3 stems reach a little further): it alone changes.
        pixels[..., 2:12, 2:12] += 1
        changed = (grid.split(embed(pixels)) != cells).any(-1)[0]
    assert changed.nonzero()[:, 0].tolist() == [0]
    token = torch.arange(float(grid.width))
    with torch.no_grad():
        filled = grid.join(grid.token(token).expand(1, grid.side**2, -1).clone())
    assert filled.shape == embedded.shape
    assert torch.equal(filled.unique(), token)


def test_pixels_of_a_cell_are_those_the_head_speaks_of():
    backbone = SamBackbone("random_lite_medsam", side=64)
    grid = CellGrid(backbone, 16)
    pixels = torch.rand(1, 3, 64, 64, generator=generator())
    places = nn.functional.pixel_unshuffle(pixels, grid.place_px)
    assert torch.equal(grid.pixels(nn.functional.pixel_shuffle(places, grid.place_px)), grid.pixels(pixels))
    assert torch.equal(grid.pixels(pixels)[0, 1].reshape(3, 16, 16), pixels[0, :, :16, 16:32])


def test_cells_that_padding_touches_are_not_whole():
    grid = CellGrid(SamBackbone("random_tiny"), 16)
    frames = (Frame((64, 64), (64, 64)), Frame((40, 64), (40, 64)), Frame((64, 31), (64, 31)))
    counts = grid.whole(frames).reshape(3, 4, 4)
    assert counts.sum((1, 2)).tolist() == [16, 8, 4]
    assert counts[1, :2].all()
    assert counts[2, :, 0].all()


@pytest.mark.parametrize("cell_px", [8, 24, 48])
def test_cells_that_hold_no_whole_patches_are_refused(cell_px):
    with pytest.raises(RecipeError, match="must be a multiple of 16 px that divides the input's 64 px"):
        CellGrid(SamBackbone("random_tiny"), cell_px)


def test_what_padding_holds_changes_no_loss_that_is_asked_for_there():
    segmenter = network()
    task = attached(segmenter, shed_ratio=0.3)
    batch = images(segmenter, size=(64, 40))
    found = task.told(segmenter, batch)
    marked = batch.images.clone()
    marked[..., 40:] = 255.0
    whole = task.grid.whole(batch.frames)
    targets = [task.grid.pixels(each)[whole] for each in (batch.images, marked)]
    assert torch.equal(*targets)
    assert found["shed"].cells.sum() == whole.sum()


def test_an_image_with_too_few_whole_cells_is_named():
    segmenter = network()
    with pytest.raises(DataError, match=r"image 0: of its 20 x 20 pixels .* 1 cells are whole, two are the fewest"):
        attached(segmenter).told(segmenter, images(segmenter, size=(20, 20)))
    with pytest.raises(DataError, match=r"image 0: 1 of 4 whole cells would move.*raise model.task.shed_ratio"):
        attached(segmenter, mae=0, emix=0).told(segmenter, images(segmenter, size=(40, 40)))


def test_draws_follow_seed_epoch_and_name_and_are_the_same_in_every_validation():
    segmenter = network()
    batch = images(segmenter)
    first = torch.rand(4, generator=draw_of(batch, 1, "mae"))
    assert torch.equal(first, torch.rand(4, generator=draw_of(batch.part(1, 2), 0, "mae")))
    assert not torch.equal(first, torch.rand(4, generator=draw_of(replace(batch, epoch=1), 1, "mae")))
    assert not torch.equal(first, torch.rand(4, generator=draw_of(replace(batch, seed=1), 1, "mae")))
    still = replace(batch, training=False)
    draws = [torch.rand(4, generator=draw_of(replace(still, epoch=epoch), 1, "mae")) for epoch in (0, 5)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("name", ["mae", "shed"])
def test_two_halves_of_a_batch_have_the_gradients_of_the_whole(name):
    """What plain ddp computes: the mean over processes of the gradients of each one's images."""
    segmenter = network()
    task = attached(segmenter, **{each: float(each == name) for each in ("mae", "emix", "shed")}, shed_ratio=0.3)
    batch = images(segmenter)
    parameters = [p for p in (*segmenter.parameters(), *task.parameters()) if p.requires_grad]

    def gradients(*parts):
        losses = [task.training_losses(segmenter, part, None)[name] for part in parts]
        return torch.autograd.grad(torch.stack(losses).mean(), parameters)

    for one, two in zip(gradients(batch), gradients(batch.part(0, 2), batch.part(2, 4)), strict=True):
        assert torch.allclose(one, two, atol=2e-6)


@pytest.mark.parametrize(
    ("tuner", "trainable"),
    [(None, ("image_encoder",)), (BiasTuning(norms=True), ()), (NormTuning(), ())],
)
def test_everything_that_learns_gets_a_gradient_and_the_rest_stays_bit_for_bit(tuner, trainable):
    segmenter = network(trainable, tuner)
    task = attached(segmenter, shed_ratio=0.3)
    learning = {name: p for name, p in segmenter.named_parameters() if p.requires_grad}
    frozen = {name: p.clone() for name, p in segmenter.state_dict().items() if name not in learning}
    optimizer = torch.optim.SGD([*learning.values(), *task.parameters()], lr=0.1)
    torch.stack(list(task.training_losses(segmenter, images(segmenter), None).values())).sum().backward()
    assert all(p.grad is not None for p in (*learning.values(), *task.parameters()))
    optimizer.step()
    state = segmenter.state_dict()
    assert all(torch.equal(state[name], before) for name, before in frozen.items())
    if isinstance(tuner, BiasTuning):
        assert {name.rpartition(".")[2] for name in learning} == {"bias", "weight"}
        assert all(name.endswith(".bias") or "norm" in name or "neck" in name for name in learning)


def test_statistics_of_batch_norm_stay_those_of_images():
    segmenter = network(weights="random_lite_medsam", side=64)
    task = attached(segmenter, mae=0, shed=0)
    segmenter.train()
    before = {name: b.clone() for name, b in segmenter.named_buffers()}
    task.training_losses(segmenter, images(segmenter, n_images=2), None)
    assert all(torch.equal(b, before[name]) for name, b in segmenter.named_buffers())


@pytest.mark.parametrize("name", ["mae", "emix", "shed"])
def test_each_objective_beats_who_knows_nothing_on_a_few_images(name):
    segmenter = network()
    task = attached(segmenter, **{each: float(each == name) for each in ("mae", "emix", "shed")}, shed_ratio=0.3)
    batch = images(segmenter, n_images=8)
    optimizer = torch.optim.AdamW([p for p in (*segmenter.parameters(), *task.parameters()) if p.requires_grad], lr=3e-3)
    for epoch in range(60):
        optimizer.zero_grad()
        task.training_losses(segmenter, replace(batch, epoch=epoch), None)[name].backward()
        optimizer.step()
    metric = task.metric()
    with torch.no_grad():
        for epoch in range(100, 105):
            metric.update(task.told(segmenter, replace(batch, epoch=epoch)), batch.n_images)
    figures = {key: float(value) for key, value in task.figures(metric).items()}
    assert figures[name] < figures[f"{name}_trivial"]
    assert task.verdict(figures)["verdict"] == "beaten"


def test_an_objective_that_is_not_beaten_is_said():
    task = attached(network(), emix=0)
    told = task.verdict({"mae": 1.2, "mae_trivial": 1.0, "shed": 0.3, "shed_trivial": 0.42, "loss": 1.5})
    assert told["verdict"] == "not beaten"
    assert "mae 1.2000, the mean of each patch has 1.0000: NOT BEATEN; shed 0.3000, chance has 0.4200: beaten" in told["text"]
    assert "taught the encoder nothing" in told["text"]


def test_emix_is_not_told_where_validation_has_one_image_a_batch():
    told = attached(network(), mae=0, shed=0).verdict({"emix": 0.0, "emix_trivial": 0.0, "loss": 0.0})
    assert told["verdict"] == "not beaten"
    assert "emix 0.0000, log B has 0.0000: NOT TOLD, validation has one image a batch" in told["text"]


def test_figures_are_means_over_images_beside_the_trivial_ones():
    segmenter = network()
    task = attached(segmenter, shed_ratio=0.3)
    batch = replace(images(segmenter), training=False)
    metric = task.metric()
    task.score(metric, segmenter, batch.part(0, 3), None)
    task.score(metric, segmenter, batch.part(3, 4), None)
    figures = task.figures(metric)
    names = ("loss", "mae", "mae_trivial", "emix", "emix_trivial", "shed", "shed_trivial", "shed_balanced_accuracy")
    assert set(figures) == set(names)
    assert figures["emix_trivial"] == pytest.approx(0.75 * math.log(3))
    assert figures["loss"] == pytest.approx(float(figures["mae"] + figures["emix"] + figures["shed"]), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mae": 0, "emix": 0, "shed": 0}, "expected weights of at least 0, one of them above"),
        ({"mae": -1}, "expected weights of at least 0"),
        ({"mask_ratio": 1.0}, "model.task.mask_ratio: expected a part between 0 and 1, got 1.0"),
        ({"temperature": 0}, "model.task.temperature: expected a number above 0"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        Pretraining(**settings)


@pytest.mark.parametrize("trainable", [(), ("image_encoder", "mask_decoder")])
def test_anything_but_the_image_encoder_is_refused(trainable):
    with pytest.raises(RecipeError, match=r"reaches the image encoder alone.*Set model.backbone.trainable: \[image_encoder\]"):
        attached(network(trainable))


def test_a_batch_of_one_is_refused_for_emix():
    segmenter = network()
    with pytest.raises(RecipeError, match="e-Mix tells an image from the others of its batch"):
        attached(segmenter).check_batch(1)
    attached(segmenter, emix=0).check_batch(1)
