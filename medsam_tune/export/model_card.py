"""The README.md of an export: what it is, what it belongs to, what it was trained on, how well it did, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medsam_tune.export.build import names_own_file

# medsam_tune.tuners.msa.bottleneck_peft.PEFT_TYPE; a card is written without importing peft.
OWN_METHOD = "BOTTLENECK_ADAPTER"

_CARD = """\
---
{library}pipeline_tag: image-segmentation
tags: [segment-anything, medical-imaging, medsam-tune]
---

# {title}

Trained with medsam-tune {version}.

| | |
|---|---|
{rows}

## Load it

{loading}
## Data

```json
{data}
```
"""

_OWN_LOADING = """\
```python
import medsam_tune

predictor = medsam_tune.load_export("FOLDER"{checkpoint})
{prediction}
```

This checks the base weights, builds the network (`export.json`) and loads {files}.
{stock}"""

_STOCK = """
The adapter alone also loads with stock peft:

```python
from peft import PeftModel
from segment_anything import sam_model_registry

sam = sam_model_registry["vit_b"](checkpoint="...")  # the architecture and file of the base weights
sam = PeftModel.from_pretrained(sam, "FOLDER")
```
"""

_OWN_METHOD = """
The adapter alone also loads with peft, which learns of the method by the first line:

```python
import medsam_tune.tuners.msa.bottleneck_peft
from peft import PeftModel
from segment_anything import sam_model_registry

sam = sam_model_registry["vit_b"](checkpoint="...")  # the architecture and file of the base weights
sam = PeftModel.from_pretrained(sam, "FOLDER")
```
"""


def model_card(description: Mapping[str, Any], config: Mapping[str, Any] | None, *, prediction: str) -> str:
    """Return the model card of an export folder as Markdown.

    Args:
        description: What ``export.json`` holds.
        config: What ``adapter_config.json`` holds, or None where there is no adapter of peft.
        prediction: Lines that ask the ``predictor`` about an image.
    """
    loading = _OWN_LOADING.format(
        checkpoint=', checkpoint="FILE"' if names_own_file(description["model"]) else "",
        files=" and ".join(f"`{name}`" for name in description["files"]),
        stock=_stock(config),
        prediction=prediction,
    )
    return form_card(description, config, loading=loading)


def form_card(
    description: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    *,
    loading: str,
    more: Mapping[str, str] | None = None,
    library: str | None = None,
) -> str:
    """Return the model card of any form of an export as Markdown.

    Args:
        description: What ``export.json`` holds.
        config: What ``adapter_config.json`` holds, or None where the form is no adapter of peft.
        loading: Markdown that says how it is loaded.
        more: Further rows of the table, by name; they take the place of rows of the same name.
        library: The library that loads it, as model hubs name it; peft where there is a ``config``.
    """
    rule = description["input_rule"]
    weights = description["base_weights"] or {"name": "no base weights", "sha256": "none"}
    rows = {"Base weights": f"{weights['name']}, sha256 `{weights['sha256']}`"} if description["base_weights"] else {}
    rows |= {} if config is None else _adapter_rows(config)
    rows |= {
        "Input": f"{rule['side']} px, resize `{rule['resize']}`, {_normalisation(rule)}",
        "Test Dice": _dice(description["metrics"]),
        "Licence": description["licence"],
    }
    rows |= more or {}
    kind = "Segmentation network" if config is None else f"{config['peft_type']} adapter"
    library = library or (None if config is None else "peft")
    return _CARD.format(
        library="" if library is None else f"library_name: {library}\n",
        title=f"{kind} on {weights['name']}",
        version=description["medsam_tune"],
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        loading=loading,
        data=json.dumps(description["data"], indent=2),
    )


def _normalisation(rule: Mapping[str, Any]) -> str:
    """Return how grey levels are brought to what the network reads."""
    first = "each image to 0..1, then " if rule["min_max"] else ""
    return f"{first}minus {tuple(rule['mean'])}, divided by {tuple(rule['std'])}"


def _stock(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return ""
    return _OWN_METHOD if config["peft_type"] == OWN_METHOD else _STOCK


def _adapter_rows(config: Mapping[str, Any]) -> dict[str, str]:
    layers = config.get("target_modules") or []
    rank = f", r = {config['r']}" if config.get("r") else ""
    return {
        "Method": f"peft {config['peft_version']}, `{config['peft_type']}`{rank}",
        "Layers": f"{len(layers)}: `{layers[0]}` ... `{layers[-1]}`" if layers else "none",
    }


def _dice(metrics: Mapping[str, Any]) -> str:
    """Return the mean with its interval, where the test gave them."""
    dice = metrics.get("dice")
    if not isinstance(dice, Mapping) or dice.get("mean") is None:
        return "not measured"
    interval = dice.get("ci95")
    text = f"{dice['mean']:.4f}" + ("" if interval is None else f" (95 % interval {interval[0]:.4f} to {interval[1]:.4f})")
    return f"{text} over {metrics['n_cases']} cases" if "n_cases" in metrics else text
