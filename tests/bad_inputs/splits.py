"""Files that say which case is trained on: no JSON, no split, or of other data."""

import json
from pathlib import Path

from tests.bad_inputs.cases import RUN, RUN_FOLDER, Case, nothing, wrote

FILE = "mine.json"
SPLIT = (*RUN, f"--data.split.file={FILE}")
TRAIN, VAL, TEST = ["c0", "c1", "c4", "c6"], ["c7"], ["c2", "c3", "c5"]


def split(**parts):
    return wrote(FILE, json.dumps({"train": TRAIN, "val": VAL, "test": TEST, **parts}))


def given(name, spoil, culprit=FILE, said=""):
    return Case(name, spoil, SPLIT, culprit, said)


def case_added():
    for folder in ("images", "masks"):
        source = Path("images", folder, "c0_0.png")
        Path("images", folder, "c9_0.png").write_bytes(source.read_bytes())


def other_data():
    for folder in ("images", "masks"):
        for path in sorted(Path("images", folder).glob("c[2-5]_*")):
            path.rename(path.with_name(path.name.replace("c", "d")))


CASES = [
    given("no file", nothing),
    given("file of no bytes", wrote(FILE, "")),
    given("no JSON", wrote(FILE, "{train: [")),
    given("nested 100,000 deep", wrote(FILE, "[" * 100_000)),
    given("list", wrote(FILE, "[1, 2]")),
    given("number", wrote(FILE, "7")),
    given("bytes", wrote(FILE, bytes(range(256)))),
    given("no validation", wrote(FILE, json.dumps({"train": TRAIN, "test": TEST}))),
    given("part that is a word", split(train="c0")),
    given("part of numbers", split(train=[1, 2])),
    given("part of lists", split(train=[["c0"], ["c1"]])),
    given("part that is empty", split(val=[])),
    given("case in two parts", split(test=[*TEST, "c0"]), said="c0"),
    given("case twice in a part", split(train=[*TRAIN, "c0"]), said="c0"),
    given("case that there is not", split(train=[*TRAIN, "c99"]), said="c99"),
    given("case left out", split(train=TRAIN[1:]), said="c0"),
    Case("cases added, then tested", case_added, ("test", str(RUN_FOLDER)), "splits.json", "c9"),
    Case("data of other cases, then tested", other_data, ("test", str(RUN_FOLDER)), "splits.json"),
    Case(
        "split of the run that is no JSON",
        wrote(str(RUN_FOLDER / "splits.json"), "{"),
        ("test", str(RUN_FOLDER)),
        "splits.json",
    ),
]
