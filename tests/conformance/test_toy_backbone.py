"""A network with a finer map and another order of tokens is one class in one file; no edit of the package.

Its decoder reads two maps, as that of SAM 2 does, and its mask tokens come before the IoU token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsam_tune.backbone import Backbone, WeightsIdentity
from medsam_tune.backbone.anatomy import Anatomy, Block, DecoderAnatomy, EncoderAnatomy
from medsam_tune.backbone.freezing import freeze, set_train_modes, set_trainable
from medsam_tune.cli import main
from medsam_tune.geometry import InputRule, normalise
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tuners import BottleneckAdapter, PeftTuner
from medsam_tune.types import ImageEmbeddings, MaskPrediction, PromptEmbeddings
from tests.conformance.toy_runs import train_resume_and_reload
from tests.factories import make_batch
from tests.training.tiny_runs import write_images

RECIPE = """\
# LoRA in the decoder of a network with two maps, both of which are kept in the cache.
seed_everything: 0
model:
  backbone: {class_path: tests.conformance.test_toy_backbone.TwoMaps}
  tuner:
    class_path: medsam_tune.tuners.PeftTuner
    init_args: {config: {class_path: peft.LoraConfig, init_args: {r: 2}}, parts: [mask_decoder.attention]}
  prompts: {class_path: medsam_tune.prompts.BoxPrompt}
data:
  root: images
  source: {class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}
  cache_embeddings: true
  split: {val_fraction: 0.15, test_fraction: 0.4}
run: {report: false}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
"""
SIDE, GRID, WIDTH, FINE = 64, 4, 16, 8


class Look(nn.Module):
    """Attention over a list of tokens (B, L, C); k comes first, then q and v."""

    def __init__(self):
        super().__init__()
        self.kqv, self.join = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        k, q, v = self.kqv(tokens).chunk(3, dim=-1)
        return self.join(F.scaled_dot_product_attention(q, k, v))


class Layer(nn.Module):
    """Attention and MLP, with places for adapters."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.look = Look()
        self.think = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.attention_adapter = None
        self.mlp_adapter = None

    def forward(self, tokens):
        seen = self.look(self.first(tokens))
        stream = tokens + (seen if self.attention_adapter is None else self.attention_adapter(seen))
        normed = self.second(stream)
        result = stream + self.think(normed)
        return result if self.mlp_adapter is None else result + self.mlp_adapter(stream, normed)


class Eye(nn.Module):
    """Return a fine map (B, 8, 16, 16) and the main one (B, 16, 4, 4)."""

    def __init__(self):
        super().__init__()
        self.cut, self.fold = nn.Conv2d(3, FINE, 4, stride=4), nn.Conv2d(FINE, WIDTH, 4, stride=4)
        self.stack = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, images):
        fine = self.cut(images)
        tokens = self.fold(F.gelu(fine)).flatten(2).transpose(1, 2)
        for layer in self.stack:
            tokens = layer(tokens)
        return tokens.transpose(1, 2).unflatten(2, (GRID, GRID)), fine


