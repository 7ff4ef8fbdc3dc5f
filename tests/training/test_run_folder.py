import os
import re
import threading
from datetime import timedelta

import pytest

from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.leftovers import temporary_name
from medsam_tune.training import run_folder
from medsam_tune.training.run_folder import (
    RUN_FOLDER_VARIABLE,
    RunFolder,
    agreed_run,
    is_rank_zero,
    make_run_folder,
    newest_run,
    resolve_ckpt_path,
    run_folder_of,
    share_run_folder,
)

LAUNCHERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE")
LAUNCHERS += ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_RESTART_COUNT")


@pytest.fixture(autouse=True)
def started_alone(monkeypatch):
    for name in (*LAUNCHERS, RUN_FOLDER_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def make_checkpoint(root, run, name="last.ckpt", *, seconds):
    path = root / "autosam" / run / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (seconds, seconds))
    return path


def test_runs_that_start_within_one_second_get_folders_of_their_own(tmp_path):
    folders = {make_run_folder(tmp_path, "autosam") for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.is_dir() and folder.parent == tmp_path / "autosam" for folder in folders)


def test_a_new_run_removes_what_a_killed_one_left_that_came_to_no_checkpoint(tmp_path):
    killed, begun = (make_run_folder(tmp_path, "autosam") for _ in range(2))
    make_checkpoint(tmp_path, begun.name, seconds=100)
    # A number that another process has now.
    left = re.sub(rf"-{os.getpid()}-\d+-", f"-{os.getpid()}-1-", temporary_name())
    for folder in (killed, killed / "checkpoints", begun):
        folder.mkdir(exist_ok=True)
        (folder / left).write_bytes(b"half")
    (killed / "config.yaml").touch()
    make_run_folder(tmp_path, "autosam")
    assert sorted(path.name for path in killed.rglob("*")) == ["checkpoints", "config.yaml"]
    # It has another go, which tidies up itself.
    assert (begun / left).exists()


