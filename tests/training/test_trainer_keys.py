"""Every key of Lightning's trainer either works in a whole run, or is refused in one line before anything is computed."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.training import half_precision
from medsam_tune.training.half_precision import half_precision_fault
from medsam_tune.training.trainer_keys import check_trainer_parts, check_trainer_values
from tests.training.tiny_runs import only_run, run

CALLBACK = "callbacks=lightning.pytorch.callbacks."
PLUGIN = "plugins=lightning.pytorch.plugins."

# Each row is one run; keys that do not touch each other share one.
WORKS = [
    ("accelerator=auto", "devices=1", "num_nodes=1", "strategy=auto", "precision=32-true"),
    ("strategy=single_device", "sync_batchnorm=true", "precision=bf16-mixed", "use_distributed_sampler=true"),
    ("precision=16-mixed", "gradient_clip_val=0.5", "gradient_clip_algorithm=value"),
    ("logger=false", "log_every_n_steps=0", "enable_progress_bar=true", "enable_model_summary=true"),
    ("logger=lightning.pytorch.loggers.CSVLogger", "logger.save_dir=csv", "log_every_n_steps=1"),
    ("max_epochs=-1", "max_steps=2", "min_steps=9"),
    ("max_epochs=null", "max_steps=2"),
    ("max_epochs=null", "max_time=00:00:00:01"),
    ("min_epochs=3", "check_val_every_n_epoch=5", "limit_train_batches=2", "limit_predict_batches=0"),
    ("limit_train_batches=0.5", "limit_val_batches=1", "limit_test_batches=1", "num_sanity_val_steps=0"),
    ("overfit_batches=1", "num_sanity_val_steps=-1"),
    ("overfit_batches=0.1",),
    ("val_check_interval=0.5", "enable_checkpointing=true"),
    ("val_check_interval=5", "check_val_every_n_epoch=null"),
    ("val_check_interval=00:00:00:01", "reload_dataloaders_every_n_epochs=1"),
    ("accumulate_grad_batches=100", "gradient_clip_val=0", "enable_autolog_hparams=false", "barebones=false"),
    ("deterministic=true", "benchmark=false", "inference_mode=false", "profiler=simple", "detect_anomaly=true"),
    ("deterministic=warn", "benchmark=true", "profiler=advanced", f"{PLUGIN}environments.LightningEnvironment"),
    (f"{CALLBACK}EarlyStopping", "callbacks.monitor=val/dice", "callbacks.mode=max", "fast_dev_run=false"),
    (f"{CALLBACK}ModelCheckpoint", "callbacks.every_n_train_steps=1", "callbacks.save_top_k=-1"),
    (f"{CALLBACK}Timer", "callbacks.duration=00:00:00:01", "callbacks.interval=step"),
    (f"{CALLBACK}LearningRateMonitor",),
    (f"{CALLBACK}TQDMProgressBar",),
    (f"{CALLBACK}DeviceStatsMonitor",),
    (f"{CALLBACK}EMAWeightAveraging", "callbacks.decay=0.5"),
    (f"{CALLBACK}WeightAveraging",),
]

REFUSED = [
    (["accelerator=gpu"], "trainer: No supported gpu backend found"),
    (["accelerator=tpu"], "trainer: Requirement 'torch_xla"),
    (["accelerator=quantum"], "trainer.accelerator: You selected an invalid accelerator name"),
    (["strategy=dpp"], "trainer.strategy: You selected an invalid strategy name"),
    (
        ["strategy=deepspeed"],
        "trainer.strategy: deepspeed: a run's checkpoints are of one whole network. Use auto, ddp or fsdp.",
    ),
    (["strategy=deepspeed_stage_2"], "trainer.strategy: deepspeed_stage_2: "),
    (["strategy=ddp_spawn", "devices=2"], "trainer.strategy: ddp_spawn: "),
    (["devices=0"], "trainer.devices: `Trainer(devices='0')` value is not a valid input"),
    (["num_nodes=0"], "trainer.num_nodes: expected a number of at least 1, got 0"),
    (["precision=bf16-true"], "trainer.precision: bf16-true casts the whole network"),
    (["precision=16-true"], "trainer.precision: 16-true casts the whole network"),
    (["precision=64-true"], "trainer.precision: 64-true casts the whole network"),
    (["precision=transformer-engine"], "trainer.precision: transformer-engine casts the whole network"),
    (["precision=8"], "trainer.precision: expected one of"),
    ([f"{PLUGIN}HalfPrecision"], "trainer.plugins: HalfPrecision casts the whole network"),
    ([f"{PLUGIN}DoublePrecision"], "trainer.plugins: DoublePrecision casts the whole network"),
    ([f"{PLUGIN}io.TorchCheckpointIO"], "trainer.plugins: TorchCheckpointIO: a run writes its checkpoints itself."),
    ([f"{PLUGIN}io.AsyncCheckpointIO"], "trainer.plugins: AsyncCheckpointIO: a run writes its checkpoints itself."),
    (["logger=Nope"], "trainer.logger: there is no class Nope."),
    (["fast_dev_run=3"], "trainer.fast_dev_run: writes no checkpoint, so there is nothing to test and export."),
    (["max_epochs=0"], "trainer.max_epochs: is 0, so nothing would be trained."),
    (["max_epochs=-2"], "trainer.max_epochs: expected a number of at least -1, got -2."),
    (["max_epochs=null"], "trainer.max_epochs: is null, and nothing else ends the training."),
    (["max_steps=0"], "trainer.max_steps: is 0, so nothing would be trained."),
    (["max_steps=-5"], "trainer.max_steps: expected a number of at least -1, got -5."),
    (["min_epochs=-1"], "trainer.min_epochs: expected a number of at least 0, got -1."),
    (["min_steps=-1"], "trainer.min_steps: expected a number of at least 0, got -1."),
    (["max_time=tomorrow"], "trainer.max_time: `Timer(duration='tomorrow')` is not a valid duration."),
    (["limit_train_batches=0"], "trainer.limit_train_batches: is 0, so nothing would be trained."),
    (["limit_train_batches=0.01"], "trainer.limit_train_batches: 0.01 of 3 batches is less than one. Set it to 1,"),
    (["limit_train_batches=-1"], "trainer.limit_train_batches: expected a number of at least 0, got -1"),
    (["limit_val_batches=0"], "trainer.limit_val_batches: is 0, so nothing would choose the best weights."),
    (["limit_val_batches=0.1"], "trainer.limit_val_batches: 0.1 of 1 batches is less than one."),
    (["limit_test_batches=0"], "trainer.limit_test_batches: is 0, so nothing would test."),
    (["limit_test_batches=0.1"], "trainer.limit_test_batches: 0.1 of 2 batches is less than one."),
    (["limit_predict_batches=-1"], "trainer.limit_predict_batches: expected a number of at least 0, got -1"),
    (["overfit_batches=-1"], "trainer.overfit_batches: expected a number of at least 0, got -1"),
    (["val_check_interval=0"], "trainer.val_check_interval: expected a part of an epoch up to 1.0"),
    (["val_check_interval=4"], "trainer.val_check_interval: 4 batches are more than the 3 of an epoch."),
    (["val_check_interval=2", "limit_train_batches=1"], "trainer.val_check_interval: 2 batches are more than the 1 of an"),
    (["val_check_interval=soon"], "trainer.val_check_interval: Invalid time format for `val_check_interval`: 'soon'."),
    (["check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch: expected a number of at least 1, got 0."),
    (["num_sanity_val_steps=-3"], "trainer.num_sanity_val_steps: expected a number of at least -1, got -3."),
    (["log_every_n_steps=-1"], "trainer.log_every_n_steps: expected a number of at least 0, got -1."),
    (["enable_checkpointing=false"], "trainer.enable_checkpointing: is false, so nothing of the training would be kept."),
    (["enable_progress_bar=7"], "trainer.enable_progress_bar: expected bool or null, got 7."),
    (["enable_model_summary=7"], "trainer.enable_model_summary: expected bool or null, got 7."),
    (["accumulate_grad_batches=0"], "trainer.accumulate_grad_batches: expected a number of at least 1, got 0."),
    (["gradient_clip_val=-1"], "trainer.gradient_clip_val: expected a number of at least 0, got -1"),
    (["gradient_clip_algorithm=half"], "trainer.gradient_clip_algorithm: `gradient_clip_algorithm` half is invalid."),
    (["deterministic=perhaps"], "trainer.deterministic: expected "),
    (["benchmark=7"], "trainer.benchmark: expected bool or null, got 7."),
    (["inference_mode=7"], "trainer.inference_mode: expected bool, got 7."),
    (["profiler=stopwatch"], "trainer.profiler: When passing string value for the `profiler` parameter of `Trainer`"),
    (["barebones=true"], "trainer.barebones: writes neither figures nor checkpoints"),
    (
        ["reload_dataloaders_every_n_epochs=-1"],
        "trainer.reload_dataloaders_every_n_epochs: `reload_dataloaders_",
    ),
    (["default_root_dir=elsewhere"], "trainer.default_root_dir: a run has its folder below run.folder."),
    (["model_registry=me/mine"], "trainer.model_registry: uploads checkpoints that only this package can load."),
    ([f"{CALLBACK}LearningRateFinder"], "trainer.callbacks: LearningRateFinder sets a learning rate of the module"),
    ([f"{CALLBACK}StochasticWeightAveraging"], "trainer.callbacks: StochasticWeightAveraging needs swa_lrs."),
    (
        [f"{CALLBACK}StochasticWeightAveraging", "callbacks.swa_lrs=0.01"],
        "trainer.callbacks: StochasticWeightAveraging averages after best.ckpt was chosen",
    ),
    ([f"{CALLBACK}BackboneFinetuning"], "trainer.callbacks: BackboneFinetuning thaws parts by itself."),
    ([f"{CALLBACK}ModelPruning", "callbacks.pruning_fn=l1_unstructured"], "trainer.callbacks: ModelPruning renames the"),
    ([f"{CALLBACK}SpikeDetection"], "trainer.callbacks: SpikeDetection fails in the test"),
    ([f"{CALLBACK}EarlyStopping"], "trainer.callbacks: EarlyStopping needs monitor."),
    (
        [f"{CALLBACK}EarlyStopping", "callbacks.monitor=val_loss"],
        "trainer.callbacks.monitor: there is no figure val_loss. A training logs val/dice, val/iou, train/loss.",
    ),
    ([f"{CALLBACK}ModelCheckpoint", "callbacks.monitor=val/loss"], "trainer.callbacks.monitor: there is no figure val/loss."),
    (
        [f"{CALLBACK}Timer", "callbacks.duration=00:00:00:01"],
        "recipe: config.yaml cannot hold <Interval.step: 'step'>, a default of a class. Give that argument as text.",
    ),
]


def words(row):
    return [f"--trainer.{word}" for word in row]


def keys(row):
    return {word.partition("=")[0].partition(".")[0] for word in row}


def test_every_key_of_the_trainer_stands_in_a_table():
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    assert set.union(*map(keys, WORKS), *(keys(row) for row, _ in REFUSED)) == known


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """The embeddings, which are the same in every run."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def _own_settings():
    # Lightning leaves them on in the process.
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.mark.usefixtures("_own_settings")
@pytest.mark.filterwarnings("default")  # what Lightning advises is no fault
@pytest.mark.parametrize("row", WORKS, ids=" ".join)
def test_run_under_it_trains_tests_and_exports(row, workplace, shared_cache, monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(shared_cache))
    monkeypatch.setattr(half_precision, "processor_has_bf16", lambda: True)
    quick = ("--data.batch_size=4", "--trainer.max_epochs=1", "--run.baselines=false", "--run.report=false")
    assert run(*quick, *words(row)) == 0
    folder = only_run()
    assert json.loads(folder.summary.read_text())["test"]["n_cases"] >= 1
    assert (folder.export / "trained.safetensors").is_file()
    assert folder.last_checkpoint.is_file()


