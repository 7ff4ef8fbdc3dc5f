"""Other commands: prepare, predict, compare, runs, init, recipes, weights, and what the environment says."""

import os
from pathlib import Path

from tests.bad_inputs.cases import RUN, RUN_FOLDER, Case, nothing, wrote

MODEL = str(RUN_FOLDER)
PREDICT = ("predict", MODEL, "images/images", "-o", "out")
LONG = "n" * 251


def long_name():
    Path("images/images/c0_0.png").rename(f"images/images/{LONG}.png")


def command(name, *words, culprit, spoil=nothing, said=""):
    return Case(name, spoil, words, culprit, said)


PREPARE = ("prepare", "volumes", "out")

CASES = [
    command("command that there is not", "trian", culprit="trian"),
    command("recipe in a command's place", "tiny.yaml", culprit="tiny.yaml"),
    command("prepare: labels twice", *PREPARE, "--labels", "a=1", "a=2", culprit="labels"),
    command("prepare: label without a value", *PREPARE, "--labels", "a", culprit="--labels"),
    command("prepare: out below a file", "prepare", "volumes", "tiny.yaml/out", culprit="tiny.yaml"),
    command("prepare: out that stands", "prepare", "volumes", "images", culprit="images"),
    command("prepare: source that there is not", "prepare", "nowhere", "out", culprit="nowhere"),
    command("prepare: every 0th slice", *PREPARE, "--step=0", culprit="step"),
    command("prepare: window turned round", *PREPARE, "--window", "9", "1", culprit="window"),
    command("prepare: fraction beyond 1", *PREPARE, "--val-fraction=7", culprit="val"),
    command("prepare: format that there is not", *PREPARE, "--format=coffee", culprit="--format"),
    command("predict: input that there is not", "predict", MODEL, "nowhere", "-o", "out", culprit="nowhere"),
    command("predict: input without images", "predict", MODEL, "done", "-o", "out", culprit="done"),
    command("predict: out that is a file", *PREDICT[:3], "-o", "tiny.yaml", culprit="tiny.yaml"),
    command("predict: out that is the input", *PREDICT[:3], "-o", "images/images", culprit="images/images"),
    command("predict: boxes that there are not", *PREDICT, "--boxes", "none.csv", culprit="none.csv"),
    command(
        "predict: boxes for a model without",
        *PREDICT,
        "--boxes",
        "b.csv",
        culprit="--boxes",
        spoil=wrote("b.csv", "image,x1,y1,x2,y2\nc0_0.png,1,1,5,5\n"),
    ),
    command(
        "predict: boxes without columns", *PREDICT, "--boxes", "b.csv", culprit="b.csv", spoil=wrote("b.csv", "a,b\n1,2\n")
    ),
    command(
        "predict: points of bytes", *PREDICT, "--points", "p.csv", culprit="p.csv", spoil=wrote("p.csv", bytes(range(256)))
    ),
    command("predict: form that there is not", *PREDICT, "--to", "coffee", culprit="--to"),
    command(
        "predict: recipe that is binary",
        "predict",
        "--config=x.yaml",
        culprit="x.yaml",
        spoil=wrote("x.yaml", bytes(range(128, 256))),
    ),
    command("test: folder that is no run", "test", "images", culprit="images"),
    command("test: recipe without a checkpoint", "test", "--config=tiny.yaml", culprit="ckpt_path"),
    command("compare: one run", "compare", MODEL, culprit="compare"),
    command("compare: run with itself", "compare", MODEL, MODEL, culprit="compare"),
    command(
        "compare: table of cases that is cut off",
        "compare",
        MODEL,
        "copy",
        culprit="test_cases.csv",
        spoil=lambda: (os.system("cp -r done copy"), Path("copy/test_cases.csv").write_bytes(b"\xff,\x00")),
    ),
    command("runs: run that there is not", "runs", "show", "nowhere", culprit="nowhere"),
    command(
        "runs: summary that is garbage",
        "runs",
        "show",
        MODEL,
        culprit="summary.json",
        spoil=wrote(f"{MODEL}/summary.json", "["),
    ),
    command("init: folder that there is not", "init", "nowhere", culprit="nowhere"),
    command("init: folder without images", "init", "done", "x.yaml", culprit="done"),
    command("init: pattern that is none", "init", "images", "x.yaml", "--images", "{folder", culprit="--images"),
    command("init: recipe that stands", "init", "images", "tiny.yaml", culprit="tiny.yaml"),
    command("recipes: name that there is not", "recipes", "show", "coffee", culprit="coffee"),
    command("recipes: copied over a file", "recipes", "copy", "lora", "tiny.yaml", culprit="tiny.yaml"),
    command("recipes: upgrade of a picture", "recipes", "upgrade", "images/images/c0_0.png", culprit="c0_0.png"),
    command("weights: name that there is not", "weights", "get", "sam_vit_x", culprit="sam_vit_x"),
    command("completion: shell that there is not", "completion", "coffee", culprit="coffee"),
    command("serve: model that there is not", "serve", "nowhere", culprit="nowhere"),
    command("app: model that there is not", "app", "nowhere", culprit="nowhere"),
    command("image whose name is as long as can be, of nothing", *RUN, culprit="n" * 30, spoil=long_name),
]