def test_runs_that_start_at_the_same_time_in_many_threads_never_share_a_folder(tmp_path):
    made = []
    threads = [threading.Thread(target=lambda: made.append(run_folder._make_unique(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(set(made)) == 8


def test_child_rank_takes_the_folder_of_rank_0_from_the_environment(tmp_path, monkeypatch):
    made = make_run_folder(tmp_path, "autosam")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert make_run_folder(tmp_path, "autosam") == made
    assert list((tmp_path / "autosam").iterdir()) == [made]


def test_rank_0_ignores_the_folder_of_an_earlier_run_in_the_environment(tmp_path):
    earlier = make_run_folder(tmp_path, "autosam")
    assert make_run_folder(tmp_path, "autosam") != earlier


def test_rank_without_a_word_from_rank_0_is_told_how_to_start(tmp_path, monkeypatch):
    monkeypatch.setenv("NODE_RANK", "1")
    with pytest.raises(RecipeError, match="Start several nodes with torchrun or srun"):
        make_run_folder(tmp_path, "autosam")


def test_srun_ranks_derive_one_name_from_job_and_step(tmp_path, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    folders = []
    for rank in ("1", "0"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        monkeypatch.delenv(RUN_FOLDER_VARIABLE, raising=False)
        folders.append(make_run_folder(tmp_path, "autosam"))
    assert folders == [tmp_path / "autosam" / "slurm-71-0"] * 2


def test_single_slurm_task_names_its_run_by_time_so_that_two_runs_in_a_job_differ(tmp_path, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert make_run_folder(tmp_path, "autosam") != make_run_folder(tmp_path, "autosam")


@pytest.fixture
def agent(monkeypatch):
    """Serve the store of torchrun's agent, as its environment tells the workers."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(minutes=2))
    environ = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return store


def test_torchrun_ranks_go_on_from_the_run_that_rank_0_found(tmp_path, monkeypatch, agent):
    make_checkpoint(tmp_path, "old", seconds=100)
    monkeypatch.setenv("RANK", "0")
    expected = resolve_ckpt_path("last", tmp_path, "autosam")
    assert agreed_run(lambda: None) is None
    # Another run has written a checkpoint by the time that the other rank looks, and this one knows a folder of its own.
    newer = make_checkpoint(tmp_path, "new", seconds=200)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(newer.parent.parent))
    assert resolve_ckpt_path("last", tmp_path, "autosam") == expected
    assert agreed_run(lambda: newer.parent.parent) is None


def test_torchrun_ranks_learn_the_folder_from_the_agents_store_run_after_run(tmp_path, monkeypatch, agent):
    for _ in range(2):
        monkeypatch.setenv("RANK", "0")
        made = make_run_folder(tmp_path, "autosam")
        monkeypatch.setenv("RANK", "3")
        monkeypatch.delenv(RUN_FOLDER_VARIABLE)
        assert make_run_folder(tmp_path, "autosam") == made
    assert len(list((tmp_path / "autosam").iterdir())) == 2


def test_a_continued_run_is_handed_to_the_children_as_it_is(tmp_path, monkeypatch):
    share_run_folder(tmp_path / "old")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert share_run_folder(None) == tmp_path / "old"


@pytest.mark.parametrize(
    ("environ", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "4", "LOCAL_RANK": "0"}, False),
    ],
)
def test_rank_0_is_known_from_the_environment(monkeypatch, environ, first):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() is first


def test_newest_run_is_the_one_whose_last_checkpoint_is_youngest(tmp_path):
    make_checkpoint(tmp_path, "2026-01-02_00-00-00", seconds=100)
    resumed = make_checkpoint(tmp_path, "2026-01-01_00-00-00", seconds=200)
    make_checkpoint(tmp_path, "2026-01-03_00-00-00", "best.ckpt", seconds=300)
    assert newest_run(tmp_path, "autosam") == run_folder_of(resumed)


def test_newest_run_is_none_before_the_first_checkpoint(tmp_path):
    assert newest_run(tmp_path, "autosam") is None
    make_run_folder(tmp_path, "autosam")
    assert newest_run(tmp_path, "autosam") is None


def test_last_and_best_name_checkpoints_of_the_newest_run(tmp_path):
    last = make_checkpoint(tmp_path, "a", seconds=100)
    make_checkpoint(tmp_path, "a", "best-epoch=1.ckpt", seconds=50)
    best = make_checkpoint(tmp_path, "a", "best-epoch=2.ckpt", seconds=60)
    assert resolve_ckpt_path("last", tmp_path, "autosam") == last
    assert resolve_ckpt_path("best", tmp_path, "autosam") == best


def test_child_rank_resumes_the_run_of_rank_0_though_a_newer_one_has_begun(tmp_path, monkeypatch):
    chosen = make_checkpoint(tmp_path, "a", seconds=100)
    share_run_folder(run_folder_of(chosen))
    make_checkpoint(tmp_path, "b", seconds=200)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_ckpt_path("last", tmp_path, "autosam") == chosen


def test_last_without_a_run_says_what_to_do(tmp_path):
    make_run_folder(tmp_path, "autosam")
    with pytest.raises(RecipeError, match=r"--ckpt_path=last: no run under .*autosam has .* \(runs without one: 1\)"):
        resolve_ckpt_path("last", tmp_path, "autosam")


def test_last_names_the_newest_run_of_an_earlier_version(tmp_path):
    make_checkpoint(tmp_path, "2025-01-01_00-00-00", seconds=100)
    newest = make_checkpoint(tmp_path, "2025-01-02_00-00-00", seconds=200)
    with pytest.raises(
        RecipeError, match=r"The newest of an earlier version is continued by --ckpt_path=.*2025-01-02"
    ) as refused:
        resolve_ckpt_path("last", tmp_path, "own-1a2b3c/autosam")
    assert f"--ckpt_path={newest}." in str(refused.value)


def test_checkpoint_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.ckpt: no such checkpoint"):
        resolve_ckpt_path(str(tmp_path / "gone.ckpt"), tmp_path, "autosam")


def test_checkpoint_outside_a_run_has_no_run_folder(tmp_path):
    assert run_folder_of(tmp_path / "mine.ckpt") is None


def test_file_in_the_place_of_the_recipes_folder_is_named(tmp_path):
    (tmp_path / "autosam").touch()
    with pytest.raises(RecipeError, match=r"Not a directory.*Choose a root"):
        make_run_folder(tmp_path, "autosam")


def test_files_lie_where_the_run_folder_says(tmp_path):
    run = RunFolder(tmp_path)
    paths = (
        run.config,
        run.splits,
        run.last_checkpoint,
        run.metrics_csv,
        run.epochs_csv,
        run.summary,
        run.test_cases,
        run.export,
        run.report,
    )
    names = "config.yaml splits.json checkpoints/last.ckpt metrics.csv epochs.csv summary.json test_cases.csv export report"
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == names.split()


def test_number_of_tasks_that_is_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "abc")
    with pytest.raises(RecipeError, match=r"^SLURM_NTASKS: expected the number of tasks of the job, got 'abc'\. Unset it"):
        make_run_folder(tmp_path, "autosam")
