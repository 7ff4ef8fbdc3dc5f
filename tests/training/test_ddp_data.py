"""Two gloo processes on shards, on views that are drawn anew, and on cached prefixes train as one process does."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from medsam_tune.cli import main
from medsam_tune.data.dataset import SegmentationDataset
from medsam_tune.data.view_refresh import shown_view
from medsam_tune.precompute import entries
from tests.training.test_global_batch import DECODER, EIGHT, SGD
from tests.training.test_prefix_run import LATE
from tests.training.test_shards import SOURCE
from tests.training.tiny_runs import forget_run, only_run, weights_of, write_workplace
from tests.training.two_processes import TWO, start

pytestmark = pytest.mark.slow

EPOCHS, TRAINED = 4, 8
REFRESH = {"n_views": 2, "share": 0.5}
SHARDED = DECODER.replace(SOURCE, "{class_path: medsam_tune.data.ImageShards}").replace("root: images", "root: shards")
PREFIX = SHARDED.split("  backbone:")[0] + LATE + SHARDED[SHARDED.index("data:") :]
WORDS = (
    "--run.baselines=false",
    "--run.report=false",
    "--data.split.file=eight.json",
    "--data.batch_size=1",
    "--data.global_batch=4",
    "--data.augmentation.horizontal_flip=0.5",
    "--data.augmentation.degrees=20",
    "--data.views=2",
    *SGD,
)
DRAWN_ANEW = ("run", "shards.yaml", *WORDS, f"--data.views_refresh={REFRESH['share']}", f"--trainer.max_epochs={EPOCHS}")
# What dropout leaves out depends on the process.
CACHED = ("run", "prefix.yaml", *WORDS, "--data.cache_embeddings=prefix", "--model.tuner.dropout=0")


def note_draws(name):
    """Write ``NAME-RANK.json`` at the end: epoch, image and view of every training item that this process has read."""
    usual, drawn = SegmentationDataset.__getitem__, []

    def read(self, draw):
        item = usual(self, draw)
        if self.settings.training:
            drawn.append((item.epoch, item.sample.image_id, item.sample.view))
        return item

    def end():
        SegmentationDataset.__getitem__ = usual
        Path(f"{name}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(drawn))

    SegmentationDataset.__getitem__ = read
    return end


def cache_of(name):
    return f"--data.cache_folder={Path.cwd() / name}"


def run_alone(name, words):
    """Run a command in this process and note what it reads."""
    end = note_draws(name)
    try:
        assert main([*words, cache_of(f"cache-{name}"), f"--run.folder={name}"]) == 0
    finally:
        end()
        forget_run()


def run_in_two(name, words, *more):
    """Run a command in two processes with a cache of their own and note what each reads."""
    start(*words, *TWO, *more, cache_of(f"cache-{name}"), f"--run.folder={name}", before=partial(note_draws, name))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with shards of seven images, and runs on them of two recipes, in one process and in two."""
    folder = tmp_path_factory.mktemp("two")
    write_workplace(folder)
    for name, content in {"shards.yaml": SHARDED, "prefix.yaml": PREFIX, "eight.json": json.dumps(EIGHT)}.items():
        (folder / name).write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSAM_TUNE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["prepare", "images", "shards", "--format=images", "--case-pattern=^([^_]+)_", "--shards=7"]) == 0
        run_alone("anew-one", DRAWN_ANEW)
        run_in_two("anew-two", DRAWN_ANEW)
        run_alone("prefix-one", CACHED)
        run_in_two("prefix-two", CACHED)
        run_in_two("prefix-parts", CACHED, "--trainer.max_epochs=1")
        run_in_two("prefix-parts", CACHED, "--ckpt_path=last")
    return folder


def drawn(place, name, rank):
    return [tuple(draw) for draw in json.loads((place / f"{name}-{rank}.json").read_text())]


def last(place, name):
    return only_run(place / name).last_checkpoint


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-6


def test_two_processes_read_the_images_of_shards_once_together_and_end_with_the_weights_of_one(place):
    shares = [drawn(place, "anew-two", rank) for rank in (0, 1)]
    for epoch in range(EPOCHS):
        first, second = ({image for at, image, _ in share if at == epoch} for share in shares)
        assert len(first) == len(second) == TRAINED // 2
        assert first | second == {image for at, image, _ in drawn(place, "anew-one", 0) if at == epoch}
        assert len(first | second) == TRAINED
    assert len(list((place / "shards").glob("*.tar"))) == 3
    assert_close(weights_of(last(place, "anew-two")), weights_of(last(place, "anew-one")))


def test_two_processes_train_on_the_views_drawn_anew_that_one_trains_on(place):
    one = drawn(place, "anew-one", 0)
    assert sorted(one) == sorted(drawn(place, "anew-two", 0) + drawn(place, "anew-two", 1))
    assert all(view == shown_view(0, image, epoch, **REFRESH) for epoch, image, view in one)
    # Else this would be the cycle of views that stay.
    assert 0 < sum(view >= REFRESH["n_views"] for _, _, view in one) < TRAINED


def test_two_processes_share_the_prefixes_and_end_with_the_weights_of_one(place):
    one, two = ({(s.kind, s.images) for s in entries(place / f"cache-prefix-{name}")} for name in ("one", "two"))
    assert one == two
    assert {kind for kind, _ in two} == {"prefixes"}
    found = weights_of(last(place, "prefix-two"))
    assert any("blocks.1.mlp_adapter" in name for name in found)
    assert_close(found, weights_of(last(place, "prefix-one")))


def test_two_processes_on_prefixes_that_were_stopped_end_with_the_weights_of_those_that_were_not(place):
    expected, found = (weights_of(last(place, name)) for name in ("prefix-two", "prefix-parts"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert drawn(place, "prefix-parts", 1) == [draw for draw in drawn(place, "prefix-two", 1) if draw[0] == 1]
