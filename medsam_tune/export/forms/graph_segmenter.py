"""Exported graphs as a segmenter, so that they are scored by the same lines as every network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medsam_tune.backbone.base import WeightsIdentity
from medsam_tune.export.forms.foreign import decoder_inputs, named
from medsam_tune.geometry import InputRule
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import class_margins
from medsam_tune.types import MaskPrediction, Queries, SegmentationBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray


class GraphSegmenter(Segmenter):
    """Answer as the graphs of a folder do, asked as the network they were made of is asked.

    Args:
        asked: That network: its prompts and classes.
        folder: Holds ``encoder.onnx`` and ``decoder.onnx``, or ``model.onnx``.
        suffix: Stands behind the names of graphs that exist in it, such as ``.int8``; the others are taken without.
    """

    def __init__(self, asked: Segmenter, folder: Path, suffix: str = "") -> None:
        import onnxruntime

        super().__init__()
        self.asked = asked
        onnxruntime.set_default_logger_severity(3)
        names = ("model",) if (folder / "model.onnx").is_file() else ("encoder", "decoder")
        files = {name: folder / f"{name}{suffix}.onnx" for name in names}
        chosen = {name: file if file.is_file() else folder / f"{name}.onnx" for name, file in files.items()}
        self.sessions = {name: onnxruntime.InferenceSession(str(file)) for name, file in chosen.items()}

    @property
    def input_rule(self) -> InputRule:
        """Return the network's rule."""
        return self.asked.input_rule

    def base_weights(self) -> WeightsIdentity | None:
        """Return the network's base weights."""
        return self.asked.base_weights()

    def classes(self) -> tuple[str, ...]:
        """Return the network's classes."""
        return self.asked.classes()

    def forward(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return logits (N, 1, h, w), and class scores where the network has classes.

        Raises:
            ValueError: If the network needs prompts that cannot be drawn.
        """
        if "model" in self.sessions:
            return self._whole(batch)
        queries = self.asked.ask(batch) if isinstance(self.asked, SamSegmenter) else batch.queries
        answers: list[tuple[Tensor, Tensor]] = []
        embedded: dict[int, NDArray[np.float32]] = {}
        for row, image in enumerate(queries.image_index.tolist()):
            if image not in embedded:
                pixels = _valid(batch, image)
                embedded = {image: named(self.sessions["encoder"], {"input_image": pixels})["image_embeddings"]}
            inputs = _inputs(queries, row, embedded[image], batch.frames[image].original_size)
            said = named(self.sessions["decoder"], inputs)
            answers.append((torch.from_numpy(said["low_res_masks"]), torch.from_numpy(said["iou_predictions"])))
        if not answers:
            return MaskPrediction(torch.zeros(0, 1, self.input_rule.side, self.input_rule.side))
        return MaskPrediction(torch.cat([masks for masks, _ in answers]), torch.cat([ious for _, ious in answers]))

    def _whole(self, batch: SegmentationBatch) -> MaskPrediction:
        scores = []
        for image, frame in enumerate(batch.frames):
            given = {"input_image": _valid(batch, image), "orig_im_size": np.array(frame.original_size, np.float32)}
            scores.append(torch.from_numpy(named(self.sessions["model"], given)["low_res_masks"]))
        joined = torch.cat(scores)
        if not self.classes():
            return MaskPrediction(joined)
        return MaskPrediction(class_margins(joined)[:, 1:].flatten(0, 1)[:, None], class_logits=joined)


def _valid(batch: SegmentationBatch, image: int) -> NDArray[np.float32]:
    """Return the valid area (h, w, 3) of an image of the batch, in 0..255."""
    height, width = batch.frames[image].input_size
    pixels: NDArray[np.float32] = batch.images[image, :, :height, :width].permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(pixels)


def _inputs(queries: Queries, row: int, embeddings: Any, size: tuple[int, int]) -> dict[str, Any]:  # noqa: ANN401 - an array
    coords, labels, boxes = queries.point_coords, queries.point_labels, queries.boxes
    kinds = queries.kinds() if queries.form_index is None else queries.forms[int(queries.form_index[row])]
    question = {
        "points": np.zeros((0, 2), np.float32),
        "labels": np.zeros(0, np.float32),
        "box": np.zeros(0, np.float32),
        "original_size": size,
    }
    if "points" in kinds and coords is not None and labels is not None:
        question |= {"points": coords[row].cpu().numpy(), "labels": labels[row].cpu().numpy()}
    if "boxes" in kinds and boxes is not None:
        question["box"] = boxes[row].cpu().numpy()
    inputs = decoder_inputs(question, embeddings)
    if "mask_inputs" in kinds and queries.mask_inputs is not None:
        given = queries.mask_inputs[row][None].cpu().numpy().astype(np.float32)
        inputs |= {"mask_input": given, "has_mask_input": np.ones(1, np.float32)}
    return inputs
