"""Files of earlier recipes are rewritten, their comments kept, the old one beside them."""

from pathlib import Path

import pytest

from medsam_tune.cli import main
from medsam_tune.yaml_files import read_yaml

NAMES = """\
# Mine. Try --model.prompt_source.jitter='{high: 9}'.
model:
  # what is tuned
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny}}
  prompt_source:   # how it is asked
    class_path: medsam_tune.prompts.OneOfPrompt
    init_args:
      sources:
        - {class_path: medsam_tune.prompts.BoxPrompt}
        - class_path: medsam_tune.prompts.PointPrompt
# the data
data:
  root: DIR  # there
"""
GENERATOR = """\
model:
  prompt_source: {class_path: medsam_tune.prompts.EmbeddingPromptGenerator, init_args: {width: 8}}  # small
data: {root: DIR}
"""
NESTED = """\
# Mine. Try --model.segmenter.init_args.tuner.rank=2 or --model.segmenter.rounds=3.
seed_everything: 0
model:
  segmenter:
    class_path: medsam_tune.segmenters.InteractiveSegmenter
    init_args:
      backbone: {class_path: medsam_tune.backbone.SamBackbone}
      prompt_source: {class_path: medsam_tune.prompts.BoxPrompt}
      rounds: 2
  schedule: cosine

# the data, of which I say much
data:
  root: DIR
"""


@pytest.fixture
def upgraded(tmp_path, monkeypatch):
    """Return a function that upgrades a text by the command and returns the new one."""
    monkeypatch.chdir(tmp_path)

    def run(text):
        Path("mine.yaml").write_text(text)
        assert main(["recipes", "upgrade", "mine.yaml"]) == 0
        return Path("mine.yaml").read_text()

    return run


def test_where_only_names_change_every_line_stays(upgraded):
    expected = NAMES.replace("prompt_source", "prompts").replace("sources:", "samplers:")
    assert upgraded(NAMES) == expected
    assert Path("mine.yaml.old").read_text() == NAMES


def test_generator_gets_its_new_room_in_place(upgraded):
    expected = GENERATOR.replace("prompt_source", "prompt_encoder").replace(".prompts.", ".prompt_encoders.")
    assert upgraded(GENERATOR) == expected


def test_parts_that_a_segmenter_repeated_lie_flat_and_the_rest_keeps_its_comments(upgraded):
    new = upgraded(NESTED)
    assert new.startswith("# Mine. Try --model.tuner.rank=2 or --model.segmenter.rounds=3.\nseed_everything: 0\nmodel:\n")
    assert new.endswith("  schedule: cosine\n\n# the data, of which I say much\ndata:\n  root: DIR\n")
    assert read_yaml(Path("mine.yaml"))["model"] == {
        "backbone": {"class_path": "medsam_tune.backbone.SamBackbone"},
        "prompts": {"class_path": "medsam_tune.prompts.BoxPrompt"},
        "segmenter": {"class_path": "medsam_tune.segmenters.InteractiveSegmenter", "init_args": {"rounds": 2}},
        "schedule": "cosine",
    }


def test_what_was_changed_is_said(upgraded, capsys):
    upgraded(NESTED)
    assert capsys.readouterr().out.splitlines() == [
        "mine.yaml: upgraded; the old one is mine.yaml.old",
        "  model.segmenter.backbone: moved to model",
        "  model.segmenter.prompt_source: moved to model",
        "  model.prompt_source: now model.prompts",
    ]


def test_recipe_of_today_is_left_alone(upgraded, capsys):
    text = NAMES.replace("prompt_source", "prompts")
    assert upgraded(text) == text
    assert capsys.readouterr().out == "mine.yaml: is in the form of today already\n"
    assert not Path("mine.yaml.old").exists()


def test_earlier_copy_is_not_overwritten(upgraded, capsys):
    Path("mine.yaml.old").write_text("mine")
    Path("mine.yaml").write_text(NAMES)
    assert main(["recipes", "upgrade", "mine.yaml"]) == 2
    assert "mine.yaml.old: exists already" in capsys.readouterr().err
    assert (Path("mine.yaml").read_text(), Path("mine.yaml.old").read_text()) == (NAMES, "mine")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "mine.yaml: expected the sections of a recipe, got list"),
        ("model: {prompt_source: mine.Prompt}\n", "mine.yaml: model.prompt_source: mine.Prompt is no class of medsam_tune"),
        ("{model: {prompt_source: null}}\n", "model: is no section of its own lines"),
    ],
)
def test_file_that_cannot_be_converted_is_named_and_left_alone(text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    assert main(["recipes", "upgrade", "mine.yaml"]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert Path("mine.yaml").read_text() == text


def test_old_recipe_is_refused_with_the_way_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(NESTED)
    assert main(["run", "mine.yaml"]) == 2
    said = "mine.yaml: model.segmenter.init_args.backbone: is of an earlier version. Run: medsam-tune recipes upgrade mine.yaml"
    assert capsys.readouterr().err == f"error: {said}\n"
