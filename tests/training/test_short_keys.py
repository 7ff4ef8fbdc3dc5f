"""Short keys mean the one key of the resolved recipe that ends so."""

import subprocess
import sys

import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.training.module import default_optimizer
from medsam_tune.training.short_keys import ALIASES, DEFAULT_OPTIMIZER, expand_class_names, expand_short_keys
from tests.training.tiny_runs import build

WHOLE = {"model", "data", "trainer", "run", "seed_everything", "config", "ckpt_path", "print_config"}
KEYS = [
    "seed_everything",
    "model",
    "model.backbone",
    "model.backbone.class_path",
    "model.backbone.init_args",
    "model.backbone.init_args.weights",
    "model.prompt_encoder.init_args.weights",
    "model.prompt_encoder.init_args.width",
    "model.tuner.init_args.config.init_args.r",
    "model.tuner.init_args.blocks",
    "model.optimizer.init_args.lr",
    "data.source.init_args.axis",
    "data.source.init_args.slices.count",
    "data.source.init_args.train_slices.count",
    "trainer.max_epochs",
]


def expand(*words, keys=KEYS):
    return expand_short_keys(words, whole=WHOLE, keys_of=lambda known: keys)


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("--rank=4", "--model.tuner.init_args.config.init_args.r=4"),
        ("--config.r=4", "--config.r=4"),
        ("--width=32", "--model.prompt_encoder.init_args.width=32"),
        ("--prompt_encoder.width=32", "--model.prompt_encoder.init_args.width=32"),
        ("--weights=sam_vit_b", "--model.backbone.init_args.weights=sam_vit_b"),
        ("--prompt_encoder.weights=x", "--model.prompt_encoder.init_args.weights=x"),
        ("--lr=1e-5", "--model.optimizer.init_args.lr=1e-5"),
        ("--slices.count=3", "--data.source.init_args.slices.count=3"),
        ("--backbone=mine.Backbone", "--model.backbone=mine.Backbone"),
        ("--blocks+=3", "--model.tuner.init_args.blocks+=3"),
        ("--axis=a=b\nc", "--data.source.init_args.axis=a=b\nc"),
    ],
)
def test_word_is_written_out(word, written):
    assert expand(word) == [written]


def test_one_device_of_several_is_two_keys_of_the_trainer():
    assert expand("--device=cuda:1") == ["--trainer.accelerator=cuda", "--trainer.devices=[1]"]
    assert expand("--device=cpu") == ["--trainer.accelerator=cpu"]


@pytest.mark.parametrize(
    "word",
    ["--model.tuner.rank=4", "--data.root=x", "--config=a.yaml", "--ckpt_path=last", "--print_config", "fit", "--data=d.yaml"],
)
def test_word_that_is_whole_stays_and_needs_no_parsing(word):
    assert expand_short_keys([word], whole=WHOLE, keys_of=None) == [word]


def test_aliases_need_no_parsing_so_they_may_give_what_the_recipe_lacks():
    words = ["--data=DIR", "--epochs=3", "--batch=2", "--steps=9", "--seed=1"]
    written = expand_short_keys(words, whole=WHOLE, keys_of=None)
    assert written == [f"--{ALIASES[word[2:].partition('=')[0]]}={word.partition('=')[2]}" for word in words]
    assert written[0] == "--data.root=DIR"


def test_several_keys_that_end_so_are_listed():
    with pytest.raises(
        RecipeError,
        match=r"^count: several keys of this recipe end so: data\.source\.slices\.count, data\.source\.train_slices\.count\.",
    ):
        expand("--count=3")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--widht=3", "Did you mean width"),
        ("--rnk=3", "Did you mean rank"),
        ("--epoch=3", "Did you mean epochs"),
        ("--modle.r=1", "Did you mean model"),
        ("--zzz=1", "`--print_config`"),
    ],
)
def test_key_that_ends_no_other_is_refused_with_the_near_one(word, hint):
    with pytest.raises(RecipeError, match=rf"no such key, and no key of this recipe ends so\. {hint}"):
        expand(word)


def test_class_that_a_short_key_names_decides_what_the_others_mean():
    asked = []

    def keys_of(known):
        asked.append(known)
        other = "--model.tuner=mine.Adapter" in known
        return ["model.tuner", "model.tuner.init_args.rank" if other else "model.tuner.init_args.config.init_args.r"]

    words = ["--rank=4", "--config=a.yaml", "--tuner=mine.Adapter"]
    written = expand_short_keys(words, whole=WHOLE, keys_of=keys_of)
    assert written == ["--model.tuner.init_args.rank=4", "--config=a.yaml", "--model.tuner=mine.Adapter"]
    assert asked == [["--config=a.yaml"], ["--config=a.yaml", "--model.tuner=mine.Adapter"]]


def test_our_classes_need_no_path():
    words = ["--model.tuner=BottleneckAdapter", "--x=Nothing", "--data.root=a.B", "--model.loss=mine.BceDiceLoss"]
    assert expand_class_names(words) == ["--model.tuner=medsam_tune.tuners.BottleneckAdapter", *words[1:]]


def test_recipe_is_built_from_short_keys(workplace):
    cli = build("--width=4", "--epochs=1", "--seed=7", "--optimizer=torch.optim.SGD", "--lr=1e-5", "--folder=there")
    config = cli.config.as_dict()
    assert config["trainer"]["max_epochs"] == 1
    assert config["seed_everything"] == 7
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-5
    assert cli.run_folder.path.is_relative_to(workplace / "there")


def test_learning_rate_of_a_recipe_without_optimizer_writes_the_default_one_out():
    def keys_of(words):
        named = any(word.startswith("--model.optimizer=") for word in words)
        return ["model.optimizer", *(["model.optimizer.init_args.lr"] if named else []), "data.root"]

    words = expand_short_keys(["--config=a.yaml", "--lr=0.01"], whole={"model", "config"}, keys_of=keys_of)
    assert words == ["--config=a.yaml", *DEFAULT_OPTIMIZER, "--model.optimizer.init_args.lr=0.01"]


def test_default_optimizer_written_out_is_the_default_optimizer():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    decay = float(DEFAULT_OPTIMIZER[1].partition("=")[2])
    assert default_optimizer(parameters).defaults == torch.optim.AdamW(parameters, weight_decay=decay).defaults


def test_class_that_a_recipe_names_without_its_path_is_loaded_wherever_it_stands():
    code = (
        "import sys; from medsam_tune.training.short_keys import load_named_classes; "
        "load_named_classes({'model': {'tuner': {'class_path': 'ScaleShiftTuning'}, 'x': ['NormTuning', 'Nobody', 3]}}); "
        "print(*sorted(n for n in sys.modules if n.startswith('medsam_tune.tuners.')))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "medsam_tune.tuners.ssf" in said
    assert "medsam_tune.tuners.norm" in said
    assert "medsam_tune.tuners.peft_tuner" not in said