@pytest.mark.parametrize(("row", "said"), REFUSED, ids=[" ".join(row) for row, _ in REFUSED])
def test_what_cannot_work_is_one_line_before_any_work(row, said, workplace, capsys):
    assert main(["run", "tiny.yaml", "--data.batch_size=4", *words(row)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.removeprefix("error: ").startswith(said)
    assert not list(Path("runs").glob("*"))
    assert not list(Path("cache").glob("embeddings*"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("precision", 64, "precision: 64 casts the whole network"),
        ("val_check_interval", 1.5, "val_check_interval: expected a part of an epoch"),
    ],
)
def test_value_of_another_type_is_refused_too(key, value, said):
    with pytest.raises(RecipeError, match=rf"^trainer\.{said}"):
        check_trainer_values({"max_epochs": 1, key: value}, subcommand="test")


@pytest.mark.parametrize("ends", [{"max_epochs": 3}, {"max_steps": 10}, {"max_time": "00:01:00:00"}])
def test_training_needs_something_that_ends_it(ends):
    nothing = {"max_epochs": None, "max_steps": -1, "max_time": None}
    check_trainer_values(nothing | ends, subcommand="fit")
    check_trainer_values(nothing, subcommand="test")
    with pytest.raises(RecipeError, match=r"^trainer\.max_epochs: is null, and nothing else ends the training\."):
        check_trainer_values(nothing, subcommand="fit")


@pytest.mark.parametrize("devices", [99, "99"])
def test_more_processes_than_cores_are_refused_before_any_is_started(devices, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    with pytest.raises(RecipeError, match=r"trainer\.devices: 99 processes on a CPU of 4 cores\. Use at most 4\."):
        check_trainer_values({"accelerator": "cpu", "devices": devices, "max_epochs": 1}, subcommand=None)


@pytest.mark.parametrize("devices", [4, "auto", -1, [0, 1]])
def test_processes_that_the_cores_can_hold_are_taken(devices, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    check_trainer_values({"accelerator": "cpu", "devices": devices, "max_epochs": 1}, subcommand=None)


def test_strategies_are_told_by_their_class_where_they_are_built():
    check_trainer_parts({"strategy": DDPStrategy()}, figures=())
    with pytest.raises(RecipeError, match=r"^trainer\.strategy: FSDPStrategy: .* Use auto, ddp or fsdp\."):
        check_trainer_parts({"strategy": FSDPStrategy()}, figures=())


def test_same_refusals_meet_the_other_commands(workplace, capsys):
    assert main(["fit", "--config", "tiny.yaml", "--trainer.precision=bf16-true"]) == 2
    assert "error: trainer.precision: bf16-true casts" in capsys.readouterr().err
    assert main(["fit", "--config", "tiny.yaml", "--trainer.limit_val_batches=0.01"]) == 2
    assert "error: trainer.limit_val_batches: 0.01 of 1 batches is less than one." in capsys.readouterr().err
    assert main(["test", "--config", "tiny.yaml", "--untuned", "--trainer.limit_test_batches=0.01"]) == 2
    assert "error: trainer.limit_test_batches: 0.01 of 4 batches is less than one." in capsys.readouterr().err


def test_fit_may_do_without_validation_and_without_checkpoints(workplace):
    assert main(["fit", "--config", "tiny.yaml", "--trainer.limit_val_batches=0", "--trainer.max_epochs=1"]) == 0
    assert only_run().last_checkpoint.is_file()
    assert main(["fit", "--config", "tiny.yaml", "--trainer.fast_dev_run=true"]) == 0


@pytest.mark.parametrize(
    ("precision", "said"), [("bf16-mixed", "bf16-mixed, but"), ("16-mixed", "16-mixed, for which Lightning")]
)
def test_half_precision_on_a_processor_without_it_is_refused(monkeypatch, precision, said):
    monkeypatch.setattr(half_precision, "processor_has_bf16", lambda: False)
    with pytest.raises(RecipeError, match=rf"trainer.precision: {said}.*no bf16 instructions.*Leave trainer.precision out"):
        check_trainer_values({"accelerator": "cpu", "precision": precision, "max_epochs": 1}, subcommand=None)
    check_trainer_values({"accelerator": "cpu", "precision": "32-true", "max_epochs": 1}, subcommand=None)


@pytest.mark.parametrize(("major", "refused"), [(7, True), (8, False), (9, False)])
def test_bf16_needs_an_ampere_gpu(monkeypatch, major, refused):
    properties = SimpleNamespace(name="A GPU", major=major, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: properties)
    fault = half_precision_fault("bf16-mixed", "auto")
    assert (fault is not None) == refused
    if fault is not None:
        assert (
            "A GPU has no bf16 in hardware (compute capability 7.5; 8.0 is the first). Set trainer.precision: 16-mixed" in fault
        )
    assert half_precision_fault("16-mixed", "gpu") is None
