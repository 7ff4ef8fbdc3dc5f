"""A run of a recipe as an object with a folder; every command that trains, tests or exports goes through it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medsam_tune.data.split_file import read_splits
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.evaluation.comparison import not_compared, verdict_of
from medsam_tune.evaluation.kept_embeddings import KeptEmbeddings
from medsam_tune.export.description import DESCRIPTION_FILE
from medsam_tune.export.load import Checkpoint, load_export, not_at_hand
from medsam_tune.files import read_json
from medsam_tune.runs.build import Overrides, build, check_priors, override_words
from medsam_tune.runs.case_pictures import SliceArtist, fullest_slices
from medsam_tune.runs.closing import closing
from medsam_tune.runs.listing import run_or_folder
from medsam_tune.runs.other_scores import (
    score_baselines,
    score_boxes,
    score_calibration,
    score_inference,
    score_instances,
    score_others,
)
from medsam_tune.runs.recipe_files import find_recipe
from medsam_tune.runs.report_stage import export_stage, report_stage
from medsam_tune.segmenters.task import TaskSegmenter
from medsam_tune.training.checkpoint import read_checkpoint
from medsam_tune.training.cli import MedsamCLI
from medsam_tune.training.console import say
from medsam_tune.training.places import read_recipe
from medsam_tune.training.precompute_stage import fill_embeddings
from medsam_tune.training.run_folder import RunFolder
from medsam_tune.training.trust import refuse_foreign_code
from medsam_tune.yaml_files import read_yaml

if TYPE_CHECKING:
    from medsam_tune.data.splits import Splits
    from medsam_tune.evaluation.overlays import OverlaySlice
    from medsam_tune.inference.predictor import Predictor
    from medsam_tune.segmenters.base import Segmenter
    from medsam_tune.tasks.base import Task


class Run:
    """Hold a run: its folder, and what was built of it in this process.

    Made by ``from_recipe`` or ``open``. The steps return the run, so that they chain.

    Attributes:
        folder: Where everything lies that the run leaves behind.
        scored: Where the figures of the last ``test`` of this object lie.

    Examples:
        >>> run = Run.from_recipe("lora", {"rank": 8, "epochs": 2}).fit().test().export()  # doctest: +SKIP
        >>> mask = run.predictor().segment(image, box=(10, 10, 80, 90))  # doctest: +SKIP
        >>> Run.open(run.folder).summary["test"]["dice"]["mean"]  # doctest: +SKIP
    """

    def __init__(self, folder: Path, cli: MedsamCLI | None = None) -> None:
        self.folder = folder
        self._cli = cli
        self._files = RunFolder(folder)
        self._summary: dict[str, Any] = {}
        self._kept = KeptEmbeddings()
        self.scored: Path | None = None

    @classmethod
    def from_recipe(cls, recipe: str | Path, overrides: Overrides = ()) -> Run:
        """Build a new run of a recipe, ready to be trained; its data are read and checked.

        Args:
            recipe: A YAML file, or the name of a bundled recipe.
            overrides: What differs from it, under whole or short keys.

        Raises:
            MedsamTuneError: If recipe or data cannot be used.
        """
        cli = build(find_recipe(str(recipe)), override_words(overrides))
        return cls(cli.run_folder.path, cli)

    @classmethod
    def open(cls, folder: str | Path, *, trusted: bool = False) -> Run:
        """Open the folder of an earlier run; it knows recipe, overrides, split and checkpoint.

        Args:
            folder: The run folder; or, where there is no such folder, the name or time of the one run below ``runs``.
            trusted: Take a recipe that names code from outside the package; using the run then imports and runs it.

        Raises:
            RecipeError: If the folder holds no run, several go by that name, or its recipe names foreign code and ``trusted``
                is False.
        """
        path = run_or_folder(str(folder), "RUN").absolute()
        if not RunFolder(path).config.is_file():
            raise RecipeError(f"{folder}: is no run: it holds no config.yaml. `medsam-tune runs list` shows them.")
        run = cls(path)
        if not trusted:
            for file in (RunFolder(path).config, RunFolder(path).local):
                refuse_foreign_code(read_yaml(file) if file.is_file() else {}, file)
        return run

    @property
    def config(self) -> dict[str, Any]:
        """Return the resolved recipe in force, overrides included, with the paths of this machine."""
        content = read_recipe(self._files)
        if not isinstance(content, dict):
            raise RecipeError(f"{self._files.config}: expected the sections of a recipe. Restore the file.")
        return content

    @property
    def splits(self) -> Splits:
        """Return which case trained, chose and was tested."""
        return read_splits(self._files.splits)

    @property
    def checkpoint(self) -> Path:
        """Return the checkpoint with the best validation.

        Raises:
            CheckpointError: If no validation has chosen one.
        """
        best = self._files.checkpoints / "best.ckpt"
        if not best.is_file():
            raise CheckpointError(f"{best}: training ended before a validation chose it. Raise trainer.max_epochs.")
        return best

    @property
    def summary(self) -> dict[str, Any]:
        """Return the figures of the last test of this object, else those of ``summary.json``; empty before a test."""
        if self._summary or not self._files.summary.is_file():
            return dict(self._summary)
        return dict(read_json(self._files.summary, "Test the run again."))

    @property
    def task(self) -> Task:
        """Return what a run that was built in this process learns."""
        return self._built("task").model.task

    def fit(self) -> Run:
        """Train, in the run's folder.

        Raises:
            RecipeError: If the run was opened and not built: ``resume`` continues it.
        """
        cli = self._built("fit")
        with cli.stage():
            cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True)
        return self

    def resume(self, overrides: Overrides = ()) -> Run:
        """Continue the run's training where its last checkpoint is, with its own recipe and split.

        Args:
            overrides: What changes from here on, such as ``{"epochs": 40}``.

        Raises:
            CheckpointError: If it has no checkpoint yet.
        """
        words = [f"--ckpt_path={self._files.last_checkpoint}", *override_words(overrides)]
        command = shlex.join(["medsam-tune", "resume", str(self.folder), *words[1:]])
        recipe, name = self._files.config, self.folder.parent.name
        self._cli = MedsamCLI(self._own_recipe(words), recipe_file=recipe, command=command, run=False, name=name)
        check_priors(self._cli)
        return self.fit()

    def test(self, overrides: Overrides = ()) -> Run:
        """Score the best checkpoint on the test cases of the run's split, and the untuned network beside it.

        After ``fit`` the figures come to the run's folder; those of an opened run to ``tests/<time>`` in it. A task that has no
        test is left with the best weights and the figure that chose them.

        Args:
            overrides: Of an opened run, such as ``{"data.root": "DIR"}`` where the data were moved.
        """
        return self._score("test", override_words(overrides))

    def validate(self, overrides: Overrides = ()) -> Run:
        """Score an opened run's best checkpoint on the validation cases of its split."""
        self._stage("validate", override_words(overrides))
        return self

    def export(self, overrides: Overrides = ()) -> Run:
        """Write what the best checkpoint holds to ``export/``, reloadable in one line.

        Args:
            overrides: Of an opened run, such as ``{"model.backbone.checkpoint": FILE}`` where its base weights were moved.
        """
        if self._cli is not None and (self._cli.results.scores is not None or self._cli.results.summary):
            if self._cli.trainer.is_global_zero:
                self._timed(self._cli, "export", export_stage)
            return self
        cli = self._reloaded(override_words(overrides))
        cli.folder = self._files
        cli.results.summary = self.summary or {"test": {}}
        export_stage(cli)
        return self

    def score_networks(self, networks: Mapping[str, Segmenter], *, most: int = 50) -> dict[str, dict[str, Any]]:
        """Score other networks on test cases of an opened run, such as what was exported of it; nothing is written.

        Args:
            networks: By name; asked as the run's own is asked, and put into eval mode.
            most: Images at most, spread evenly over the test cases.

        Returns:
            What a test's summary says, by name.

        Raises:
            DataError: If the run's data are not at hand.
        """
        cli = self._reloaded([])
        return score_others(cli, networks, most=most)

    def draw_cases(self, cases: Sequence[str], overrides: Overrides = ()) -> dict[str, OverlaySlice]:
        """Return the slice that shows most of each of several test cases, with truth, this network's and the untuned's masks.

        Args:
            cases: Their names; one that is no test case of the run is left out.
            overrides: Of an opened run, such as ``{"data.root": "DIR"}``.

        Raises:
            DataError: If the run's data are not at hand.
        """
        cli = self._reloaded(override_words(overrides))
        cli.results.summary = self.summary
        with _at_work(cli):
            artist = SliceArtist(cli)
            return {case: artist.draw(index) for case, index in fullest_slices(cli.datamodule, cases).items()}

    def finish(self) -> Path | None:
        """Test, export and report after a training, as far as its task has these stages; return the report's page."""
        self.test()
        if "export" in self.task.stages:
            self.export()
        return self.report()

    def report(self) -> Path | None:
        """Write the HTML report after ``fit`` and ``test``, and say the figures; None where the recipe asks for none."""
        cli = self._built("report")
        if not cli.trainer.is_global_zero:
            return None
        page: Path | None = None
        if "test" in cli.model.task.stages:
            with torch.no_grad(), _at_work(cli):
                page = self._timed(cli, "report", lambda cli: report_stage(cli, self._kept))
        self._kept = KeptEmbeddings()
        cli.results.write()
        say(closing(cli.results.summary, self.folder, page))
        return page

    def predictor(self, *, checkpoint: Checkpoint | None = None, trusted: bool = False) -> Predictor:
        """Return the trained model, ready to be asked; it is exported first where that was not done.

        Args:
            checkpoint: Where the base weights lie if they are a file of your own; its checksum must be that of the training.
            trusted: Import classes from outside ``medsam_tune`` that the run names; that runs their code.
        """
        if not (self._files.export / DESCRIPTION_FILE).is_file():
            files = checkpoint if isinstance(checkpoint, Mapping) else {"backbone.checkpoint": checkpoint}
            self.export({f"model.{key}": str(file) for key, file in files.items() if file is not None})
        return load_export(self._files.export, checkpoint=checkpoint, trusted=trusted)

    def _own_recipe(self, words: Sequence[str]) -> list[str]:
        """Return the run's recipe and what differs from it as a command line.

        Raises:
            CheckpointError: If it needs a file of base weights that is not where it was, with the checksum that is wanted.
        """
        backbone = (self.config.get("model") or {}).get("backbone") or {}
        file = (backbone.get("init_args") or {}).get("checkpoint")
        named = any(re.match(r"--model\.backbone\.(init_args\.)?checkpoint=", word) for word in words)
        if isinstance(file, str) and not named and not Path(file).is_file():
            raise not_at_hand(self.folder, read_checkpoint(self._files.last_checkpoint)["base_weights"] or {})
        return ["--config", str(self._files.config), *words]

    def _built(self, step: str) -> MedsamCLI:
        if self._cli is None:
            raise RecipeError(f"{self.folder}: {step} belongs to a run in training. Use Run.from_recipe, or resume() this one.")
        return self._cli

    def _score(self, stage: str, words: list[str]) -> Run:
        cli = self._cli
        if cli is None or words:
            cli = self._stage(stage, words)
        else:
            with cli.stage():
                self._take_best(cli)
        if cli.trainer.is_global_zero:
            with torch.no_grad(), _at_work(cli):
                kept = KeptEmbeddings()
                _score_beside(cli, kept)
            # Only a training of this process is reported.
            self._kept = kept if cli is self._cli else KeptEmbeddings()
            self._summary, self.scored = cli.results.summary, cli.run_folder.path
        return self

    def _take_best(self, cli: MedsamCLI) -> None:
        """Test the best weights after a training, or only load them where the task has no test."""
        best = self.checkpoint
        if "test" in cli.model.task.stages:
            cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=str(best), weights_only=True, verbose=False)
        else:
            cli.results.take_untested(cli.trainer, cli.model, best)

    def _stage(self, stage: str, words: list[str]) -> MedsamCLI:
        """Run one stage of the run's recipe on its best checkpoint, with a folder of its own."""
        given = {word.partition("=")[0] for word in words}
        own = {"--ckpt_path": str(self.checkpoint), "--run.folder": str(self.folder)}
        words = [*(f"{key}={value}" for key, value in own.items() if key not in given), *words]
        command = shlex.join(["medsam-tune", stage, str(self.folder), *words])
        folder = f"{stage}s"
        return MedsamCLI(
            [stage, *self._own_recipe(words)], recipe_file=self._files.config, command=command, run=True, name=folder
        )

    def _reloaded(self, words: list[str]) -> MedsamCLI:
        """Build the network with the weights of the best checkpoint, in no folder of its own."""
        words = [f"--run.folder={self.folder}", f"--data.split.file={self._files.splits}", *words]
        cli = MedsamCLI(self._own_recipe(words), recipe_file=self._files.config, command="", run=False, name="exports")
        cli.discard_unused_folder()
        checkpoint = read_checkpoint(self.checkpoint)
        cli.model.on_load_checkpoint(checkpoint)
        cli.model.load_state_dict(checkpoint["state_dict"])
        return cli

    @staticmethod
    def _timed(cli: MedsamCLI, stage: str, step: Any) -> Any:  # noqa: ANN401 - whatever the step returns
        cli.clock.start(stage)
        done = step(cli)
        cli.clock.stop(stage)
        return done


