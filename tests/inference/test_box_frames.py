"""A user's box and the box of training name the same pixels of the network's input."""

import numpy as np
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.geometry import make_frame, masks_to_input
from medsam_tune.inference.predictor import Predictor
from medsam_tune.masks import ObjectMasks
from medsam_tune.prompts.box import BoxPrompt
from medsam_tune.prompts.sampling import tight_boxes
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter


def test_users_box_is_the_box_of_training(monkeypatch):
    # Rows and columns 12 to 22 of 64 pixels, at an input side of 256: four times 12, and the last of the four for 22.
    backbone = SamBackbone("random_tiny", side=256)
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 12:23, 12:23] = True
    moved = masks_to_input(ObjectMasks.of(masks), make_frame((64, 64), backbone.input_rule), 256)
    received = []
    embed = backbone.embed_prompts

    def record(*args, **prompts):
        received.append(prompts["boxes"])
        return embed(*args, **prompts)

    monkeypatch.setattr(backbone, "embed_prompts", record)
    Predictor(SamSegmenter(SamParts(backbone, BoxPrompt("tight")))).segment(np.zeros((64, 64), np.uint8), box=(12, 12, 22, 22))
    assert received[0].tolist() == tight_boxes(moved, torch.zeros(1, 4)).tolist() == [[48, 48, 91, 91]]
