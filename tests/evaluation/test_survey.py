import pytest
import torch

from medsam_tune.data.base import VoxelSize
from medsam_tune.evaluation.survey import draw_histogram, spread, survey
from medsam_tune.samples import Sample


def sample(*pixels, size=(20, 30), labels=None):
    """An image whose objects show so many pixels."""
    masks = torch.zeros(len(pixels), *size, dtype=torch.bool)
    for mask, count in zip(masks, pixels, strict=True):
        mask.view(-1)[:count] = True
    return Sample(torch.zeros(3, *size), masks, torch.tensor(labels or [1] * len(pixels)), "a", "a")


def test_sizes_are_in_square_millimetres_where_every_file_states_a_spacing():
    items = [(sample(10, 30), VoxelSize(0.5, 2.0, 3.0)), (sample(20, labels=[2]), VoxelSize(0.5, 0.5))]
    found = survey(items, {1: "left", 2: "right", 3: "never"})
    assert (found.size_unit, list(found.sizes)) == ("mm2", [10.0, 30.0, 5.0])
    assert found.labels == [("left", 1, 2, "20"), ("right", 1, 1, "5"), ("never", 0, 0, "\N{EN DASH}")]
    assert found.facts["pixel spacing"] == "0.5 x 0.5 mm (50 %), 2 x 0.5 mm, slices 3 mm apart (50 %)"


def test_one_file_without_a_spacing_makes_all_sizes_pixels():
    found = survey([(sample(10), VoxelSize(0.5, 0.5)), (sample(20), None)], {1: "object"})
    assert (found.size_unit, list(found.sizes)) == ("px", [10.0, 20.0])
    assert found.labels == [("object", 2, 2, "15")]


def test_image_sizes_and_objects_an_image_are_counted():
    items = [(sample(10, 0), None), (sample(5, 5, 5), None), (sample(0, size=(8, 9)), None)]
    found = survey(items, {1: "object"})
    assert found.n_images == 3
    assert found.facts["image sizes (width x height)"] == "30 x 20 px (67 %), 9 x 8 px (33 %)"
    assert found.facts["objects an image"] == "median 1, 0 to 3; 1 of 3 images show none"
    assert found.facts["pixel spacing"] == "not stated"


def test_nothing_but_empty_masks_has_no_histogram():
    found = survey([(sample(0), None)], {1: "object"})
    assert draw_histogram(found.sizes, found.size_unit) is None
    assert found.size_unit == "px"


@pytest.mark.parametrize("sizes", [[5.0], [3.0, 3.0], [1.0, 10.0, 10_000.0]])
def test_histogram_counts_every_object(sizes, monkeypatch):
    from matplotlib.axes import Axes

    counts, hist = [], Axes.hist
    monkeypatch.setattr(Axes, "hist", lambda self, *a, **k: counts.append(hist(self, *a, **k)) or counts[-1])
    assert draw_histogram(sizes, "px").startswith(b"\x89PNG")
    assert counts[0][0].sum() == len(sizes)


def test_places_are_spread_over_the_whole():
    assert spread(0, 4) == []
    assert (spread(1000, 3), spread(3, 10)) == ([0, 500, 999], [0, 1, 2])