@contextmanager
def _at_work(cli: MedsamCLI) -> Iterator[None]:
    """Hold the network on the device of the training: after each of its stages Lightning leaves it on the CPU."""
    cli.model.to(cli.trainer.strategy.root_device)
    try:
        yield
    finally:
        cli.model.cpu()


def run_recipe(recipe: Path, words: Sequence[str]) -> int:
    """Run a recipe from data to report.

    Args:
        recipe: The YAML file.
        words: ``--key=value``; ``--ckpt_path=last`` continues the recipe's newest run in its folder.

    Returns:
        The exit code; 0 after a report was written.

    Raises:
        MedsamTuneError: If the recipe, the data or a checkpoint cannot be used; before training wherever that can be known.
    """
    Run.from_recipe(recipe, words).fit().finish()
    return 0


def build_cache(recipe: Path, words: Sequence[str]) -> int:
    """Fill the embedding cache for a recipe's training, validation and test images, and do nothing else."""
    cli = build(recipe, words)
    cli.discard_unused_folder()
    filled = fill_embeddings(cli.model.segmenter, cli.datamodule, stages=("train", "val", "test"))
    say(f"{len(filled.keys)} embeddings are in the cache ({filled.seconds:.0f} s).")
    return 0


def _score_beside(cli: MedsamCLI, kept: KeptEmbeddings) -> None:
    """Score the baselines and the other kinds of inference on the cases that were tested, where the task compares any."""
    if "baselines" not in cli.model.task.stages:
        return
    cli.clock.start("baselines")
    baselines = score_baselines(cli, kept)
    cli.clock.stop("baselines")
    verdict = not_compared(_why_not_compared(cli)) if baselines is None else verdict_of(baselines)
    moved = score_boxes(cli, kept)
    boxes = {} if moved is None else {"moved_boxes": moved}
    more = {**boxes, **_inference(cli), **score_calibration(cli, kept), **score_instances(cli)}
    cli.results.write(baselines=baselines, verdict=verdict, **more)
    cli.results.write_cases(cli.datamodule)


def _why_not_compared(cli: MedsamCLI) -> str:
    if not cli.settings.baselines:
        return "run.baselines is false"
    return "this network was trained from scratch, so there is none"


def _inference(cli: MedsamCLI) -> dict[str, Any]:
    """Return what the summary says about the kinds of inference; nothing where the network has only one."""
    segmenter = cli.model.segmenter
    if not isinstance(segmenter, TaskSegmenter) or segmenter.fusion is None:
        return {}
    cli.clock.start("inference")
    found = score_inference(cli, segmenter)
    cli.clock.stop("inference")
    return {"inference": {"chosen": segmenter.inference, "test": found}}
