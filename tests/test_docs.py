"""What documents say holds: links lead somewhere, commands and recipes exist, recipes and commands parse, shown code runs."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

from medsam_tune.cli import LIGHTNING_COMMANDS, OWN_COMMANDS, RUN_COMMANDS, of_run, predict
from medsam_tune.cli import cache as cache_command
from medsam_tune.cli import evaluate as evaluate_command
from medsam_tune.cli import recipes as recipes_command
from medsam_tune.cli import weights as weights_command
from medsam_tune.losses import BceDiceLoss
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.sweeps.repeats import find_repeats
from medsam_tune.training.cli import MedsamCLI
from medsam_tune.training.overrides import normalise_overrides
from medsam_tune.training.short_keys import expand_class_names, expand_short_keys
from tests.factories import make_batch
from tests.training.tiny_runs import forget_run, write_images

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# A file under sweeps/ is one of W&B's, not a recipe.
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "sweeps")
# The parts of the bundled recipe, on a network that trains in a second.
TINY_LORA = """\
model:
  backbone: {class_path: medsam_tune.backbone.SamBackbone, init_args: {weights: random_tiny}}
  tuner:
    class_path: medsam_tune.tuners.PeftTuner
    init_args: {config: {class_path: peft.LoraConfig, init_args: {r: 8}}, parts: [image_encoder.attention.qkv]}
  prompts: {class_path: medsam_tune.prompts.BoxPrompt}
data:
  root: images
  source: {class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}
  cache_embeddings: false
