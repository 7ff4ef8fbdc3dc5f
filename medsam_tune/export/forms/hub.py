"""``transformers``: a folder that ``SamModel`` and ``SamProcessor`` load; ViT encoders only.

Source of the names: transformers 5.24.0, ``models/sam/modeling_sam.py``; each is checked by equal masks in the tests.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsam_tune.backbone.architectures import ARCHITECTURES, Architecture, VitShape
from medsam_tune.backbone.weights import architecture_of
from medsam_tune.errors import CheckpointError
from medsam_tune.export.forms.base import Tuned, Written
from medsam_tune.export.forms.stock_sam import merged
from medsam_tune.export.merge import check_plain
from medsam_tune.files import write_safetensors
from medsam_tune.geometry import InputRule
from medsam_tune.segmenters.base import Segmenter

# In order; each changes all that it matches.
_RENAMED = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"^(vision_encoder)\.blocks\.", r"\1.layers."),
    (r"^(vision_encoder\.layers\.\d+\.)norm([12])\.", r"\1layer_norm\2."),
    (r"neck\.0\.", "neck.conv1."),
    (r"neck\.1\.", "neck.layer_norm1."),
    (r"neck\.2\.", "neck.conv2."),
    (r"neck\.3\.", "neck.layer_norm2."),
    (r"point_embeddings\.", "point_embed."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.)norm(\d)\.", r"\1layer_norm\2."),
    (r"transformer\.norm_final_attn\.", "transformer.layer_norm_final_attn."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"((?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.0\.", r"\1proj_in."),
    (r"((?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.1\.", r"\1layers.0."),
    (r"((?:output_hypernetworks_mlps\.\d+|iou_prediction_head)\.)layers\.2\.", r"\1proj_out."),
)
_POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
_LOADING = """\
```python
from transformers import SamModel, SamProcessor

model = SamModel.from_pretrained("FOLDER")
processor = SamProcessor.from_pretrained("FOLDER")
inputs = processor(image, input_boxes=[[[x1, y1, x2, y2]]], return_tensors="pt")
masks = model(**inputs, multimask_output=False).pred_masks  # the single mask is the one that was tuned
```
"""


def why_not_transformers(segmenter: Segmenter) -> str | None:
    """Return None where ``SamModel`` can be built like the network, else why not; merging is tried on writing."""
    try:
        backbone = check_plain(segmenter).backbone
    except CheckpointError as error:
        return str(error)
    name = architecture_of(backbone.state_dict())
    if name is None or not isinstance(ARCHITECTURES[name].encoder, VitShape):
        return f"model.backbone: SamModel has SAM's ViT as its encoder, this one is {name or 'another one'}"
    return None


def write_transformers(tuned: Tuned, folder: Path) -> Written:
    """Write model and processor to ``folder``, which exists; the tuner is merged into the network.

    Raises:
        CheckpointError: If the extra is not installed.
        CannotTakeForm: If the tuner cannot be merged.
    """
    try:
        from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor
    except ImportError as error:
        raise CheckpointError(
            "--to transformers: transformers is not installed. Run: pip install medsam-tune[transformers]"
        ) from error
    rule = tuned.segmenter.input_rule
    state = merged(tuned.segmenter)
    architecture = ARCHITECTURES[architecture_of(state) or ""]
    tensors = {new_name(name): tensor.contiguous().clone() for name, tensor in state.items()}
    tensors["shared_image_embedding.positional_embedding"] = tensors[_POSITIONS].clone()
    config = SamConfig(**_configs(architecture, rule, state), architectures=["SamModel"])
    with torch.device("meta"):
        expected = SamModel(config).state_dict().keys()
    if differing := sorted(expected ^ tensors.keys()):
        raise CheckpointError(
            f"--to transformers: this version names {differing[0]} otherwise. Install transformers>=5.20,<6 and export again."
        )
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config.save_pretrained(folder)
    processor: Any = SamProcessor  # which carries no types
    processor(SamImageProcessor(**_processing(rule, architecture))).save_pretrained(folder)
    return Written(_LOADING)


def new_name(name: str) -> str:
    """Return what transformers calls a weight of segment_anything.

    Examples:
        >>> new_name("mask_decoder.iou_prediction_head.layers.2.bias")
        'mask_decoder.iou_prediction_head.proj_out.bias'
    """
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _configs(architecture: Architecture, rule: InputRule, state: dict[str, Tensor]) -> dict[str, Any]:
    shape: Any = architecture.encoder
    channels, sizes = architecture.embed_dim, {"image_size": rule.side, "patch_size": architecture.patch}
    vision = {
        "hidden_size": shape.embed_dim,
        "output_channels": channels,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "window_size": shape.window,
        "global_attn_indexes": list(shape.global_blocks),
        "num_pos_feats": channels // 2,
    }
    decoder = {
        "hidden_size": channels,
        "mlp_dim": architecture.decoder_mlp_dim,
        "iou_head_hidden_dim": channels,
        # segment_anything's norms in the decoder keep torch's own epsilon.
        "layer_norm_eps": 1e-5,
    }
    return {
        "vision_config": {**vision, **sizes},
        "prompt_encoder_config": {"hidden_size": channels, **sizes},
        "mask_decoder_config": decoder,
    }


def _processing(rule: InputRule, architecture: Architecture) -> dict[str, Any]:
    """Return the settings of the processor; it keeps the aspect ratio and knows no limits of an image's own."""
    low_res = 4 * rule.side // architecture.patch
    scale = 1 / 255 if rule.min_max else rule.scale / 255
    return {
        "size": {"longest_edge": rule.side},
        "pad_size": {"height": rule.side, "width": rule.side},
        "mask_size": {"longest_edge": low_res},
        "mask_pad_size": {"height": low_res, "width": low_res},
        "rescale_factor": scale,
        "image_mean": [value if rule.min_max else value / 255 for value in rule.mean],
        "image_std": [value if rule.min_max else value / 255 for value in rule.std],
    }
