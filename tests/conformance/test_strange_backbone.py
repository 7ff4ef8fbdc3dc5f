"""A backbone with names, row orders and token orders of its own is tuned by the package's tuners with no edit of the package.

It stands for every network to come: its tokens are a list, not a grid; its fused projection has v first and q last; its
decoder's IoU token comes after the mask token. What tuners need to know of this stands in ``anatomy`` below, and nowhere else.
"""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsam_tune.backbone import Backbone, WeightsIdentity
from medsam_tune.backbone.anatomy import Anatomy, Block, DecoderAnatomy, EncoderAnatomy
from medsam_tune.backbone.freezing import freeze, set_train_modes, set_trainable
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import InputRule, normalise
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tuners import (
    AdaptFormer,
    BiasTuning,
    BottleneckAdapter,
    FactorTuning,
    FullTuning,
    PartTuning,
    PeftTuner,
    SamedTuner,
    ScaleShiftTuning,
)
from medsam_tune.types import ImageEmbeddings, MaskPrediction, PromptEmbeddings
from tests.conformance.toy_runs import train_resume_and_reload
from tests.factories import make_batch
from tests.training.tiny_runs import write_images

SIDE, GRID, WIDTH = 64, 4, 16


class Mixer(nn.Module):
    """Attention over a list of tokens (B, L, C)."""

    def __init__(self):
        super().__init__()
        self.vkq = nn.Linear(WIDTH, 3 * WIDTH)
        self.back = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        v, k, q = self.vkq(tokens).chunk(3, dim=-1)
        return self.back(F.scaled_dot_product_attention(q, k, v))


