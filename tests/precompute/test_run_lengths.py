import pytest
import torch
from segment_anything.utils.amg import mask_to_rle_pytorch

from medsam_tune.precompute.run_lengths import decode_masks, encode_masks


def random_masks(n, height, width):
    generator = torch.Generator().manual_seed(n)
    shares = torch.rand(n, 1, 1, generator=generator)
    return torch.rand(n, height, width, generator=generator) < shares


def test_runs_go_down_the_columns_and_begin_with_zeros():
    masks = torch.tensor([[[0, 1, 1], [0, 1, 0]], [[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]], dtype=torch.bool)
    runs, lengths = encode_masks(masks)
    assert runs.tolist() == [2, 3, 1, 0, 6, 6]
    assert lengths.tolist() == [3, 2, 1]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (13, 9), (64, 48)])
def test_runs_are_segment_anythings_and_come_back_without_loss(size):
    masks = random_masks(11, *size)
    runs, lengths = encode_masks(masks)
    expected = [record["counts"] for record in mask_to_rle_pytorch(masks)]
    assert [part.tolist() for part in runs.split(lengths.tolist())] == expected
    assert torch.equal(decode_masks(runs.int(), lengths.int(), size), masks)


def test_no_masks_are_no_runs():
    runs, lengths = encode_masks(torch.zeros(0, 3, 4, dtype=torch.bool))
    assert (len(runs), len(lengths)) == (0, 0)
    assert decode_masks(runs, lengths, (3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("runs", "lengths"), [([2, 3], [2]), ([6, 6], [2]), ([7, -1], [2]), ([2, 4, 6], [2]), ([6], [1, 0])], ids=str
)
def test_runs_that_do_not_fill_the_masks_are_refused(runs, lengths):
    with pytest.raises(ValueError, match=r"must fill \d masks of 2 x 3 pixels"):
        decode_masks(torch.tensor(runs), torch.tensor(lengths), (2, 3))
