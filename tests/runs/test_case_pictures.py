"""What the slices of a report show: prompts stand where they were given."""

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.data.chunks import ChunkDataset, collate_chunks
from medsam_tune.prompts import BoxPrompt, PointPrompt
from medsam_tune.runs.case_pictures import given_prompts
from medsam_tune.runs.run import Run
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from tests.training.tiny_runs import build, write_full_recipe


def edges(mask):
    """(x1, y1, x2, y2) round a mask (H, W), the edges of its outermost pixels."""
    rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
    return [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]


def whole_mask(batch, row):
    """The true mask of a row at its place in its image."""
    if not batch.tiles:
        return batch.original_masks[row][0]
    mask = torch.zeros(batch.tiles[row].image_size, dtype=torch.bool)
    mask[batch.tiles[row].area] = batch.original_masks[row][0]
    return mask


@pytest.mark.parametrize("words", [(), ("--data.tiles.size=12", "--data.tiles.overlap=4")], ids=["whole", "tiles"])
def test_boxes_and_points_stand_where_the_object_is_in_the_whole_image(workplace, words):
    data = build(f"--run.folder={workplace}/runs", *words).datamodule
    items = ChunkDataset(data.dataset("test"), data.chunks("test"))
    batch = collate_chunks([items[0]])
    shown = [row for row in range(batch.n_images) if len(batch.original_masks[row])]
    assert bool(batch.tiles) is bool(words)
    assert shown
    for prompts in (BoxPrompt(), PointPrompt()):
        marks = given_prompts(SamSegmenter(SamParts(SamBackbone("random_tiny"), prompts)), batch)
        for row in shown:
            mask = whole_mask(batch, row)
            for box in marks[row].boxes:
                assert box == pytest.approx(edges(mask), abs=0.6)
            for x, y, label in marks[row].points:
                assert mask[int(y), int(x)].item() is bool(label)
            assert len(marks[row].boxes) + len(marks[row].points) == 1


def test_a_report_encodes_no_image_that_was_scored_beside_the_test(workplace, monkeypatch):
    write_full_recipe(workplace)
    run = Run.from_recipe("tiny.yaml", {"run.folder": "runs"}).fit().test().export()
    passes, run_encoder = [], SamBackbone.run_encoder

    def counting(backbone, inputs):
        passes.append(backbone)
        return run_encoder(backbone, inputs)

    monkeypatch.setattr(SamBackbone, "run_encoder", counting)
    page = run.report()
    assert page is not None
    assert "untuned, asked alike" in page.read_text()
    assert passes == []
    # Opened again, nothing is kept: the pictures of a comparison encode.
    Run.open(run.folder).draw_cases(run.splits.test[:1])
    assert len(passes) == 2
