"""``run.compile``: the weights of the plain run, blocks as they were afterwards, and what is refused."""

import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import RecipeError
from medsam_tune.prompts import BoxPrompt
from medsam_tune.training import compiled
from medsam_tune.training.module import TuningModule
from medsam_tune.tuners import FullTuning
from tests.training.tiny_runs import only_run, run, write_full_recipe

QUICK = ("--run.report=false", "--run.baselines=false", "--run.calibration=false", "--trainer.max_epochs=1")


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that a backend of ours was given; it runs them as they are."""
    found = []
    monkeypatch.setattr(compiled, "BACKEND", lambda graph, inputs: found.append(graph) or graph.forward)
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")  # Dynamo looks at .grad of what is no leaf, and takes its own warning for a fault
def test_compiled_run_ends_with_the_weights_of_the_plain_one_under_their_plain_names(workplace, graphs):
    write_full_recipe(workplace)
    weights = {}
    for folder, words in (("plain", ()), ("compiled", ("--run.compile=true",))):
        assert run(*QUICK, *words, f"--run.folder={folder}") == 0
        weights[folder] = torch.load(only_run(folder).checkpoints / "last.ckpt", weights_only=True)["state_dict"]
        assert bool(graphs) == (folder == "compiled")
    assert weights["plain"].keys() == weights["compiled"].keys()
    for name, tensor in weights["plain"].items():
        torch.testing.assert_close(weights["compiled"][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_blocks_are_compiled_in_place_and_taken_back(graphs):
    module = TuningModule(backbone=SamBackbone("random_tiny"), prompts=BoxPrompt(), tuner=FullTuning())
    names, blocks = list(module.state_dict()), compiled.blocks(module)
    assert len(blocks) == len(module.segmenter.backbone.image_encoder.blocks)
    callback = compiled.CompiledEncoder()
    callback.on_fit_start(None, module)
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert list(module.state_dict()) == names
    callback.on_fit_end(None, module)
    assert all(block._compiled_call_impl is None for block in blocks)


@pytest.mark.parametrize(
    ("cached", "strategy", "message"),
    [
        (True, "auto", r"^run\.compile: the encoder runs once an image, not in each step"),
        (False, "fsdp", r"^run\.compile: was never tried on shards"),
    ],
)
def test_what_compiling_does_not_serve_is_refused(cached, strategy, message):
    module = TuningModule(backbone=SamBackbone("random_tiny"), prompts=BoxPrompt(), tuner=FullTuning())
    compiled.check_compiled(module, cached=False, strategy="ddp")
    with pytest.raises(RecipeError, match=message):
        compiled.check_compiled(module, cached=cached, strategy=strategy)


def test_missing_compiler_is_said_in_its_own_words(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no g++ found")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    torch._dynamo.reset()
    with pytest.raises(
        RecipeError, match=r"^run\.compile: torch\.compile fails on cpu: .*no g\+\+ found.* It needs a C\+\+ compiler"
    ):
        compiled.check_compiler(torch.device("cpu"))
