"""The commands of the page on prediction do what the page says."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam_tune.cli import main
from tests.conformance.test_predict_command import BOX, exported, place

__all__ = ["place"]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "predict-and-reload.md"


def shown_commands():
    """The words of each command of the first block below New images."""
    text = PAGE.read_text(encoding="utf-8").partition("## New images")[2]
    block = re.search(r"```bash\n(.+?)```", text, re.DOTALL)[1]
    return [shlex.split(line)[1:] for line in block.splitlines()]


@pytest.mark.filterwarnings("ignore:`loftq_config` specified but will be ignored:UserWarning")
def test_the_commands_shown_write_masks_tables_and_pictures(place):
    automatic, boxed, untuned = shown_commands()
    for recipe in ("autosam_embedding.yaml", "medsam_box.yaml"):
        exported(recipe, place / recipe)
    (place / "boxes.csv").write_text("image,x1,y1,x2,y2,label\na.png," + ",".join(map(str, BOX)) + ",tumour\n")
    for words, model in ((automatic, "autosam_embedding.yaml"), (boxed, "medsam_box.yaml"), (untuned, "random_tiny")):
        known = {"RUN": model, "lite_medsam": model, "INPUT": "new", "OUT": f"out_{model}", "MASKS": "masks"}
        assert main([known.get(word, word) for word in words]) == 0
        out = place / f"out_{model}"
        assert {"a.png", "labels.json", "cases.csv"} <= {path.name for path in out.iterdir()}
        assert np.asarray(Image.open(out / "a.png")).shape == (48, 64)
    assert (place / "out_medsam_box.yaml" / "overlays" / "a.png").is_file()
