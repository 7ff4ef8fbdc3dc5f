"""``onnx``: encoder and decoder in the layout of the usual SAM clients, or one graph from image to mask."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medsam_tune.backbone.sam import SamBackbone
from medsam_tune.errors import CheckpointError
from medsam_tune.export.forms.base import CannotTakeForm, Tuned, Written, is_prompted
from medsam_tune.export.forms.graph_modules import DecoderGraph, EncoderGraph, WholeGraph
from medsam_tune.export.forms.graph_tail import append_upscaling
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
# One file holds 2 GB at most (protobuf); beyond, weights lie beside the graph.
LARGEST_FILE_BYTES = 1_900_000_000
_LOADING = """\
`encoder.onnx` takes `input_image` (h, w, 3), float32 in 0..255, {fitted}; it normalises and pads inside and
returns `image_embeddings`. `decoder.onnx` has the six inputs of segment_anything's own ONNX export (`image_embeddings`,
`point_coords`, `point_labels`, `mask_input`, `has_mask_input`, `orig_im_size`) and returns `masks` (logits of the original
size, above 0 where the object is), `iou_predictions` and `low_res_masks`: one mask, the one that was tuned. Coordinates are
pixels of the resized image; a box is two points labelled 2 and 3, and without one a point labelled -1 is added.

```python
import numpy as np
import onnxruntime

encoder = onnxruntime.InferenceSession("encoder.onnx")
decoder = onnxruntime.InferenceSession("decoder.onnx")
embeddings = encoder.run(None, {{"input_image": resized.astype(np.float32)}})[0]
masks, iou_predictions, low_res_masks = decoder.run(["masks", "iou_predictions", "low_res_masks"], {{
    "image_embeddings": embeddings,
    "point_coords": np.float32([[[x1, y1], [x2, y2]]]),  # the box's corners, in pixels of the resized image
    "point_labels": np.float32([[2, 3]]),
    "mask_input": np.zeros((1, 1, {low_res}, {low_res}), np.float32),
    "has_mask_input": np.zeros(1, np.float32),
    "orig_im_size": np.float32([height, width]),
}})
```
"""
_LOADING_WHOLE = """\
`model.onnx` takes `input_image` (h, w, 3), float32 in 0..255, {fitted}, and `orig_im_size`, (height, width) of
the image before; it normalises and pads inside, makes its own prompt, and returns `masks`: {meaning}.

```python
import numpy as np
import onnxruntime

model = onnxruntime.InferenceSession("model.onnx")
inputs = {{"input_image": resized.astype(np.float32), "orig_im_size": np.float32([height, width])}}
masks = model.run(["masks"], inputs)[0]
```
"""


def why_not_onnx(segmenter: Segmenter) -> str | None:
    """Return None where the network can be written as ONNX graphs, else why not."""
    if segmenter.reads_priors():
        return "model.fusion: needs the automatic masks of each image, which no graph can find"
    if segmenter.classes() and segmenter.asks_user() is not None:
        return f"model.prompts: was trained with {segmenter.asks_user()}, and a graph of classes takes no prompt"
    if not is_prompted(segmenter):
        return None
    if segmenter.reads_names() or not isinstance(segmenter, SamSegmenter) or not isinstance(segmenter.backbone, SamBackbone):
        return "model.backbone: the decoder graph has the prompts of SAM (boxes, points, a mask), this network has others"
    return None


def write_onnx(tuned: Tuned, folder: Path) -> Written:
    """Write the graphs to ``folder``, which exists.

    Raises:
        CheckpointError: If the extra is not installed.
    """
    check_extra()
    segmenter = merged_if_possible(tuned.segmenter)
    rule = segmenter.input_rule
    fitted = f"resized to {rule.side} x {rule.side}" if rule.resize == "square" else f"its longest side {rule.side} pixels"
    if isinstance(segmenter, SamSegmenter) and is_prompted(segmenter):
        _write_pair(segmenter, folder)
        loading = _LOADING.format(fitted=fitted, low_res=4 * segmenter.backbone.embedding_size)
        graphs = ["encoder", "decoder"]
    else:
        write_whole(segmenter, folder / "model.onnx")
        loading = _LOADING_WHOLE.format(fitted=fitted, meaning=_meaning(segmenter))
        graphs = ["model"]
    return Written(loading, {"graphs": graphs, "classes": list(segmenter.classes())})


def check_extra() -> None:
    """Refuse to begin without the libraries that write graphs.

    Raises:
        CheckpointError: Naming the extra.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise CheckpointError(f"--to onnx: {error.name} is not installed. Run: pip install medsam-tune[onnx]") from error