class Painter(nn.Module):
    """Let [4 mask tokens, IoU token, prompts] look at the main map; the filters of the masks read the fine one too."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(5, WIDTH))
        self.wants, self.offers, self.gives = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.sharpen = nn.Conv2d(FINE, WIDTH, 1)
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, coarse, fine, sparse):
        tokens = torch.cat([self.own.expand(len(sparse), -1, -1), sparse], dim=1)
        cells = coarse.flatten(2).transpose(1, 2)
        tokens = tokens + F.scaled_dot_product_attention(self.wants(tokens), self.offers(cells), self.gives(cells))
        pixels = F.interpolate(coarse, scale_factor=4) + self.sharpen(fine)
        filters = tokens[:, :4] + tokens[:, 5:].sum(dim=1, keepdim=True)
        return torch.einsum("nmc,nchw->nmhw", filters, pixels), self.score(tokens[:, :4]).squeeze(-1)


class TwoMaps(Backbone):
    """A promptable network with a main and a finer map.

    Args:
        trainable: What of it learns.
    """

    fine_shapes = ((FINE, 4 * GRID, 4 * GRID),)

    def __init__(self, trainable: Sequence[str] = ()) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            self.image_encoder, self.mask_decoder = Eye(), Painter()
            self.prompt_encoder = nn.ModuleDict({"box": nn.Linear(4, WIDTH), "point": nn.Embedding(2, WIDTH)})
        self.input_rule = InputRule(SIDE, grid=GRID)
        self.embedding_size, self.embed_dim = GRID, WIDTH
        self.weights = WeightsIdentity("two_maps", "2" * 64)
        freeze(self)
        set_trainable(self, trainable)

    def parts(self):
        return {name: getattr(self, name) for name in ("image_encoder", "prompt_encoder", "mask_decoder")}

    def train(self, mode=True):
        set_train_modes(self, mode)
        return self

    def anatomy(self):
        stack = [(f"image_encoder.stack.{i}", layer) for i, layer in enumerate(self.image_encoder.stack)]
        k, q, v = torch.arange(3 * WIDTH).view(3, -1)
        encoder = EncoderAnatomy(
            blocks=tuple(self._block(name, layer) for name, layer in stack),
            parts={"image_encoder.patch_embed": ("image_encoder.cut",)},
            projections={f"{name}.look.kqv": {"q": q, "k": k, "v": v} for name, _ in stack},
            grid_layers=frozenset(),
            patch_embed="image_encoder.cut",
            patch_stride=4,
        )
        attention = tuple(f"mask_decoder.{name}" for name in ("wants", "offers", "gives"))
        decoder = DecoderAnatomy(
            blocks=(Block("mask_decoder", self.mask_decoder, WIDTH, {"attention": attention}),),
            parts={"mask_decoder.attention": attention},
            idle={output: ("mask_decoder.score",) for output in ("single_mask", "multimask")},
            without_effect=frozenset({"mask_decoder.offers.bias"}),
        )
        return Anatomy(encoder, decoder)

    def _block(self, name, layer):
        attention, mlp = (f"{name}.look.kqv", f"{name}.look.join"), (f"{name}.think.0", f"{name}.think.2")
        return Block(
            name,
            layer,
            WIDTH,
            {"attention": attention, "attention.qkv": attention[:1], "attention.proj": attention[1:], "mlp": mlp},
            attention=layer.look,
            mlp=layer.think,
            norms=(layer.first, layer.second),
            places=("attention_adapter", "mlp_adapter"),
        )

    def fresh(self):
        return TwoMaps()

    def run_encoder(self, inputs):
        images = normalise(inputs.images, inputs.frames, self.input_rule)
        whole, fine = self.image_encoder(images if inputs.fuse is None else inputs.fuse(images))
        return ImageEmbeddings(whole, (fine,))

    def image_pe(self):
        return torch.zeros(1, WIDTH, GRID, GRID)

    def no_mask_embedding(self):
        return torch.zeros(1, WIDTH, 1, 1)

    def embed_prompts(self, n_objects, *, points=None, boxes=None, mask_inputs=None):
        tokens = [torch.zeros(n_objects, 0, WIDTH)]
        if boxes is not None:
            tokens.append(self.prompt_encoder["box"](boxes / SIDE)[:, None])
        if points is not None:
            kinds = self.prompt_encoder["point"](points[1].clamp(min=0).long())
            tokens.append(kinds * points[0].mean(dim=-1, keepdim=True) / SIDE)
        dense = self.no_mask_embedding().expand(n_objects, -1, GRID, GRID)
        if mask_inputs is not None:
            dense = dense + F.adaptive_avg_pool2d(mask_inputs, GRID)
        return PromptEmbeddings(torch.cat(tokens, dim=1), dense)

    def decode(self, embeddings, image_index, prompts, *, multimask_output=False):
        (fine,) = embeddings.fine
        coarse = embeddings.main[image_index] + prompts.dense_embeddings
        masks, ious = self.mask_decoder(coarse, fine[image_index], prompts.sparse_embeddings)
        wanted = slice(1, 4) if multimask_output else slice(0, 1)
        return MaskPrediction(masks[:, wanted], ious[:, wanted])


def segmenter_of(tuner=None):
    return SamSegmenter(SamParts(TwoMaps(), BoxPrompt(), tuner=tuner))


def test_masks_from_kept_embeddings_are_those_of_the_images_and_read_the_finer_map():
    segmenter, batch = segmenter_of(), make_batch(objects=(2, 1))
    expected = segmenter(batch).low_res_masks
    kept = segmenter.encode(batch.images, batch.frames)
    assert kept.shape == (2, WIDTH * GRID**2 + FINE * (4 * GRID) ** 2)
    torch.testing.assert_close(segmenter(replace(batch, image_embeddings=kept)).low_res_masks, expected, rtol=0, atol=0)
    main_alone = kept.clone()
    main_alone[:, WIDTH * GRID**2 :] = 0
    blurred = segmenter(replace(batch, image_embeddings=main_alone)).low_res_masks
    assert (blurred - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: PeftTuner(peft.LoraConfig(r=2), ["image_encoder.attention.qkv"]),
        lambda: BottleneckAdapter(rank=4, decoder="none"),
    ],
    ids=["LoRA", "bottlenecks"],
)
def test_encoder_takes_what_is_inserted_by_its_anatomy(make):
    batch = make_batch()
    expected = segmenter_of()(batch).low_res_masks
    segmenter = segmenter_of(make())
    torch.testing.assert_close(segmenter(batch).low_res_masks, expected)
    assert segmenter.not_precomputable() is not None
    optimizer = torch.optim.SGD([p for p in segmenter.parameters() if p.requires_grad], lr=0.1)
    segmenter(batch).low_res_masks.square().mean().backward()
    assert all(p.grad is not None for p in segmenter.parameters() if p.requires_grad)
    optimizer.step()
    assert not torch.allclose(segmenter(batch).low_res_masks, expected)


@pytest.mark.slow
def test_backbone_trains_resumes_exports_and_reloads_with_both_maps_cached(toy_place, capsys):
    write_images(toy_place / "images")
    run, predictor = train_resume_and_reload(RECIPE)
    assert (run.export / "adapter_config.json").is_file()
    assert main(["cache", "list"]) == 0
    assert "two_maps" in capsys.readouterr().out
    predictor.set_image(np.zeros((30, 40), np.uint8))
    masks, ious, logits = predictor.predict(box=(3, 4, 20, 25))
    assert masks.shape == (1, 30, 40)
    assert ious.shape == (1,)
    assert logits.shape == (1, 4 * GRID, 4 * GRID)
