"""A prompt encoder that reads what a label is called is one class in one file; no edit of the package."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medsam_tune.backbone import SamBackbone, WeightsIdentity
from medsam_tune.inference.predictor import Predictor
from medsam_tune.prompt_encoders import PromptEncoder
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import PromptEmbeddings
from tests.conformance.toy_runs import train_resume_and_reload

RECIPE = """\
# Every label is asked for by its name.
seed_everything: 0
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny}}
  prompt_encoder: {class_path: tests.conformance.test_toy_text_prompt.TextPromptEncoder, init_args: {width: 12}}
data:
  root: images
  source: {class_path: medsam_tune.data.ImageFolder, init_args: {labels: {bright disc: [1], grey square: [2]}}}
  target: per_label
  split: {val_fraction: 0.2, test_fraction: 0.2}
run: {baselines: false, report: false}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""


class FrozenLetters(nn.Module):
    """Stand for a text encoder that somebody trained: the sum of fixed vectors, one a letter and place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        values = torch.randn(128, width, generator=torch.Generator().manual_seed(3))
        self.table = nn.Embedding.from_pretrained(values, freeze=True)
        self.weights = WeightsIdentity("letters", hashlib.sha256(values.numpy().tobytes()).hexdigest())

    def forward(self, names: tuple[str, ...]) -> torch.Tensor:
        """Return (N, width)."""
        letters = [torch.tensor([ord(letter) % 128 for letter in name], device=self.table.weight.device) for name in names]
        return torch.stack([self.table(name).mean(dim=0) for name in letters])


class TextPromptEncoder(PromptEncoder):
    """Ask by the name of the label alone: one token, projected from a frozen text embedding.

    Args:
        width: Numbers of the text embedding.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.text = FrozenLetters(width)
        self.width = width

    def reads_names(self):
        return True

    def attach(self, backbone):
        self.project = nn.Linear(self.width, backbone.embed_dim)

    def forward(self, queries, inputs, embeddings, backbone):
        dense = backbone.no_mask_embedding().expand(queries.n_objects, -1, *embeddings.main.shape[-2:])
        return PromptEmbeddings(self.project(self.text(queries.names))[:, None], dense)


def write_images(root):
    """Ten images of 16 x 20 pixels with a disc (1) and a square (2)."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :20]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(10):
        labels = np.where((rows - 8) ** 2 + (columns - 5) ** 2 < 16, 1, 0)
        labels[4:12, 11 + number % 3 : 18] = 2
        pixels = random.integers(0, 60, labels.shape) + np.array([0, 150, 60])[labels]
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"i{number}.png")
        Image.fromarray(labels.astype(np.uint8)).save(root / "masks" / f"i{number}.png")


@pytest.mark.slow
def test_text_prompt_trains_resumes_exports_and_is_asked_by_name(toy_place):
    write_images(toy_place / "images")
    run, predictor = train_resume_and_reload(RECIPE)
    stored = json.loads((run.export / "export.json").read_text())
    assert stored["frozen"]["prompt_encoder.text"]["name"] == "letters"
    assert sorted(stored["parameters"]) == ["prompt_encoder.project.bias", "prompt_encoder.project.weight"]

    image = np.asarray(Image.open(toy_place / "images/images/i0.png"))
    predictor.set_image(image)
    both = predictor.predict_many(names=["bright disc", "grey square"], return_logits=True)[0]
    assert both.shape == (2, 1, 16, 20)
    assert not np.allclose(both[0], both[1])
    alone = predictor.predict(name="grey square", return_logits=True)[0]
    np.testing.assert_allclose(alone, both[1], rtol=0, atol=1e-5)


def test_name_is_wanted_where_it_is_read_and_refused_where_it_is_not():
    image = np.zeros((16, 20), np.uint8)
    reader = Predictor(SamSegmenter(SamParts(SamBackbone("random_tiny"), prompt_encoder=TextPromptEncoder())))
    reader.set_image(image)
    with pytest.raises(ValueError, match=r"takes a name for each of 1 objects; got \[\]"):
        reader.predict()
    plain = Predictor(SamBackbone("random_tiny"))
    plain.set_image(image)
    with pytest.raises(ValueError, match=r"takes no names: it reads none; got \['disc'\]"):
        plain.predict(name="disc")
