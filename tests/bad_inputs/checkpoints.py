"""Checkpoints of training: cut off, of rotten bits, without a part, or of another run."""

from pathlib import Path

import torch

from tests.bad_inputs.cases import RUN, RUN_FOLDER, Case, edited, nothing, wrote

FILE = str(RUN_FOLDER / "checkpoints/last.ckpt")
BEST = str(RUN_FOLDER / "checkpoints/best.ckpt")
RESUME = ("resume", str(RUN_FOLDER), "--trainer.max_epochs=2")
PREDICT = ("predict", "--config=tiny.yaml", f"--ckpt_path={BEST}")
FIRST = "segmenter.prompt_encoder.trunk.project.0.weight"


def changed(change, path=FILE):
    """Return what loads a checkpoint, changes it and saves it again."""

    def spoil():
        content = torch.load(path, weights_only=True)
        result = change(content)
        torch.save(content if result is None else result, path)

    return spoil


def without(*keys):
    def remove(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return changed(remove)


def put(value, *keys):
    def replace(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return changed(replace)


def rotten(path, bits=100):
    """Flip bits in the middle of a file."""

    def spoil():
        content = bytearray(Path(path).read_bytes())
        for n in range(bits):
            content[len(content) // 4 + 37 * n % (len(content) // 2)] ^= 1 << (n % 8)
        Path(path).write_bytes(bytes(content))

    return spoil


def cut(path, length=400):
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:length])


def reshaped(content):
    (state, *_) = content["optimizer_states"]
    for entry in state["state"].values():
        entry["exp_avg"] = torch.zeros(3)


def resumed(name, spoil, culprit="last.ckpt", said=""):
    return Case(name, spoil, RESUME, culprit, said)


CASES = [
    resumed("file of no bytes", wrote(FILE, b"")),
    resumed("file that is text", wrote(FILE, "hello")),
    resumed("file whose end is cut off", cut(FILE)),
    resumed("100 bits flipped", rotten(FILE)),
    resumed("list", changed(lambda content: [1, 2])),
    resumed("weights that are a list", put([1, 2], "state_dict")),
    resumed("weights that are words", put({FIRST: "a"}, "state_dict")),
    resumed("weights by number", put({7: torch.zeros(2)}, "state_dict")),
    resumed("no weights", without("state_dict")),
    resumed("weights of another shape", put(torch.zeros(3), "state_dict", FIRST)),
    resumed("weights of NaN", put(torch.full((8, 32, 1, 1), torch.nan), "state_dict", FIRST)),
    resumed("weights of complex numbers", put(torch.zeros(8, 32, 1, 1, dtype=torch.complex64), "state_dict", FIRST)),
    resumed("a weight missing", without("state_dict", FIRST)),
    resumed("base weights that are a word", put("sam", "base_weights")),
    resumed("base weights without a checksum", put({"name": "random_tiny"}, "base_weights")),
    resumed("base weights of another checksum", put({"name": "other", "sha256": "0" * 64}, "base_weights")),
    resumed("no base weights", without("base_weights")),
    resumed("frozen that is a list", put([1], "frozen")),
    resumed("no loops", without("loops")),
    resumed("loops that are a word", put("fit", "loops")),
    resumed("loops without the fit's", put({}, "loops")),
    resumed("no step", without("global_step")),
    resumed("step that is a word", put("ten", "global_step")),
    resumed("step below 0", put(-4, "global_step")),
    resumed("no epoch", without("epoch")),
    resumed("no version of Lightning", without("pytorch-lightning_version")),
    resumed("version of Lightning that is none", put("one", "pytorch-lightning_version")),
    resumed("no state of the optimizer", without("optimizer_states")),
    resumed("state of the optimizer that is a word", put("adam", "optimizer_states")),
    resumed(
        "states of two optimizers", changed(lambda content: content["optimizer_states"].append(content["optimizer_states"][0]))
    ),
    resumed("state of the optimizer of other shapes", changed(reshaped)),
    resumed("state of no learning rate", without("lr_schedulers")),
    resumed("callbacks that are a list", put([1], "callbacks")),
    resumed("no callbacks", without("callbacks")),
    Case("given by name, file that is text", wrote("x.ckpt", "hello"), (*RUN, "--ckpt_path=x.ckpt"), "x.ckpt"),
    Case("best of no bytes", wrote(BEST, b""), ("test", str(RUN_FOLDER)), "best.ckpt"),
    Case(
        "best with bits flipped, then predict",
        rotten(BEST),
        ("predict", str(RUN_FOLDER), "images/images", "-o", "out"),
        "best.ckpt",
    ),
    Case("best gone", lambda: Path(BEST).unlink(), ("test", str(RUN_FOLDER)), "best.ckpt"),
    Case("last gone", lambda: Path(FILE).unlink(), RESUME, "last.ckpt"),
    Case("recipe of the run gone", lambda: (RUN_FOLDER / "config.yaml").unlink(), RESUME, "config.yaml"),
    Case("recipe of the run cut off", cut(str(RUN_FOLDER / "config.yaml"), 300), RESUME, "config.yaml"),
    Case(
        "recipe of the run with another network",
        edited(str(RUN_FOLDER / "config.yaml"), "width: 8", "width: 16"),
        RESUME,
        "last.ckpt",
    ),
    Case("folder that is no run", nothing, ("resume", "images"), "images"),
    Case("folder that there is not", nothing, ("resume", "nowhere"), "nowhere"),
    Case("run without a checkpoint asked for", nothing, ("predict", "--config=tiny.yaml"), "ckpt_path"),
    Case(
        "split edited, a test case trained on",
        edited(str(RUN_FOLDER / "splits.json"), '"c0",', '"c0", "c2",'),
        RESUME,
        "splits.json",
    ),
    Case(
        "split gone, another seed",
        lambda: (RUN_FOLDER / "splits.json").unlink(),
        (*RESUME, "--data.split.seed=5"),
        "splits.json",
    ),
]
