"""Sweeps: files that are none, ranges that cannot be, and numbers of runs below one."""

from pathlib import Path

from tests.bad_inputs.cases import Case, edited, nothing, wrote

FILE = "sweep.yaml"
SWEEP = ("sweep", FILE, "--local")
VALUES = "{values: [1, 2]}"


def parameter(text, method="bayes"):
    def change():
        edited(FILE, VALUES, text)()
        edited(FILE, "method: grid", f"method: {method}")()

    return change


def ranged(name, text, method="bayes", culprit="data.batch_size"):
    return Case(name, parameter(text, method), (*SWEEP, "--trials=1"), culprit)


def of(name, spoil, culprit=FILE, words=()):
    return Case(name, spoil, (*SWEEP, *words), culprit)


def journal():
    folder = Path("runs/sweeps/sweep")
    folder.mkdir(parents=True)
    (folder / "study.journal").write_bytes(b"\xaa\xbb garbage\n")


CASES = [
    of("no file", lambda: Path(FILE).unlink()),
    of("file of no bytes", wrote(FILE, "")),
    of("binary", wrote(FILE, bytes(range(128, 256)))),
    of("list", wrote(FILE, "- a\n- b\n")),
    of("nested 5000 deep", wrote(FILE, "parameters: " + "{a: " * 5000)),
    of("no parameters", edited(FILE, "  data.batch_size: {values: [1, 2]}\n", "")),
    of("method that there is not", edited(FILE, "method: grid", "method: guess"), "method"),
    of("no method", edited(FILE, "method: grid\n", ""), "method"),
    of("metric that is a word", edited(FILE, "{name: val/dice, goal: maximize}", "dice"), "metric"),
    of("goal that is none", edited(FILE, "maximize", "enlarge"), "goal"),
    of(
        "command that is a number",
        edited(FILE, 'command: ["${env}", medsam-tune, run, tiny.yaml, "${args}"]', "command: 7"),
        "command",
    ),
    of("command of another program", edited(FILE, "medsam-tune, run", "rm, run"), "command"),
    of("command with a recipe that there is not", edited(FILE, "run, tiny.yaml", "run, none.yaml"), "none.yaml"),
    of("no trials", nothing, "--trials", ["--trials=0"]),
    of("trials below 0", nothing, "--trials", ["--trials=-3"]),
    of("no jobs", nothing, "--jobs", ["--jobs=0"]),
    of("trials that are a word", nothing, "--trials", ["--trials=many"]),
    of("folder that is a file", nothing, "tiny.yaml", ["--folder=tiny.yaml"]),
    of("study that is garbage", journal, "study.journal", ["--folder=runs/sweeps/sweep"]),
    ranged("logarithm from 0", "{distribution: log_uniform_values, min: 0, max: 1}"),
    ranged("steps of 0", "{distribution: q_uniform, min: 0, max: 1, q: 0}"),
    ranged("range to infinity", "{distribution: uniform, min: 0, max: .inf}"),
    ranged("range of NaN", "{distribution: uniform, min: .nan, max: 1}"),
    ranged("range turned round", "{distribution: uniform, min: 2, max: 1}"),
    ranged("integers between fractions", "{distribution: int_uniform, min: 1.5, max: 3.7}"),
    ranged("distribution that there is not", "{distribution: cauchy, min: 1, max: 3}"),
    ranged("no values", "{values: []}", "grid"),
    ranged("values that are a word", "{values: many}", "grid"),
    ranged("parameter that is null", "null", "grid"),
]
