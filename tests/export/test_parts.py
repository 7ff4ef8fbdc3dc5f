"""What a stranger may write into an export: nothing is constructed, imported or opened that the seams do not allow."""

import importlib
import inspect
import json
import pkgutil
import shutil
import sys
from pathlib import Path
from types import NoneType
from typing import get_args, get_type_hints

import pytest
import torch

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.export import AdapterSwitch, load_adapter, load_export, save_export
from medsam_tune.export.build import build_segmenter, without_folders
from medsam_tune.export.forms import read_tuned
from medsam_tune.export.parts import FILE_ARGUMENTS, PartReader, is_seam
from medsam_tune.fusion.base import InputFusion
from medsam_tune.losses.base import MaskLoss
from medsam_tune.prompt_encoders.base import PromptEncoder
from medsam_tune.prompts.base import PromptSampler
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.side.base import SideNetwork
from medsam_tune.tuners.base import Tuner

BACKBONE = {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": {"weights": "random_tiny"}}
LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 2}}
MODEL = {
    "backbone": BACKBONE,
    "prompts": {"class_path": "medsam_tune.prompts.BoxPrompt", "init_args": {"kind": "whole_image"}},
    "tuner": {"class_path": "medsam_tune.tuners.PeftTuner", "init_args": {"config": LORA}},
}