def merged_if_possible(segmenter: Segmenter) -> Segmenter:
    """Return a copy with its tuner merged, whose graph is smaller, or the network itself, whose tuner stays in the graph."""
    if not isinstance(segmenter, SamSegmenter):
        return segmenter
    merged = copy.deepcopy(segmenter)
    try:
        with torch.no_grad():
            merged.tuner.merge()
    except CheckpointError:
        return segmenter
    return merged.eval()


def write_whole(segmenter: Segmenter, path: Path) -> None:
    """Write one graph from image to masks."""
    graph = WholeGraph(segmenter)
    model = _traced(graph, _example_image(segmenter), ["input_image"], _image_axes(segmenter))
    append_upscaling(model, segmenter.input_rule)
    _save(model, path)


def _write_pair(segmenter: SamSegmenter, folder: Path) -> None:
    backbone: Any = segmenter.backbone
    encoder = _traced(EncoderGraph(segmenter), _example_image(segmenter), ["input_image"], _image_axes(segmenter))
    _rename_outputs(encoder, ["image_embeddings"])
    _save(encoder, folder / "encoder.onnx")
    grid, low_res = backbone.embedding_size, 4 * backbone.embedding_size
    example = (
        torch.randn(1, backbone.embed_dim, grid, grid),
        torch.rand(1, 3, 2) * segmenter.input_rule.side,
        torch.tensor([[1.0, 0.0, -1.0]]),
        torch.zeros(1, 1, low_res, low_res),
        torch.zeros(1),
    )
    names = ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"]
    count = torch.export.Dim("num_points", min=1, max=4096)
    axes: dict[str, Any] = {name: None for name in names} | {"point_coords": {1: count}, "point_labels": {1: count}}
    decoder = _traced(DecoderGraph(backbone), example, names, axes)
    _rename_outputs(decoder, ["iou_predictions", "low_res_masks"])
    append_upscaling(decoder, segmenter.input_rule)
    _save(decoder, folder / "decoder.onnx")


def _example_image(segmenter: Segmenter) -> tuple[Tensor]:
    side = segmenter.input_rule.side
    return (torch.rand(side, side if segmenter.input_rule.resize == "square" else side * 3 // 4, 3) * 255,)


def _image_axes(segmenter: Segmenter) -> dict[str, Any]:
    """Return which lengths of the image may be others; a square rule has only one size."""
    if segmenter.input_rule.resize == "square":
        return {"input_image": None}
    side = segmenter.input_rule.side
    named = ("image_height", "image_width")
    return {"input_image": {axis: torch.export.Dim(name, min=2, max=side) for axis, name in enumerate(named)}}


def _traced(module: nn.Module, example: Sequence[Tensor], names: list[str], axes: Mapping[str, Any]) -> ModelProto:
    module = module.eval().requires_grad_(False)
    how: dict[str, Any] = {"opset_version": OPSET, "dynamo": True, "verbose": False}
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(module, tuple(example), input_names=names, dynamic_shapes=dict(axes), **how)
    except torch.onnx.OnnxExporterError as error:
        # A part of a user's own may do what no graph can.
        said = str(error.__cause__ or error).strip().splitlines()[0]
        raise CannotTakeForm(f"{type(module).__name__} cannot become a graph ({said})", ("onnx", "bundle")) from error
    model: ModelProto = program.model_proto
    if isinstance(module, WholeGraph):
        _rename_outputs(model, ["low_res_masks", "iou_predictions"][: len(model.graph.output)])
    return model


def _rename_outputs(model: ModelProto, names: Sequence[str]) -> None:
    """Give the outputs of a graph their names, wherever they occur in it."""
    graph: Any = model.graph
    new = dict(zip([output.name for output in graph.output], names, strict=True))
    for node in graph.node:
        for position, name in enumerate(node.output):
            node.output[position] = new.get(name, name)
        for position, name in enumerate(node.input):
            node.input[position] = new.get(name, name)
    for value in (*graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)


def _save(model: ModelProto, path: Path) -> None:
    import onnx

    large = model.ByteSize() > LARGEST_FILE_BYTES
    beside: dict[str, Any] = {"save_as_external_data": True, "location": f"{path.name}.data"} if large else {}
    onnx.save_model(model, str(path), **beside)
    onnx.checker.check_model(str(path))


def _meaning(segmenter: Segmenter) -> str:
    if not segmenter.classes():
        return "logits (1, 1, height, width), above 0 where the object is"
    names = ", ".join(segmenter.classes())
    return f"scores (1, {1 + len(segmenter.classes())}, height, width); the largest wins. 0 is the background, then {names}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its advice to its own authors off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
