"""Sweep files: what W&B's agent would start, and what is refused before anything runs."""

import pytest
import yaml

from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.sweeps import expand_command, read_sweep
from medsam_tune.training.overrides import normalise_overrides

COMMAND = ["${env}", "medsam-tune", "run", "recipes/lora.yaml", "${args}"]
FILE = {
    "command": COMMAND,
    "method": "random",
    "metric": {"name": "val/dice", "goal": "maximize"},
    "parameters": {"model.tuner.rank": {"values": [1, 2]}, "model.optimizer.lr": {"min": 0.0001, "max": 0.01}},
}
VALUES = {"model.tuner.rank": 4, "model.tuner.blocks": [8, 11], "trainer.deterministic": True}


def read(tmp_path, **changes):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(FILE | changes))
    return read_sweep(path)


@pytest.mark.parametrize("macro", ["args", "args_no_hyphens", "args_no_equals"])
def test_words_are_those_of_the_agent_and_mean_the_same_overrides(macro):
    # Imported here, for it takes seconds of the collection of every worker otherwise.
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    agent = create_sweep_command_args({"args": {key: {"value": value} for key, value in VALUES.items()}})
    words = expand_command(["medsam-tune", "run", "lora", f"${{{macro}}}"], VALUES)
    assert words[3:] == agent[macro]
    assert normalise_overrides(words[3:]) == [
        "--model.tuner.rank=4",
        "--model.tuner.blocks=[8, 11]",
        "--trainer.deterministic=True",
    ]


def test_ranges_take_the_distribution_of_their_bounds(tmp_path):
    sweep = read(
        tmp_path,
        parameters={
            "a": {"min": 1, "max": 3},
            "b": {"min": 0.5, "max": 3},
            "c": {"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"},
            "d": {"value": "x"},
        },
    )
    kinds = {name: (p.distribution, p.low, p.high, p.values) for name, p in sweep.parameters.items()}
    assert kinds == {
        "a": ("int_uniform", 1, 3, ()),
        "b": ("uniform", 0.5, 3, ()),
        "c": ("log_uniform_values", 1e-4, 1e-2, ()),
        "d": ("categorical", 0.0, 0.0, ("x",)),
    }
    assert (sweep.name, sweep.maximise, sweep.metric) == ("mine", True, "val/dice")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metod": "grid"}, r"mine\.yaml: metod: no key of a W&B sweep\. Known: command"),
        ({"method": "grid"}, r"parameters\.model\.optimizer\.lr: a grid needs values, not a range"),
        ({"method": "best"}, "method: expected one of grid, random, bayes, got 'best'"),
        ({"metric": {"name": "val/dice"}}, "metric: expected a name and a goal"),
        ({"parameters": {}}, "parameters: expected recipe keys"),
        ({"parameters": {"a": {"values": []}}}, r"parameters\.a\.values: expected a list"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, r"parameters\.a: min must be below max, got 2 and 1"),
        ({"parameters": {"a": {"min": 2}}}, r"parameters\.a\.max: uniform needs a number, got None"),
        ({"parameters": {"a": {"mu": 0, "sigma": 1, "distribution": "normal"}}}, "'normal' does not run here"),
        (
            {"command": ["python", "train.py", "${args}"]},
            r"command: must start `medsam-tune run RECIPE`, got 'python train",
        ),
        ({"command": COMMAND[:4]}, r"command: has no \$\{args\}, so every run would be the same"),
        ({"command": [*COMMAND, "${args_json}"]}, r"command: \$\{args_json\} is not understood"),
        ({"command": None}, "command: expected a list of words, got None"),
        ({"parameters": {"a": {"min": 0.0, "max": 1, "distribution": "log_uniform_values"}}}, r"a\.min: .* begins above 0"),
        ({"parameters": {"a": {"min": 0, "max": 1, "q": 0, "distribution": "q_uniform"}}}, r"a\.q: expected a step above 0"),
        ({"parameters": {"a": {"min": 0.0, "max": float("inf")}}}, r"a\.max: uniform needs a number, got inf"),
        ({"parameters": {"a": {"min": 1.5, "max": 3.7, "distribution": "int_uniform"}}}, r"a\.min: int_uniform needs a whole"),
        ({"parameters": {"a": {"min": False, "max": 2}}}, r"a\.min: int_uniform needs a number, got False"),
        ({"parameters": {"a": {"value": float("nan")}}}, r"a\.value: nan has no form on a command line"),
        ({"parameters": {"a": {"parameters": {}}}}, r"parameters\.a\.parameters: expected recipe keys"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}, "a.b": {"value": 2}}}, r"parameters\.a\.b: stands twice"),
        ({"command": ["medsam-tune", "run", "${args}"]}, "command: must start `medsam-tune run RECIPE`"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, r"early_terminate\.min_iter: expected a whole number"),
        ({"run_cap": 0}, "run_cap: expected a number of at least 1"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate: expected type: hyperband with min_iter or max_iter"),
    ],
)
def test_faulty_file_is_refused_by_key(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, **changes)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: no such sweep file"):
        read_sweep(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match=r"broken\.yaml: line 1: is no YAML \(expected"):
        read_sweep(tmp_path / "broken.yaml")


