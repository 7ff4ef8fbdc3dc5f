"""Runs that a killed or ended sweep left in the middle: each is taken up where it stopped, with its values, in its folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.files import write_bytes
from medsam_tune.training.run_place import RUNS

if TYPE_CHECKING:
    import optuna

FAULT, _PLACE, _TAKEN_UP = "error", "place", "takes up"


def mend_journal(journal: Path) -> None:
    """Remove what a killed sweep left at its journal: Optuna's own lock, which nobody would open, and half a last line.

    Args:
        journal: Of a sweep whose folder this process has locked.
    """
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink()
    content = journal.read_bytes() if journal.is_file() else b""
    if content and not content.endswith(b"\n"):
        write_bytes(journal, content[: content.rfind(b"\n") + 1])


def is_cut_off(trial: optuna.trial.FrozenTrial) -> bool:
    """Tell whether a run was neither finished nor found to be faulty; of a sweep at work, also whether it is running."""
    return trial.state.name in ("RUNNING", "FAIL") and FAULT not in trial.user_attrs


def take_up(study: optuna.Study, parameters: Collection[str]) -> None:
    """Close what was cut off and queue it again; a second call, after a kill in the middle, queues nothing twice.

    Args:
        study: Of a sweep of which no run is running.
        parameters: Names of what varies; a run that had not drawn all of it yet had not begun.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    taken = {trial.user_attrs.get(_TAKEN_UP) for trial in trials}
    for trial in trials:
        if is_cut_off(trial) and trial.number not in taken:
            values = trial.system_attrs.get("fixed_params", trial.params)
            if set(values) == set(parameters):
                study.enqueue_trial(values, user_attrs={_TAKEN_UP: trial.number, _PLACE: place_of(trial)})
        if trial.state is TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)


def n_drawn(study: optuna.Study) -> int:
    """Return how many runs have had their values drawn, each counted once however often it was cut off."""
    return sum(not is_cut_off(trial) for trial in study.get_trials(deepcopy=False))


def place_of(trial: optuna.trial.FrozenTrial) -> str:
    """Return the name of a run's folder, also of one that has not begun."""
    return str(trial.user_attrs.get(_PLACE, f"{trial.number:04d}"))


def give_place(trial: optuna.Trial) -> str:
    """Return the name of the folder of a run that begins: that of the run that it takes up, or the next number."""
    if _PLACE not in trial.user_attrs:
        earlier = [each for each in trial.study.get_trials(deepcopy=False) if each.number < trial.number]
        begun = [each for each in earlier if each.state.name != "FAIL" or FAULT in each.user_attrs]
        trial.set_user_attr(_PLACE, f"{len({place_of(each) for each in begun}):04d}")
    return str(trial.user_attrs[_PLACE])


def has_checkpoint(place: Path) -> bool:
    """Tell whether a training in a run's folder can go on."""
    return any(place.glob(f"{RUNS}/checkpoints/last.ckpt"))
