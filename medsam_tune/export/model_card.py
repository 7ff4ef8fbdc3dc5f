"""The README.md of an adapter: what it is, what it belongs to, what it was trained on, how well it did, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# medsam_tune.tuners.bottleneck_peft.PEFT_TYPE; a card is written without importing peft.
OWN_METHOD = "BOTTLENECK_ADAPTER"

_CARD = """\
---
library_name: peft
pipeline_tag: image-segmentation
tags: [segment-anything, medical-imaging, medsam-tune]
---

# {method} adapter for {base}

Trained with medsam-tune {version}. The base weights are not in this folder.

| | |
|---|---|
| Base weights | {base}, sha256 `{sha256}` |
| Method | peft {peft_version}, `{method}`{rank} |
| Layers | {layers} |
| Input | {side} px, resize `{resize}`, {normalisation} |
| Test Dice | {dice} |
| Licence | {licence} |

## Load it

```python
import medsam_tune

predictor = medsam_tune.load_adapter("FOLDER")
{prediction}
```

This checks the base weights, builds the network around the adapter (`extra.json`) and loads {files}.
{stock}

## Data

```json
{data}
```
"""

_STOCK = """\
The adapter alone also loads with stock peft:

```python
from peft import PeftModel
from segment_anything import sam_model_registry

sam = sam_model_registry["vit_b"](checkpoint="...")  # the architecture and file of the base weights
sam = PeftModel.from_pretrained(sam, "FOLDER")
```"""

_OWN_METHOD = """\
The adapter alone also loads with peft, which learns of the method by the first line:

```python
import medsam_tune.tuners.bottleneck_peft
from peft import PeftModel
from segment_anything import sam_model_registry

sam = sam_model_registry["vit_b"](checkpoint="...")  # the architecture and file of the base weights
sam = PeftModel.from_pretrained(sam, "FOLDER")
```"""


def model_card(description: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the model card as Markdown.

    Args:
        description: What ``extra.json`` holds.
        config: What ``adapter_config.json`` holds.
    """
    rule, weights = description["input_rule"], description["base_weights"]
    layers = config.get("target_modules") or []
    return _CARD.format(
        method=config["peft_type"],
        base=weights["name"],
        sha256=weights["sha256"],
        version=description["medsam_tune"],
        peft_version=config["peft_version"],
        rank=f", r = {config['r']}" if config.get("r") else "",
        layers=f"{len(layers)}: `{layers[0]}` ... `{layers[-1]}`" if layers else "none",
        side=rule["side"],
        resize=rule["resize"],
        normalisation=_normalisation(rule),
        dice=_dice(description["metrics"]),
        licence=description["licence"],
        files=" and ".join(f"`{name}`" for name in description["files"]),
        stock=_OWN_METHOD if config["peft_type"] == OWN_METHOD else _STOCK,
        prediction=_prediction(description["model"]),
        data=json.dumps(description["data"], indent=2),
    )


def _normalisation(rule: Mapping[str, Any]) -> str:
    """Return how grey levels are brought to what the network reads."""
    first = "each image to 0..1, then " if rule["min_max"] else ""
    return f"{first}minus {tuple(rule['mean'])}, divided by {tuple(rule['std'])}"


def _prediction(model: Mapping[str, Any]) -> str:
    """Return the line that segments an image, by what the network emits."""
    segmenter = model.get("segmenter") or {}
    if str(segmenter.get("class_path")).endswith(".SemanticSegmenter"):
        return f"masks = predictor.segment_classes(image)  # by class: {', '.join(segmenter['init_args']['classes'])}"
    return "mask = predictor.segment(image)  # box=(x1, y1, x2, y2) where it was trained with boxes"


def _dice(metrics: Mapping[str, Any]) -> str:
    """Return the mean with its interval, where the test gave them."""
    dice = metrics.get("dice")
    if not isinstance(dice, Mapping) or dice.get("mean") is None:
        return "not measured"
    interval = dice.get("ci95")
    text = f"{dice['mean']:.4f}" + ("" if interval is None else f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})")
    return f"{text} over {metrics['n_cases']} cases" if "n_cases" in metrics else text
