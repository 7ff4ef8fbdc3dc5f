"""The network of this MONAI bundle: ONNX graphs behind a torch module, and what segments a folder of images with them.

Needs torch, numpy, pillow and onnxruntime; nothing of the package that tuned the network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")


class OnnxNetwork(nn.Module):
    """Map images in 0..255 to logits of their own size.

    Args:
        models: The folder of the graphs and of ``facts.json``.
    """

    def __init__(self, models: str) -> None:
        import onnxruntime

        super().__init__()
        self.facts: dict[str, Any] = json.loads((Path(models) / "facts.json").read_text(encoding="utf-8"))
        onnxruntime.set_default_logger_severity(3)
        graphs = self.facts["graphs"]
        self.sessions = {name: onnxruntime.InferenceSession(str(Path(models) / f"{name}.onnx")) for name in graphs}

    def forward(self, image: Tensor, prompts: list[dict[str, Any]] | None = None) -> Tensor:
        """Map images (B, 3, H, W) in 0..255 to logits (B, M, H, W); of classes scores, background first.

        Args:
            image: The images.
            prompts: One an image: ``box`` [x1, y1, x2, y2], ``points`` [[x, y], ...] with ``labels`` (1 object, 0
                background), in pixels of the image. Without any, the box is the whole image. A network that makes its own
                prompt reads none.
        """
        asked = prompts or [{}] * len(image)
        return torch.stack([self.segment(each, prompt) for each, prompt in zip(image, asked, strict=True)])

    def segment(self, image: Tensor, prompt: dict[str, Any], size: tuple[int, int] | None = None) -> Tensor:
        """Map one image (3, H, W) to logits (M, H, W), or of another ``size`` (H', W')."""
        height, width = image.shape[-2:]
        resized, scales = self.resized(image.float())
        pixels = resized.permute(1, 2, 0).numpy()
        original = np.array(size or (height, width), np.float32)
        if "model" in self.sessions:
            masks = self.sessions["model"].run(["masks"], {"input_image": pixels, "orig_im_size": original})[0]
            return torch.from_numpy(masks[0])
        embeddings = self.sessions["encoder"].run(["image_embeddings"], {"input_image": pixels})[0]
        coords, labels = prompt_points(prompt, (height, width), scales)
        low_res = 4 * embeddings.shape[-1]
        given = {
            "image_embeddings": embeddings,
            "point_coords": coords[None],
            "point_labels": labels[None],
            "mask_input": np.zeros((1, 1, low_res, low_res), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": original,
        }
        return torch.from_numpy(self.sessions["decoder"].run(["masks"], given)[0][0])

    def resized(self, image: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Bring an image (3, H, W) to the size that the graph reads, and return by what x and y were multiplied."""
        side, (height, width) = self.facts["side"], image.shape[-2:]
        if self.facts["resize"] == "square":
            size = (side, side)
        else:
            rows, columns = (max(1, int(length * side / max(height, width) + 0.5)) for length in (height, width))
            size = (rows, columns)
        scales = (size[1] / width, size[0] / height)
        if size == (height, width):
            return image, scales
        return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 255), scales


def prompt_points(prompt: dict[str, Any], size: tuple[int, int], scales: tuple[float, float]) -> tuple[Any, Any]:
    """Return points (P, 2) and labels (P,) of the resized image; corners of a box are labelled 2 and 3, padding -1.

    A point means the centre of its pixel, and the last column and row of a box belong to it.
    """
    scale = np.array(scales, np.float32)
    points = (np.array(prompt.get("points") or [], np.float32).reshape(-1, 2) + 0.5) * scale - 0.5
    labels = list(prompt.get("labels") or [])
    box = prompt.get("box") or ([] if len(points) else [0, 0, size[1] - 1, size[0] - 1])
    if len(box):
        first, last = np.array(box[:2], np.float32) * scale, (np.array(box[2:], np.float32) + 1) * scale - 1
        corners, marks = np.stack([np.minimum(first, (first + last) / 2), np.maximum(last, (first + last) / 2)]), [2, 3]
    else:
        corners, marks = np.zeros((1, 2), np.float32), [-1]
    return np.concatenate([points, corners]).astype(np.float32), np.array([*labels, *marks], np.float32)


def read_image(path: Path) -> Tensor:
    """Read (3, H, W) float32 in 0..255 of an 8-bit image, or of an array (H, W) or (H, W, 3) that was brought there."""
    if path.suffix == ".npy":
        values = np.load(path, allow_pickle=False).astype(np.float32)
        values = np.repeat(values[..., None], 3, axis=2) if values.ndim == 2 else values
    else:
        from PIL import Image

        with Image.open(path) as image:
            values = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def segment_folder(network: OnnxNetwork, images: str, prompts: str, masks: str) -> None:
    """Write a mask for every image of a folder: ``<name>.npy`` bool (M, H, W), and ``<name>.png`` of their labels.

    Args:
        network: The network.
        images: The folder of images.
        prompts: A JSON file, by the name of the image: ``box``, ``points`` and ``labels``; empty where none is given.
        masks: The folder that is made.
    """
    from PIL import Image

    asked = json.loads(Path(prompts).read_text(encoding="utf-8")) if prompts else {}
    Path(masks).mkdir(parents=True, exist_ok=True)
    for path in sorted(each for each in Path(images).iterdir() if each.suffix.lower() in IMAGES):
        prompt = asked.get(path.name, {})
        size = tuple(prompt["size"]) if "size" in prompt else None
        logits = network.segment(read_image(path), prompt, size)
        if network.facts["classes"]:
            label = logits.argmax(0)
            found = torch.stack([label == number for number in range(1, len(logits))])
        else:
            found = logits > 0
            label = found.any(0)
        np.save(Path(masks) / f"{path.stem}.npy", found.numpy())
        Image.fromarray(label.numpy().astype(np.uint8)).save(Path(masks) / f"{path.stem}.png")
