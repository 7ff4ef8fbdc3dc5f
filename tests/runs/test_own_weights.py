import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import medsam_tune
from medsam_tune.backbone import SamBackbone
from medsam_tune.cli import main
from medsam_tune.files import sha256_of
from medsam_tune.runs.run import Run

RECIPE = """\
model:
  backbone:
    class_path: medsam_tune.backbone.SamBackbone
    init_args: {weights: random_tiny, trainable: [mask_decoder.iou_token]}
  prompts: {class_path: medsam_tune.prompts.BoxPrompt}
data:
  root: images
  source: {class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false, logger: false}
run: {baselines: false}
"""


def write_weights(path, seed):
    torch.save(SamBackbone("random_tiny", seed=seed).state_dict(), path)


@pytest.mark.slow
def test_a_run_on_a_file_of_ones_own_is_used_wherever_that_file_lies_now(workplace, capsys):
    (workplace / "own.yaml").write_text(RECIPE)
    write_weights(workplace / "base.pth", 3)
    wanted = sha256_of(workplace / "base.pth")
    run = Run.from_recipe("own.yaml", {"model.backbone.checkpoint": "base.pth"}).fit()
    shutil.move(workplace / "base.pth", workplace / "moved.pth")
    write_weights(workplace / "other.pth", 4)
    (workplace / "boxes.csv").write_text("image,x1,y1,x2,y2\nc0_0,4,4,12,12\nc1_0.png,4,4,12,12\n")
    asked = ["predict", str(run.folder), "images", "-o", "out", "--boxes=boxes.csv"]
    for words in (["test", str(run.folder)], asked):
        assert main(words) == 2
        assert f"--checkpoint=FILE on the command line. Its checksum decides, not its name; wanted is sha256 {wanted}" in (
            capsys.readouterr().err
        )
        assert main([*words, "--checkpoint=other.pth"]) == 2
        assert "was trained on base weights base.pth" in capsys.readouterr().err
    assert main(["test", str(run.folder), "--checkpoint=moved.pth"]) == 0
    assert main(["validate", str(run.folder), "checkpoint=moved.pth"]) == 0
    # The run was never exported: that is done first.
    assert main([*asked, "--checkpoint=moved.pth"]) == 1
    assert "c2_0.png: nothing was drawn for it" in capsys.readouterr().err
    assert sorted(path.name for path in (workplace / "out").glob("*.png")) == ["c0_0.png", "c1_0.png"]
    predictor = medsam_tune.load_export(run.folder / "export", checkpoint="moved.pth")
    expected = predictor.segment(np.asarray(Image.open("images/images/c1_0.png")), box=(4, 4, 12, 12))
    assert np.array_equal(np.asarray(Image.open("out/c1_0.png")) == 255, expected)


@pytest.mark.parametrize("command", ["test", "resume", "export"])
def test_a_folder_that_is_no_run_is_named(workplace, command, capsys):
    assert main([command, "images"]) == 2
    assert "images: is no run: it holds no config.yaml" in capsys.readouterr().err