trainer: {accelerator: cpu, enable_progress_bar: false, logger: false}
"""
WRITE_A_METHOD = ROOT / "docs" / "how-to" / "write-a-method.md"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_RECIPE = re.compile(r"recipes/[\w./*-]+\.yaml")
_COMMAND = re.compile(r"(?:medsam-tune|lightning|-m medsam_tune) +([a-z_]+)\b(.*)")
_ACTIONS = {"cache": cache_command, "evaluate": evaluate_command, "recipes": recipes_command, "weights": weights_command}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def code_blocks(path, *languages):
    return [code for language, code in _FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def shown_commands(path):
    """Every command of a document as words, without the program's name, comments and shell around it."""
    lines = [line for block in code_blocks(path, "bash", "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += _INLINE.findall(_FENCE.sub("", path.read_text(encoding="utf-8")))
    # What the scheduler of a cluster fills in.
    found = [_COMMAND.search(line.replace("$SLURM_ARRAY_TASK_ID", "0")) for line in lines]
    return [[match[1], *shlex.split(match[2].partition(";")[0], comments=True)] for match in found if match]


def of_a_run(words):
    return words[0] in RUN_COMMANDS and len(words) > 1 and "--config" not in words and "..." not in words


ALL_COMMANDS = [
    pytest.param(words, id=f"{relative(path)}: {' '.join(words)}") for path in DOCUMENTS for words in shown_commands(path)
]
RUNNING = {"run", *LIGHTNING_COMMANDS}
# The same options stand in several documents, and parsing takes a while.
SHOWN_WORDS = [case.values[0] for case in ALL_COMMANDS]
SHOWN_RUNS = sorted(
    {shlex.join(words) for words in SHOWN_WORDS if words[0] in RUNNING and len(words) > 2 and not of_a_run(words)}
)


@pytest.fixture(scope="module")
def recipe_parser():
    class ParserOnly(MedsamCLI):
        def instantiate_classes(self):
            """Build nothing: this is about keys and types."""

    recipe = ROOT / "recipes" / "autosam.yaml"
    return ParserOnly(["--config", str(recipe)], recipe_file=recipe, command="test", run=False).parser


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_relative_link_leads_to_a_file(document):
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    targets = [link.partition("#")[0] for link in _LINK.findall(text) if not re.match(r"[a-z]+:|#", link)]
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_every_command_shown_exists(words):
    command, *rest = words
    assert command in {*OWN_COMMANDS, *LIGHTNING_COMMANDS}
    if of_a_run(words):
        parser = predict.parser() if command == "predict" else of_run.parser_of(command)
        parsed, overrides = parser.parse_known_args(rest)
        normalise_overrides([] if command == "predict" else overrides)
        assert command == "predict" or parsed.run.startswith(("RUN", "runs/"))
        assert command != "predict" or not overrides
    if command in _ACTIONS and rest and rest != ["..."]:
        _ACTIONS[command].parser().parse_args(rest)


def test_the_commands_the_readme_promises_are_found_by_this_test():
    shown = [words for words in shown_commands(ROOT / "README.md") if words[0] == "run"]
    assert ["run", "recipes/autosam.yaml"] in shown
    assert ["run", "RECIPE", "--ckpt_path=last"] in shown


@pytest.mark.parametrize("document", [*DOCUMENTS, *RECIPES], ids=relative)
def test_every_recipe_mentioned_exists(document):
    mentioned = set(_RECIPE.findall(document.read_text(encoding="utf-8")))
    assert sorted(name for name in mentioned if not list(ROOT.glob(name))) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=relative)
def test_a_recipe_opens_with_the_command_that_starts_it(recipe):
    start = re.search(r"^# Start: +medsam-tune run (\S+)", recipe.read_text(encoding="utf-8"), re.MULTILINE)
    assert start is not None
    assert start[1] == relative(recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=relative)
def test_every_recipe_is_in_the_table_of_methods(recipe):
    table = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert relative(recipe) in table or f"`{recipe.name}`" in table


@pytest.mark.parametrize("recipe", RECIPES, ids=relative)
def test_every_recipe_parses(recipe, recipe_parser):
    config = recipe_parser.parse_args([f"--config={recipe}", "--data.root=DIR"])
    assert config.data.root == "DIR"


def test_a_recipe_with_an_unknown_key_would_not_parse(recipe_parser, tmp_path):
    recipe = tmp_path / "faulty.yaml"
    text = (ROOT / "recipes" / "autosam.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("gen_size", "gen_sise"), encoding="utf-8")
    with pytest.raises(Exception, match="gen_sise"):
        recipe_parser.parse_args([f"--config={recipe}"])


@pytest.mark.slow
@pytest.mark.parametrize("command", SHOWN_RUNS)
def test_every_shown_run_parses(command, recipe_parser, shown_files):
    def keys_of(known):
        return [str(key) for key in recipe_parser.parse_args(known).keys(branches=True)]

    whole = {str(key).partition(".")[0] for key in recipe_parser.get_defaults().keys(branches=True)}
    words = parser_words(shlex.split(command))
    if (repeats := find_repeats(words)) is not None:
        words = [*repeats.words, *repeats.repetitions[0].words]
    words = expand_short_keys(words, whole=whole, keys_of=keys_of)
    recipe_parser.parse_args(expand_class_names(words))


@pytest.fixture
def shown_files(tmp_path, monkeypatch):
    """A folder with the files that the documents' commands speak of."""
    for name, code in method_files().items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    (tmp_path / "more.yaml").write_text("trainer: {max_epochs: 1}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def method_files():
    prompts, tuners = (code for code in code_blocks(WRITE_A_METHOD, "python") if "class " in code)
    return {"my_prompts.py": prompts, "my_tuners.py": tuners}


def parser_words(words):
    """Turn a shown command into words for the recipe parser; a placeholder for a recipe stands for the default one."""
    recipe, *overrides = [word for word in words[1:] if word not in {"--config", "--print_config"} and "${" not in word]
    named = (ROOT / recipe, ROOT / "recipes" / f"{recipe}.yaml", ROOT / "recipes" / "autosam.yaml")
    known = next(path for path in named if path.is_file())
    words = normalise_overrides(overrides)
    repeats = find_repeats(words)
    of_one = words if repeats is None else [*repeats.words, *repeats.repetitions[0].words]
    return [f"--config={known}", *(word.replace("$seed", "0") for word in of_one)]


def test_a_shown_run_keeps_its_overrides_on_the_way_to_the_parser():
    words = shlex.split("predict --config recipes/msa.yaml --ckpt_path best --print_config data.root=NEW")
    assert parser_words(words) == [f"--config={ROOT / 'recipes' / 'msa.yaml'}", "--ckpt_path=best", "--data.root=NEW"]


def test_the_prompt_encoder_of_the_how_to_learns(shown_files, tiny_backbone):
    encoder = importlib.import_module("my_prompts").LearnedTokens(n_tokens=3)
    segmenter = SamSegmenter(SamParts(tiny_backbone, prompt_encoder=encoder))
    batch = make_batch(objects=(2, 1))
    torch.stack(list(BceDiceLoss()(segmenter(batch), batch).values())).sum().backward()
    assert [name for name, p in segmenter.named_parameters() if p.requires_grad] == ["prompt_encoder.tokens"]
    assert encoder.tokens.grad.abs().sum() > 0


def test_the_tuner_of_the_how_to_trains_decoder_biases_alone(shown_files, tiny_backbone):

    segmenter = SamSegmenter(SamParts(tiny_backbone, tuner=importlib.import_module("my_tuners").DecoderBiases()))
    batch = make_batch()
    torch.stack(list(BceDiceLoss()(segmenter(batch), batch).values())).sum().backward()
    trained = [name for name, p in segmenter.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("backbone.mask_decoder.") and name.endswith(".bias") for name in trained)
    assert [name for name, p in segmenter.named_parameters() if (p.grad is not None) is not p.requires_grad] == []
    assert segmenter.not_precomputable() is None


def test_the_notebooks_code_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "images")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "lora.yaml").write_text(TINY_LORA, encoding="utf-8")
    (tmp_path / "new.png").write_bytes((tmp_path / "images" / "images" / "c0_0.png").read_bytes())
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in code_blocks(ROOT / "docs" / "how-to" / "notebook.md", "python"):
        exec(code, names)
    assert names["masks"].shape == (1, 16, 20)
    assert names["run"].config["model"]["tuner"]["init_args"]["config"]["init_args"]["r"] == 4
    assert (names["run"].folder / "export" / "export.json").is_file()
    forget_run()
