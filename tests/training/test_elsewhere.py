"""What holds on other machines: workers that are started anew, names with blanks and umlauts, a system without a locale."""

import csv
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medsam_tune.precompute import open_store
from medsam_tune.precompute.fill import fill, lookup
from medsam_tune.training.precompute_stage import embedding_precompute
from tests.training.tiny_runs import build, only_run


@pytest.mark.parametrize("settings", [(), ("--data.views=2", "--data.augmentation.horizontal_flip=0.5")])
def test_what_a_worker_is_given_can_be_sent_to_a_new_process(workplace, settings):
    # macOS, Windows and Python 3.14 start workers without a copy of the parent's memory.
    cli = build(*settings)
    data, items = cli.datamodule, cli.datamodule.cache_items(("train",))
    precompute = embedding_precompute(cli.model.segmenter, data, device=torch.device("cpu"))
    store = open_store(precompute, Path("cache"))
    data.use_embeddings(lookup(store, precompute, fill(store, precompute, items).keys))
    loader = data.train_dataloader()
    dataset, collate, sampler = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.sampler)))
    assert list(sampler) == list(loader.sampler)
    for draw in list(sampler)[:3]:
        sent, kept = collate([dataset[draw]]), loader.collate_fn([loader.dataset[draw]])
        assert sent.image_ids == kept.image_ids
        for name in ("images", "masks", "image_embeddings"):
            assert torch.equal(getattr(sent, name), getattr(kept, name))


NOISE = ("v_num", "TPU", "GPU available", "Seed set", "Restor", "Loaded model", "You are using", "Tip", "litlogger", "`Trainer")


def test_names_with_blanks_and_umlauts_survive_a_run_without_a_locale_that_makes_no_noise_where_nobody_watches(workplace):
    folder = workplace / "my data" / "jeux de données"
    (workplace / "images").rename(workplace / "moved")
    folder.parent.mkdir()
    (workplace / "moved").rename(folder)
    for path in [*folder.glob("images/*"), *folder.glob("masks/*")]:
        path.rename(path.with_name(path.name.replace("c", "Müller ü", 1)))
    words = [f"--data.root={folder.relative_to(workplace)}", "--trainer.enable_progress_bar=true"]
    environment = {**os.environ, "LC_ALL": "C", "LANG": "C"}
    command = [sys.executable, "-m", "medsam_tune", "run", "tiny.yaml", *words]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    said, errors = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    assert (done.returncode, errors) == (0, "")
    assert [word for word in NOISE if word in said] == []
    assert "\x1b" not in said
    rows = csv.DictReader(only_run().test_cases.read_text(encoding="utf-8").splitlines())
    assert {row["case"] for row in rows} < {f"Müller ü{case}" for case in range(8)}
    assert "Müller ü" in (only_run().report / "index.html").read_text(encoding="utf-8")
