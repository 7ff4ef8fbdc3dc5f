import csv
import json
import struct
import subprocess

import pytest
import torch
import wandb
import yaml
from wandb.proto import wandb_internal_pb2

from medsam_tune.training.record import continue_wandb, flat, git_commit, record_continuation
from medsam_tune.training.run_folder import RunFolder, newest_run, requeued_run
from medsam_tune.training.run_place import run_place
from tests.training.tiny_runs import only_run, run, weights_of

FAST = ("--run.baselines=false", "--run.report=false")
WANDB = ("--trainer.logger=WandbLogger", "--trainer.logger.project=p", "--trainer.logger.offline=true")
# A learning rate that spoils the weights, so that the last Dice is below the best one.
SPOILT = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=50")


def wandb_records(path):
    """Return what an offline W&B run file says of the run: its id, config and summary."""
    run_id, config, summary = None, {}, {}
    for content in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        run_id = record.run.run_id or run_id
        updates = [(config, record.config.update), (config, record.run.config.update), (summary, record.summary.update)]
        for found, items in updates:
            found.update({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return run_id, config, summary


def log_records(content, start=7, block=2**15):
    """Yield the records of a LevelDB log: parts of checksum, length, kind (1 whole, 4 last part) and content."""
    record = b""
    while start + 7 <= len(content):
        left = block - start % block
        length, kind = struct.unpack("<HB", content[start + 4 : start + 7])
        if left < 7 or kind == 0:
            start += left
            continue
        record += content[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_values_stand_under_the_keys_that_one_types():
    recipe = {
        "seed_everything": 0,
        "model": {"segmenter": {"class_path": "S", "init_args": {"backbone": {"class_path": "B", "init_args": {"n": 1}}}}},
        "data": {"labels": [1, 2], "groups": [{"a": 1}]},
        "trainer": {"logger": None},
    }
    assert flat(recipe) == {
        "seed_everything": 0,
        "model.segmenter": "S",
        "model.segmenter.backbone": "B",
        "model.segmenter.backbone.n": 1,
        "data.labels": [1, 2],
        "data.groups": "[{a: 1}]",
        "trainer.logger": None,
    }


def test_git_commit_is_that_of_the_folder_and_says_when_files_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    (tmp_path / "a").write_text("1")
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (("init", "-q"), ("add", "a"), (*author, "commit", "-qm", "a"), (*author, "tag", "v1")):
        subprocess.run(["git", *words], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit() == head
    (tmp_path / "a").write_text("2")
    assert git_commit() == f"{head}-dirty"


def test_continuation_is_added_and_config_is_the_recipe_in_force(tmp_path):
    folder = RunFolder(tmp_path)
    folder.config.write_text("epochs: 1\n")
    record_continuation(folder, "medsam-tune run a --epochs=2", "epochs: 2\n")
    record_continuation(folder, "medsam-tune run a --epochs=3", "epochs: 3\n")
    texts = {path.name: path.read_text() for path in folder.resumes.iterdir()}
    assert texts.keys() == {"000.yaml", "001.yaml", "002.yaml"}
    assert texts["000.yaml"] == "epochs: 1\n"
    assert texts["001.yaml"].splitlines()[0].endswith("  medsam-tune run a --epochs=2")
    assert [yaml.safe_load(texts[name]) for name in sorted(texts)] == [{"epochs": 1}, {"epochs": 2}, {"epochs": 3}]
    assert folder.config.read_text() == "epochs: 3\n"


def test_resume_with_other_settings_leaves_no_untrue_config(workplace):
    assert run(*FAST, "--trainer.max_epochs=1") == 0
    assert not only_run().resumes.exists()
    assert run(*FAST, "--trainer.max_epochs=2", "--ckpt_path=last") == 0
    config = yaml.safe_load(only_run().config.read_text())
    assert (config["trainer"]["max_epochs"], config["ckpt_path"]) == (2, None)
    assert yaml.safe_load((only_run().resumes / "000.yaml").read_text())["trainer"]["max_epochs"] == 1
    assert "--trainer.max_epochs=2" in (only_run().resumes / "001.yaml").read_text().splitlines()[0]


def test_wandb_run_holds_recipe_code_and_data_goes_on_after_a_resume_and_its_summary_is_the_best(workplace, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert run(*FAST, *WANDB, *SPOILT, "--trainer.max_epochs=1") == 0
    wandb.finish()  # as the end of the process does
    begun = json.loads(only_run().wandb.read_text())
    assert run(*FAST, *WANDB, *SPOILT, "--trainer.max_epochs=4", "--ckpt_path=last") == 0
    wandb.finish()
    assert json.loads(only_run().wandb.read_text())["id"] == begun["id"]
    found = [wandb_records(path) for path in sorted(workplace.glob("wandb/offline-run-*/*.wandb"))]
    assert [run_id for run_id, _, _ in found] == [begun["id"], begun["id"]]
    _, config, summary = found[-1]
    assert config["trainer.max_epochs"] == 4
    assert config["model.backbone"] == "medsam_tune.backbone.SamBackbone"
    assert config["model.optimizer.lr"] == 50
    assert config["run"] == f"tiny/{only_run().path.name}"
    assert config["described.splits.train.images"] == 11
    assert {"git", "base_weights.sha256", "parameters.trained"} <= config.keys()
    rows = csv.DictReader(only_run().metrics_csv.read_text().splitlines())
    dice = [float(row["val/dice"]) for row in rows if row["val/dice"]]
    assert max(dice) > dice[-1]
    assert summary["val/dice"] == pytest.approx(max(dice))
    best = torch.load(only_run().checkpoints / "best.ckpt", weights_only=True)
    assert any(state.get("best_model_score") == pytest.approx(summary["val/dice"]) for state in best["callbacks"].values())


def test_wandb_id_of_the_user_comes_first(tmp_path):
    from jsonargparse import Namespace

    folder = RunFolder(tmp_path)
    trainer = Namespace(logger=Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=Namespace(id="mine")))
    continue_wandb(trainer, folder)
    folder.wandb.write_text('{"id": "stored"}')
    continue_wandb(trainer, folder)
    assert trainer.logger.init_args.id == "mine"
    trainer.logger.init_args.id = None
    trainer.logger = [trainer.logger]
    continue_wandb(trainer, folder)
    assert trainer.logger[0].init_args.id == "stored"
    continue_wandb(Namespace(logger=True), folder)


def test_tensorboard_has_the_recipe(finished):
    _, folder = finished
    values = yaml.safe_load((folder.path / "tensorboard" / "hparams.yaml").read_text())
    assert values["model.prompt_encoder.width"] == 8
    assert values["data.batch_size"] == 2


def test_requeued_slurm_job_goes_on_in_its_own_folder(workplace, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert run(*FAST, "--trainer.max_epochs=1") == 0
    first = only_run()
    assert first.slurm_job.read_text() == "4711"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run(*FAST, "--trainer.max_epochs=2") == 0
    assert torch.load(only_run().last_checkpoint, weights_only=True)["global_step"] == 12
    assert only_run() == first
    place = first.path.parents[2], str(run_place("images", "tiny"))
    assert requeued_run(*place, "4711") == first.path
    assert requeued_run(*place, "4712") is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert requeued_run(*place, "4711") is None


def test_auto_begins_where_no_run_is_and_goes_on_where_one_is(workplace):
    assert run(*FAST, "--trainer.max_epochs=1", "--ckpt_path=auto") == 0
    assert run(*FAST, "--trainer.max_epochs=2", "--ckpt_path=auto") == 0
    assert newest_run(workplace / "runs", str(run_place("images", "tiny"))) == only_run().path.absolute()


@pytest.mark.filterwarnings("default")
def test_batch_size_that_a_finder_found_stands_in_recipe_and_summary_and_trains_as_if_it_had_been_asked_for(workplace):
    finder = "--trainer.callbacks=lightning.pytorch.callbacks.BatchSizeFinder"
    short = (*FAST, "--trainer.max_epochs=1")
    assert run(*short, finder, "--trainer.callbacks.max_trials=2", "--trainer.callbacks.steps_per_trial=1") == 0
    found = only_run()
    config = yaml.safe_load(found.config.read_text())
    assert (config["data"]["batch_size"], config["trainer"]["callbacks"]) == (4, None)
    assert json.loads(found.summary.read_text())["found"] == {"data.batch_size": 4}
    assert run(*short, "--data.batch_size=4", "--run.folder=asked") == 0
    asked = weights_of(only_run("asked").last_checkpoint)
    assert all(torch.equal(weights, asked[name]) for name, weights in weights_of(found.last_checkpoint).items())
