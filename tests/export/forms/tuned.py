"""Tuned networks of every kind that is exported, tiny but for what a stock tool builds in one size alone."""

from __future__ import annotations

import copy

import torch

from medsam_tune.export import save_export
from medsam_tune.export.build import build_segmenter
from medsam_tune.export.forms import read_tuned

SAMED = {"class_path": "medsam_tune.tuners.SamedTuner", "init_args": {"rank": 2}}
LORA = {
    "class_path": "medsam_tune.tuners.PeftTuner",
    "init_args": {
        "config": {"class_path": "peft.LoraConfig", "init_args": {"r": 2}},
        "parts": ["image_encoder.attention.qkv"],
    },
}
BOTTLENECK = {"class_path": "medsam_tune.tuners.BottleneckAdapter", "init_args": {"rank": 2}}
GENERATOR = {"class_path": "medsam_tune.prompt_encoders.EmbeddingPromptGenerator", "init_args": {"width": 8}}
CLASSES = {"class_path": "medsam_tune.segmenters.SemanticSegmenter", "init_args": {"classes": ["wall", "lumen"]}}
UNET = {"class_path": "medsam_tune.segmenters.TaskSegmenter", "init_args": {"side": 64}}


def config_of(weights="random_tiny", *, tuner=None, trainable=("mask_decoder",), **parts):
    backbone = {"weights": weights, "trainable": list(trainable)}
    found = {"backbone": {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": backbone}, "tuner": tuner, **parts}
    return copy.deepcopy(found)


def exported(folder, config, *, moved=0.05):
    """A run's export folder of a network whose trained weights were moved far from where they began."""
    segmenter = build_segmenter(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in segmenter.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * moved)
    metrics = {"dice": {"mean": 0.5, "ci95": [0.4, 0.6]}, "n_cases": 7}
    save_export(folder / "export", segmenter=segmenter, model_config=config, metrics=metrics, data_description={"root": "x"})
    return read_tuned(folder)