def part(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


def peft_tuner(class_path, **settings):
    return part("medsam_tune.tuners.PeftTuner", config=part(class_path, **settings))


ATTACKS = {
    "parser with a callback's path": {
        "side": part("medsam_tune.training.cli.MedsamCLI", args=["fit", "--trainer.callbacks=evil.Callback"], run=True)
    },
    "store with a folder to delete from": {"side": part("medsam_tune.cache.store.EmbeddingStore", folder="/home")},
    "class of torch": {"prompts": part("torch.nn.Linear", in_features=1, out_features=1)},
    "class of torch that our module imports": {"prompts": part("medsam_tune.prompts.sampling.torch.Tensor")},
    "process": {"tuner": part("subprocess.Popen", args=["true"])},
    "dunder path": {"backbone": part("medsam_tune.backbone.sam.__builtins__.type")},
    "module that runs when imported": {"tuner": part("medsam_tune.__main__.main")},
    "private class": {"fusion": part("medsam_tune.fusion.samaug._SamAugFusion")},
    "class of another seam": {"tuner": part("medsam_tune.prompts.BoxPrompt")},
    "class below a text": {"backbone": part("medsam_tune.backbone.SamBackbone", weights=part("subprocess.Popen"))},
    "class in a list": {"prompts": part("medsam_tune.prompts.CombinedPrompt", samplers=[part("subprocess.Popen")])},
    "class in a list of another seam": {"prompts": part("medsam_tune.prompts.CombinedPrompt", samplers=[BACKBONE])},
    "class where settings belong": {"prompts": part("medsam_tune.prompts.BoxPrompt", jitter=part("subprocess.Popen"))},
    "unknown argument": {"prompts": part("medsam_tune.prompts.BoxPrompt", folder="/home")},
    "argument of another type": {"backbone": part("medsam_tune.backbone.SamBackbone", seed="0; rm")},
    "argument outside the choices": {"prompts": part("medsam_tune.prompts.BoxPrompt", kind="any")},
    "key beside the class path": {"tuner": {**MODEL["tuner"], "dict_kwargs": {"x": 1}}},
    "module that peft would import": {"tuner": peft_tuner("peft.LoraConfig", megatron_config={}, megatron_core="evil")},
    "file that peft would read": {"tuner": peft_tuner("peft.LoraConfig", lora_ga_config={"cache_file": "evil"})},
    "model that peft would load": {"tuner": peft_tuner("peft.XLoraConfig", adapters={"a": "evil"})},
    "class of peft that is no configuration": {"tuner": peft_tuner("peft.PeftModel")},
    "configuration of a stranger's peft": {"tuner": peft_tuner("peftx.LoraConfig")},
    "whole segmenter of another kind": {"segmenter": part("medsam_tune.inference.predictor.Predictor", segmenter=None)},
}


@pytest.fixture
def constructed(monkeypatch):
    """Record every module and every part that is constructed from here on."""
    made = []
    initialise = torch.nn.Module.__init__

    def recorded(self, *arguments, **keywords):
        made.append(type(self))
        initialise(self, *arguments, **keywords)

    monkeypatch.setattr(torch.nn.Module, "__init__", recorded)
    monkeypatch.setattr("medsam_tune.export.parts.Part.build", lambda self, **more: made.append(self.constructor))
    return made


@pytest.mark.parametrize("changes", ATTACKS.values(), ids=ATTACKS)
def test_description_with_an_attack_is_refused_before_anything_is_constructed(changes, constructed):
    before = set(sys.modules)
    with pytest.raises(RecipeError, match=r"^model\."):
        build_segmenter(MODEL | changes)
    assert constructed == []
    imported = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not imported & {"evil", "peftx"}
    assert "medsam_tune.__main__" not in sys.modules


def test_value_that_no_network_can_have_is_refused_as_the_types_are():
    generator = part("medsam_tune.prompt_encoders.EmbeddingPromptGenerator", width=-1)
    with pytest.raises(RecipeError, match=r"^model: no network can be built from these values \(.*negative dimension"):
        build_segmenter(MODEL | {"prompts": None, "prompt_encoder": generator})


def test_planted_class_with_side_effects_is_never_constructed(monkeypatch, tmp_path):
    victim = tmp_path / "precious"
    victim.write_text("")

    class Planted:
        def __init__(self, path=str(victim)):
            victim.unlink()

    Planted.__module__ = "medsam_tune.prompts.planted"
    monkeypatch.setattr("medsam_tune.prompts.box.Planted", Planted, raising=False)
    with pytest.raises(RecipeError, match="expected a class_path of a PromptSampler, got Planted"):
        build_segmenter(MODEL | {"prompts": part("medsam_tune.prompts.box.Planted", path=str(victim))})
    assert victim.exists()


def test_class_that_a_room_borrows_from_elsewhere_is_refused_although_it_fits_the_seam(monkeypatch):
    class Foreign(SideNetwork):
        def forward(self, inputs, embeddings):
            return embeddings

    monkeypatch.setattr("medsam_tune.side.ladder.Foreign", Foreign, raising=False)
    with pytest.raises(RecipeError, match="lies outside medsam_tune"):
        build_segmenter(MODEL | {"side": part("medsam_tune.side.ladder.Foreign")})


def test_deeply_nested_description_is_refused_as_unreadable(tmp_path):
    (tmp_path / "export.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="is no JSON"):
        load_export(tmp_path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export, made once; tests plant into copies."""
    folder = tmp_path_factory.mktemp("exported") / "export"
    return save_export(folder, segmenter=build_segmenter(MODEL), model_config=MODEL, metrics={}, data_description={})


@pytest.fixture
def planted(exported, tmp_path):
    path = Path(shutil.copytree(exported, tmp_path / "export")) / "export.json"
    model = MODEL | ATTACKS["store with a folder to delete from"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": model}))
    return tmp_path / "export"


DOORS = {
    "load_export": load_export,
    "load_adapter": load_adapter,
    "AdapterSwitch": lambda folder: AdapterSwitch("a", folder),
    "read_tuned": read_tuned,
}


@pytest.mark.parametrize("load", DOORS.values(), ids=DOORS)
def test_every_reader_of_a_folder_refuses_a_planted_class(planted, load, constructed):
    with pytest.raises(RecipeError, match=r"model\.side: expected a class_path of a SideNetwork"):
        load(planted)
    assert constructed == []


def test_adapter_that_is_added_cannot_name_what_peft_would_import(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "b")
    path = tmp_path / "b" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "megatron_config": {}, "megatron_core": "evil"}))
    adapters = AdapterSwitch("a", exported)
    with pytest.raises(RecipeError, match=r"megatron_c.* would be imported, opened or downloaded"):
        adapters.add("b", tmp_path / "b")
    assert "evil" not in sys.modules
    assert adapters.names == ("a",)


# Files that a description names.


@pytest.mark.parametrize(
    "changes",
    [
        {
            "prompts": None,
            "prompt_encoder": part("medsam_tune.prompt_encoders.HarDNetPromptGenerator", arch="39ds", weights="SECRET"),
        },
        {"side": part("medsam_tune.side.LadderNetwork", weights="SECRET")},
        {
            "backbone": None,
            "prompts": None,
            "segmenter": part("medsam_tune.segmenters.TaskSegmenter", encoder_weights="SECRET", side=32),
        },
        {"backbone": part("medsam_tune.backbone.SamBackbone", weights="random_tiny", checkpoint="SECRET")},
    ],
    ids=["generator", "side", "task", "backbone"],
)
def test_no_file_that_an_export_names_is_opened(tmp_path, monkeypatch, changes):
    secret = tmp_path / "secret.pth"
    torch.save({}, secret)
    model = json.loads(json.dumps({**MODEL, "tuner": None, **changes}).replace("SECRET", str(secret)))
    opened = []
    monkeypatch.setattr("medsam_tune.backbone.weights.read_weights", opened.append)
    build_segmenter(model)
    assert opened == []


def test_every_argument_that_holds_a_file_is_declared_as_one():
    """A text that may be None could be a path, so each is either a file argument or stands in this list."""
    texts = set()
    for kind in seam_classes():
        for name, hint in get_type_hints(kind.__init__).items():
            if str in get_args(hint) and NoneType in get_args(hint):
                texts.add(name)
    assert texts <= set(FILE_ARGUMENTS)


def test_exports_keep_names_of_files_without_their_folders():
    stored = without_folders({"backbone": part("B", checkpoint="/home/jane/base.pth", weights="sam_vit_b"), "loss": None})
    assert stored == {"backbone": part("B", checkpoint="base.pth", weights="sam_vit_b"), "loss": None}


# The reader itself.


def seam_classes():
    """Every class of this package that a description may name."""
    found = set()
    for seam in (Backbone, Tuner, PromptEncoder, PromptSampler, InputFusion, SideNetwork, Segmenter, MaskLoss):
        room = importlib.import_module(seam.__module__.rpartition(".")[0])
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)
        waiting = [seam]
        while waiting:
            kind = waiting.pop()
            waiting += kind.__subclasses__()
            if kind.__module__.startswith("medsam_tune.") and not inspect.isabstract(kind):
                found.add(kind)
    return sorted(found, key=str)


@pytest.mark.parametrize("kind", seam_classes(), ids=lambda kind: kind.__name__)
def test_annotations_of_every_class_can_be_read_and_accept_its_defaults(kind):
    assert is_seam(kind)
    defaults = {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in inspect.signature(kind).parameters.items()
        if p.default is not p.empty
    }
    required = [name for name, p in inspect.signature(kind).parameters.items() if p.default is p.empty]
    plain = [name for name in required if name not in ("args", "kwargs")]
    read = PartReader(opens_files=True).arguments(kind, defaults, "model.part", given=plain)
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in read.items()} == defaults


def test_numbers_lists_and_tuples_are_read_as_annotated():
    reader = PartReader()
    read = reader.part(part("medsam_tune.tuners.AdaptFormer", rank=2, scale=1, blocks=[0, 1]), Tuner, "model.tuner")
    assert read.arguments == {"rank": 2, "scale": 1, "blocks": (0, 1)}
    for wrong in ({"rank": 2.0}, {"rank": True}, {"scale": float("nan")}, {"blocks": [0]}, {"blocks": "01"}):
        with pytest.raises(RecipeError, match=r"^model\.tuner\.(rank|scale|blocks): expected .* got "):
            reader.part(part("medsam_tune.tuners.AdaptFormer", **wrong), Tuner, "model.tuner")