PEOPLE = """\
command: ["${env}", medsam-tune, run, tiny.yaml, "${args}"]
method: grid
metric: {name: val/dice, goal: maximize}
parameters:
  model:
    parameters:
      prompt_encoder: {parameters: {width: {values: [4, 8]}}}
  model.optimizer.lr: {values: [1e-5, 3.0e-4]}
  data.augmentation: {value: null}
  data.split.seed: {value: 2024-01-01}
"""


def test_file_as_people_write_it_is_understood(tmp_path):
    path = tmp_path / "people.yaml"
    path.write_text(PEOPLE)
    parameters = {name: parameter.values for name, parameter in read_sweep(path).parameters.items()}
    assert parameters == {
        "model.prompt_encoder.width": (4, 8),
        "model.optimizer.lr": (1e-5, 3e-4),
        "data.augmentation": (None,),
        "data.split.seed": ("2024-01-01",),
    }
    words = expand_command(["${args}"], {"data.augmentation": None, "model.x": [1, None]})
    assert words == ["--data.augmentation=null", "--model.x=[1, null]"]


def test_bounds_in_scientific_notation_are_numbers(tmp_path):
    path = tmp_path / "people.yaml"
    head = PEOPLE.partition("parameters:")[0].replace("grid", "random")
    path.write_text(head + "parameters: {lr: {distribution: log_uniform_values, min: 1e-5, max: 1E-2}}\n")
    parameter = read_sweep(path).parameters["lr"]
    assert (parameter.low, parameter.high) == (1e-5, 1e-2)


def test_null_of_the_agent_is_null_of_the_parser():
    # Imported here, for it takes seconds of the collection of every worker otherwise.
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    agent = create_sweep_command_args({"args": {"data.augmentation": {"value": None}}})
    assert normalise_overrides(agent["args"]) == ["--data.augmentation=null"]


FOREIGN = {
    "in a value": {"parameters": {"model.tuner": {"values": ["medsam_tune.tuners.SsfTuner", "stranger.Tuner"]}}},
    "in the command": {"command": [*COMMAND, "--model.tuner=stranger.Tuner"]},
    "as another recipe": {"command": [*COMMAND, "--config", "planted.yaml"]},
    "as a value that is an option": {
        "command": [*COMMAND[:4], "${args_no_equals}"],
        "parameters": {"run.folder": {"value": "--model.tuner=stranger.Tuner"}},
    },
    "as W&B's program": {"program": "stranger.py", "command": ["${env}", "${program}", *COMMAND[2:]]},
    "as a job of W&B Launch": {"job": "stranger/project/job:latest"},
}


@pytest.mark.parametrize("planted", FOREIGN.values(), ids=FOREIGN)
def test_a_sweep_file_starts_only_what_the_package_holds_unless_it_is_trusted(tmp_path, monkeypatch, planted):
    (tmp_path / "stranger.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "planted.yaml").write_text("model: {tuner: stranger.Tuner}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match=r"mine\.yaml: .* names .*--trust"):
        read(tmp_path, **planted)
    assert read_sweep(tmp_path / "mine.yaml", trusted=True).recipe == "recipes/lora.yaml"


def test_a_recipe_of_foreign_code_is_no_recipe_of_a_sweep_without_trust(tmp_path, monkeypatch, capsys):
    (tmp_path / "stranger.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "planted.yaml").write_text("model: {tuner: stranger.Tuner}")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(FILE | {"command": [*COMMAND[:3], "planted.yaml", "${args}"]}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["sweep", "mine.yaml", "--local", "--trials=1"]) == 2
    assert "planted.yaml: model.tuner names stranger.Tuner" in capsys.readouterr().err


def test_the_recipe_of_a_sweep_is_no_value_of_it(tmp_path):
    with pytest.raises(RecipeError, match="command: must start `medsam-tune run RECIPE`"):
        read(tmp_path, command=["medsam-tune", "run", "${args_no_hyphens}", "lora"], parameters={"other": {"value": "x.yaml"}})
