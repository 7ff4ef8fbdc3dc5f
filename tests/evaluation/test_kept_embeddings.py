from dataclasses import replace

import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.evaluation.baselines import evaluate_segmenters
from medsam_tune.evaluation.kept_embeddings import KeptEmbeddings
from medsam_tune.prompts import BoxPrompt
from medsam_tune.samples import Tile
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from tests.factories import make_batch


def _counted(monkeypatch):
    """Return a segmenter and a list that gets the number of images of each encoder pass."""
    segmenter, passes = SamSegmenter(SamParts(SamBackbone("random_tiny"), BoxPrompt())), []
    run_encoder = segmenter.backbone.run_encoder

    def counting(inputs):
        passes.append(len(inputs.images))
        return run_encoder(inputs)

    monkeypatch.setattr(segmenter.backbone, "run_encoder", counting)
    return segmenter, passes


def _batches():
    """Two batches of two images of one source."""
    return [replace(make_batch(seed=number), sample_index=torch.tensor([2 * number, 2 * number + 1])) for number in range(2)]


def _scores(kept, segmenter, batches, network="tuned"):
    return evaluate_segmenters({"it": segmenter}, kept.encoded(network, segmenter, batches))["it"].dice.tolist()


def test_every_batch_is_encoded_once_a_network_and_the_scores_are_those_of_fresh_passes(monkeypatch):
    segmenter, passes = _counted(monkeypatch)
    batches = _batches()
    expected = evaluate_segmenters({"it": segmenter}, batches)["it"].dice.tolist()
    encoded, kept = len(passes), KeptEmbeddings()
    assert encoded == 2
    assert _scores(kept, segmenter, batches) == _scores(kept, segmenter, batches) == expected
    assert len(passes) == encoded + 2
    _scores(kept, segmenter, batches, "untuned")
    assert len(passes) == encoded + 4


def test_an_image_is_known_again_in_another_batch(monkeypatch):
    segmenter, passes = _counted(monkeypatch)
    kept, batches = KeptEmbeddings(), _batches()
    together = [batch.image_embeddings for batch in kept.encoded("tuned", segmenter, batches)]
    alone = [batch.part(row, row + 1) for batch in batches for row in range(2)]
    found = [batch.image_embeddings for batch in kept.encoded("tuned", segmenter, reversed(alone))]
    assert torch.equal(torch.cat(found[::-1]), torch.cat(together))
    assert (kept.n_encoded, passes) == (4, [2, 2])
    _scores(kept, segmenter, [replace(batches[0], sample_index=torch.tensor([0, 9]))])
    assert kept.n_encoded == 6


def test_tiles_of_an_image_are_told_apart(monkeypatch):
    segmenter, passes = _counted(monkeypatch)
    tiles = tuple(Tile(0, left, (40, 64), 3, "image", (40, 128)) for left in (0, 64))
    batch = replace(make_batch(sizes=((40, 64), (40, 64))), sample_index=torch.tensor([3, 3]), tiles=tiles, at_once=1)
    kept = KeptEmbeddings()
    first, again = (next(kept.encoded("tuned", segmenter, [batch])).image_embeddings for _ in range(2))
    assert passes == [1, 1]
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_what_does_not_fit_is_encoded_again(monkeypatch):
    segmenter, passes = _counted(monkeypatch)
    batches = _batches()
    one = segmenter.embedded(batches[0]).image_embeddings.nbytes
    passes.clear()
    kept = KeptEmbeddings(most_bytes=one)
    assert _scores(kept, segmenter, batches) == _scores(kept, segmenter, batches)
    assert len(passes) == 3


def test_an_embedding_from_the_cache_is_taken_as_it_is(monkeypatch):
    segmenter, passes = _counted(monkeypatch)
    batch = segmenter.embedded(make_batch())
    passes.clear()
    (given,) = KeptEmbeddings().encoded("tuned", segmenter, [batch])
    assert passes == []
    assert torch.equal(given.image_embeddings, batch.image_embeddings)
