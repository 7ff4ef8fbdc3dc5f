"""Export folders: descriptions that lie, tensors that are damaged, paths that lead out."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.bad_inputs.cases import RUN_FOLDER, Case, nothing, wrote

FOLDER = RUN_FOLDER / "export"
JSON = str(FOLDER / "export.json")
TENSORS = str(FOLDER / "trained.safetensors")
PREDICT = ("predict", str(FOLDER), "images/images", "-o", "out")


def described(*keys, value):
    def change():
        content = json.loads(Path(JSON).read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        Path(JSON).write_text(json.dumps(content))

    return change


def undescribed(*keys):
    def change():
        content = json.loads(Path(JSON).read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        Path(JSON).write_text(json.dumps(content))

    return change


def tensors(change):
    """Return what changes the tensors and corrects their checksum, as a malicious or clumsy hand would."""

    def spoil():
        stored = load_file(TENSORS)
        change(stored)
        save_file(stored, TENSORS)
        described("files", "trained.safetensors", value=hashlib.sha256(Path(TENSORS).read_bytes()).hexdigest())()

    return spoil


def first(stored):
    return next(iter(sorted(stored)))


def filled(value):
    return lambda stored: stored.update({name: torch.full_like(tensor, value) for name, tensor in stored.items()})


ARGS = ("model", "backbone", "init_args")
ENCODER = ("model", "prompt_encoder", "init_args")


def asked(name, spoil, culprit="export.json", said=""):
    return Case(name, spoil, PREDICT, culprit, said)


CASES = [
    asked("no description", lambda: Path(JSON).unlink()),
    asked("description of no bytes", wrote(JSON, "")),
    asked("description that is a list", wrote(JSON, "[]")),
    asked("description that is cut off", lambda: Path(JSON).write_text(Path(JSON).read_text()[:90])),
    asked("description nested 100,000 deep", wrote(JSON, "[" * 100_000)),
    asked("description in latin-1", wrote(JSON, '{"a": "ü"}'.encode("latin-1"))),
    asked("description of another version", described("format_version", value=99)),
    asked("description of a version that is a list", described("format_version", value=[2])),
    asked("description without a model", undescribed("model")),
    asked("width that is a word", described(*ENCODER, "width", value="a")),
    asked("width below 0", described(*ENCODER, "width", value=-1)),
    asked("width of 10^9", described(*ENCODER, "width", value=10**9)),
    asked("dilations of 10^9", described(*ENCODER, "dilations", value=[10**9] * 9)),
    asked("arguments that are a list", described(*ARGS, value=[1])),
    asked("argument that there is not", described(*ARGS, "coffee", value=1)),
    asked("weights that are null", described(*ARGS, "weights", value=None)),
    asked("weights that are a number", described(*ARGS, "weights", value=7)),
    asked("weights that there are not", described(*ARGS, "weights", value="sam_vit_x"), "sam_vit_x"),
    asked("weights in /etc/passwd", described(*ARGS, "checkpoint", value="/etc/passwd"), "done/export", "--checkpoint=FILE"),
    asked("class of the standard library", described("model", "backbone", "class_path", value="os.system"), "os.system"),
    asked("class that is a number", described("model", "backbone", "class_path", value=3)),
    asked("files that are a list", described("files", value=[])),
    asked("file outside its folder", described("files", value={"../../tiny.yaml": "0" * 64})),
    asked("no tensors", lambda: Path(TENSORS).unlink(), "trained.safetensors"),
    asked("tensors of no bytes", wrote(TENSORS, b""), "trained.safetensors"),
    asked("tensors cut off", lambda: Path(TENSORS).write_bytes(Path(TENSORS).read_bytes()[:900]), "trained.safetensors"),
    asked("tensors with a header of terabytes", wrote(TENSORS, (2**50).to_bytes(8, "little") + b"{}"), "trained.safetensors"),
    asked("tensors of NaN", tensors(filled(torch.nan)), "trained.safetensors"),
    asked("tensors of infinity", tensors(filled(torch.inf)), "trained.safetensors"),
    asked("tensor missing", tensors(lambda stored: stored.pop(first(stored))), "export"),
    asked("tensor too many", tensors(lambda stored: stored.update(coffee=torch.ones(2))), "export"),
    asked("tensor of another shape", tensors(lambda stored: stored.update({first(stored): torch.ones(2, 2)})), "export"),
    asked(
        "tensor of complex numbers",
        tensors(lambda stored: stored.update({first(stored): stored[first(stored)].to(torch.complex64)})),
        "trained.safetensors",
    ),
    asked("base weights of another checksum", described("base_weights", "sha256", value="0" * 64), "random_tiny"),
    asked("base weights that are a word", described("base_weights", value="sam")),
    Case("folder that is none", nothing, ("predict", "nowhere", "images/images", "-o", "out"), "nowhere"),
    Case("folder without an export", nothing, ("predict", "images", "images/images", "-o", "out"), "images"),
    Case("merged where nothing can be", nothing, ("export", str(FOLDER), "--to", "sam", "-o", "merged"), "sam"),
    Case("written as what there is not", nothing, ("export", str(FOLDER), "--to", "coffee"), "coffee"),
]