class Step(nn.Module):
    """A block with places of its own, so that nothing has to stand in for it."""

    def __init__(self):
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mixer = Mixer()
        self.thinker = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.attention_adapter = None
        self.mlp_adapter = None

    def forward(self, tokens):
        mixed = self.mixer(self.before(tokens))
        stream = tokens + (mixed if self.attention_adapter is None else self.attention_adapter(mixed))
        normed = self.between(stream)
        thought = stream + self.thinker(normed)
        return thought if self.mlp_adapter is None else thought + self.mlp_adapter(stream, normed)


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.cut = nn.Conv2d(3, WIDTH, SIDE // GRID, stride=SIDE // GRID)
        self.steps = nn.ModuleList(Step() for _ in range(3))

    def forward(self, images):
        tokens = self.cut(images).flatten(2).transpose(1, 2)
        for step in self.steps:
            tokens = step(tokens)
        return tokens.transpose(1, 2).unflatten(2, (GRID, GRID))


class Reader(nn.Module):
    """Decode by one attention of [mask token, IoU token, prompt] to the image."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(2, WIDTH))
        self.asks, self.tells, self.holds = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, maps, sparse):
        tokens = torch.cat([self.own.expand(len(sparse), -1, -1), sparse], dim=1)
        image = maps.flatten(2).transpose(1, 2)
        tokens = tokens + F.scaled_dot_product_attention(self.asks(tokens), self.tells(image), self.holds(image))
        # The prompt reaches the mask through the sum of all tokens.
        filters = tokens[:, :1] + tokens[:, 2:].sum(dim=1, keepdim=True)
        masks = (filters @ image.transpose(1, 2)).unflatten(2, (GRID, GRID))
        return F.interpolate(masks, scale_factor=4), self.score(tokens[:, 1])


class Strange(Backbone):
    """A promptable network that shares no attribute name with SAM but for its three parts."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.image_encoder, self.mask_decoder = Trunk(), Reader()
            self.prompt_encoder = nn.Linear(4, WIDTH)
        self.input_rule = InputRule(SIDE, grid=GRID)
        self.embedding_size, self.embed_dim = GRID, WIDTH
        self.weights = WeightsIdentity("strange", "0" * 64)
        freeze(self)

    def parts(self):
        return {name: getattr(self, name) for name in ("image_encoder", "prompt_encoder", "mask_decoder")}

    def train(self, mode=True):
        set_train_modes(self, mode)
        return self

    def anatomy(self):
        blocks = tuple(self._block(f"image_encoder.steps.{i}", step) for i, step in enumerate(self.image_encoder.steps))
        v, k, q = torch.arange(3 * WIDTH).view(3, -1)
        encoder = EncoderAnatomy(
            blocks=blocks,
            parts={"image_encoder.patch_embed": ("image_encoder.cut",)},
            projections={block.layers["attention.qkv"][0]: {"q": q, "k": k, "v": v} for block in blocks},
            grid_layers=frozenset(),
            patch_embed="image_encoder.cut",
            patch_stride=SIDE // GRID,
        )
        attention = tuple(f"mask_decoder.{name}" for name in ("asks", "tells", "holds"))
        decoder = DecoderAnatomy(
            blocks=(Block("mask_decoder", self.mask_decoder, WIDTH, {"attention": attention}),),
            parts={"mask_decoder.attention": attention},
            idle={output: ("mask_decoder.score",) for output in ("single_mask", "multimask")},
            without_effect=frozenset({"mask_decoder.tells.bias"}),
        )
        return Anatomy(encoder, decoder)

    def _block(self, name, step):
        mixer, thinker = (f"{name}.mixer.vkq", f"{name}.mixer.back"), (f"{name}.thinker.0", f"{name}.thinker.2")
        return Block(
            name,
            step,
            WIDTH,
            {"attention": mixer, "attention.qkv": mixer[:1], "attention.proj": mixer[1:], "mlp": thinker},
            attention=step.mixer,
            mlp=step.thinker,
            norms=(step.before, step.between),
            places=("attention_adapter", "mlp_adapter"),
        )

    def fresh(self):
        return Strange()

    def run_encoder(self, inputs):
        return ImageEmbeddings(self.image_encoder(normalise(inputs.images, inputs.frames, self.input_rule)))

    def image_pe(self):
        return torch.zeros(1, WIDTH, GRID, GRID)

    def no_mask_embedding(self):
        return torch.zeros(1, WIDTH, 1, 1)

    def embed_prompts(self, n_objects, *, points=None, boxes=None, mask_inputs=None):
        dense = self.no_mask_embedding().expand(n_objects, -1, GRID, GRID)
        return PromptEmbeddings(self.prompt_encoder(boxes / SIDE)[:, None], dense)

    def decode(self, embeddings, image_index, prompts, *, multimask_output=False):
        masks, ious = self.mask_decoder(embeddings.main[image_index] + prompts.dense_embeddings, prompts.sparse_embeddings)
        return MaskPrediction(masks, ious)


TUNERS = {
    "LoRA": lambda: PeftTuner(peft.LoraConfig(r=4), ["image_encoder.attention", "image_encoder.mlp", "mask_decoder.attention"]),
    "LoRA in a late block": lambda: PeftTuner(peft.LoraConfig(r=4), ["image_encoder.attention.qkv"], blocks=(2, 2)),
    "OFT": lambda: PeftTuner(peft.OFTConfig(r=0, oft_block_size=4), ["image_encoder.attention.proj"]),
    "SAMed": lambda: SamedTuner(2),
    "FacT": lambda: FactorTuning(4, dropout=0.0),
    "bottlenecks": lambda: BottleneckAdapter(rank=4, decoder="none", train_mask_decoder=True),
    "AdaptFormer": lambda: AdaptFormer(4, dropout=0.0),
    "SSF": lambda: ScaleShiftTuning(("image_encoder.attention", "image_encoder.mlp")),
    "biases": lambda: BiasTuning(("image_encoder", "mask_decoder")),
    "a part": lambda: PartTuning(("image_encoder.patch_embed",)),
    "all": FullTuning,
}


def logits_of(backbone, tuner=None):
    segmenter = SamSegmenter(SamParts(backbone, BoxPrompt(), tuner=tuner))
    return segmenter, segmenter(make_batch(objects=(2, 1))).low_res_masks


@pytest.mark.parametrize("name", TUNERS)
def test_every_kind_of_tuner_starts_as_the_untouched_network_and_learns(name):
    _, expected = logits_of(Strange())
    segmenter, logits = logits_of(Strange(), TUNERS[name]())
    torch.testing.assert_close(logits, expected)
    optimizer = torch.optim.SGD([p for p in segmenter.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        segmenter(make_batch(objects=(2, 1))).low_res_masks.square().mean().backward()
        assert all(p.grad is not None for p in segmenter.parameters() if p.requires_grad)
        optimizer.step()
    moved = segmenter(make_batch(objects=(2, 1))).low_res_masks
    assert not torch.allclose(moved, expected)


def test_samed_updates_the_rows_of_q_and_v_where_this_network_has_them():
    backbone = Strange()
    tuner = SamedTuner(2)
    segmenter, logits = logits_of(backbone, tuner)
    logits.square().mean().backward()
    torch.optim.SGD([p for p in segmenter.parameters() if p.requires_grad], lr=1.0).step()
    before = Strange().image_encoder.steps[0].mixer.vkq.weight
    tuner.merge()
    v, k, q = (backbone.image_encoder.steps[0].mixer.vkq.weight - before).detach().chunk(3)
    assert v.abs().max() > 0
    assert q.abs().max() > 0
    assert not k.any()


def test_a_whole_decoder_leaves_out_what_the_mask_never_reaches():
    backbone = Strange()
    set_trainable(backbone, ["mask_decoder"])
    assert not backbone.mask_decoder.score.weight.requires_grad
    assert backbone.mask_decoder.own.requires_grad


def test_biases_without_effect_stay_frozen():
    backbone = Strange()
    BiasTuning(("mask_decoder",)).attach(backbone)
    assert backbone.mask_decoder.asks.bias.requires_grad
    assert not backbone.mask_decoder.tells.bias.requires_grad


def test_what_it_has_not_is_refused_by_name():
    with pytest.raises(RecipeError, match=r"'image_encoder\.neck' is unknown\. Known parts: image_encoder\.attention, "):
        PartTuning(("image_encoder.neck",)).attach(Strange())
    with pytest.raises(RecipeError, match=r"Strange has no places for adapters in mask_decoder\. Choose a tuner of layers"):
        BottleneckAdapter(rank=4, decoder="adapters").attach(Strange())


RECIPE = """\
# LoRA on a network that the package does not know.
seed_everything: 0
model:
  backbone: {class_path: tests.conformance.test_strange_backbone.Strange}
  tuner:
    class_path: medsam_tune.tuners.PeftTuner
    init_args:
      config: {class_path: peft.LoraConfig, init_args: {r: 2}}
      parts: [image_encoder.attention, mask_decoder.attention]
  prompts: {class_path: medsam_tune.prompts.BoxPrompt}
data:
  root: images
  source: {class_path: medsam_tune.data.ImageFolder}
  patient: '^([^_]+)_'
  batch_size: 2
  cache_embeddings: false
  split: {val_fraction: 0.15, test_fraction: 0.4}
run: {baselines: false}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""


@pytest.mark.slow
def test_a_recipe_trains_resumes_exports_and_reloads_it(toy_place):
    write_images(toy_place / "images")
    _, predictor = train_resume_and_reload(RECIPE)
    backbone = predictor.segmenter.backbone
    assert isinstance(backbone, Strange)
    learned = [name for name, p in backbone.named_parameters() if "lora_B" in name and p.any()]
    assert len(learned) == 3 * 2 + 3
    assert predictor.segment(np.zeros((16, 20), np.uint8), box=(4, 3, 12, 11)).shape == (16, 20)
