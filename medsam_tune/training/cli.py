"""LightningCLI with our module, data and run folder: what parses ``run``, ``fit``, ``validate``, ``test`` and ``predict``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import SIGTERMException

from medsam_tune.data.checks import check_validation
from medsam_tune.data.datamodule import SegmentationDataModule, Stage
from medsam_tune.errors import CheckpointError, RecipeError, own_error
from medsam_tune.training.callbacks import StageClock
from medsam_tune.training.checkpoint import check_fits, read_checkpoint
from medsam_tune.training.checkpoint_schema import check_goes_on
from medsam_tune.training.chunk_memory import check_chunk_memory
from medsam_tune.training.compiled import check_compiled
from medsam_tune.training.console import quieten, say
from medsam_tune.training.example_length import plan_length, stated
from medsam_tune.training.faults import one_fault, unwritable
from medsam_tune.training.global_batch import check_global_batch, set_global_batch
from medsam_tune.training.launched import die_with_launcher
from medsam_tune.training.limits import check_numbers, check_recipe_files, config_files
from medsam_tune.training.module import TuningModule
from medsam_tune.training.opening import counted
from medsam_tune.training.origin import (
    UNTUNED,
    check_same_data,
    check_weights_named,
    run_with_split,
    warn_of_other_settings,
    warn_of_trained_cases,
)
from medsam_tune.training.own_folder import own_folder_words
from medsam_tune.training.places import with_local
from medsam_tune.training.precompute_stage import check_cacheable
from medsam_tune.training.predictions import check_needs_no_user, check_one_process
from medsam_tune.training.pretrained import check_pretraining, check_unseen, keep_record, pretrained_words
from medsam_tune.training.progress import scores_line
from medsam_tune.training.recipe_paths import check_place, resolve_paths
from medsam_tune.training.record import continue_wandb
from medsam_tune.training.run_folder import (
    RunFolder,
    agreed_run,
    is_rank_zero,
    make_run_folder,
    newest_run,
    requeued_run,
    resolve_ckpt_path,
    run_folder_of,
    share_run_folder,
)
from medsam_tune.training.run_place import run_place
from medsam_tune.training.sample_settings import without_sample_settings
from medsam_tune.training.schedule import planned_epochs, planned_steps
from medsam_tune.training.settings import RunSettings
from medsam_tune.training.sharded import check_sharded
from medsam_tune.training.short_keys import expand_class_names, expand_short_keys, load_named_classes
from medsam_tune.training.signals import SIGTERM_STATUS, slurm_job
from medsam_tune.training.stage_parser import SUBCOMMANDS, StageCLI
from medsam_tune.training.test_results import TestResults
from medsam_tune.training.trainer_config import trainer_config
from medsam_tune.training.trainer_keys import (
    FSDP,
    check_limits,
    check_trainer_parts,
    check_trainer_values,
    trainer_fault,
    without_finder,
)
from medsam_tune.yaml_files import read_dumped, read_yaml

_OPTIONS = {"config", "c", "help", "print_config", "ckpt_path", "weights_only", "verbose", "return_predictions", "untuned"}
_SCORED: dict[str | None, Literal["val", "test"]] = {"validate": "val", "test": "test"}
_STAGES: dict[str | None, tuple[Stage, ...]] = {
    None: ("train", "val", "test"),
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class MedsamCLI(StageCLI):
    """Parse a recipe, build module, data and trainer, and give the run its folder.

    Args:
        args: Command line without the program's name.
        recipe_file: The recipe; run folders carry its name.
        command: How the user started it, for the hint on resuming.
        run: True runs the subcommand in ``args``; False only builds.
        name: Of the folder in ``run.folder``; made of data, recipe and ``run.name`` by default.

    Raises:
        RecipeError: If a key, a value or a combination is not accepted.
    """

    datamodule: SegmentationDataModule
    model: TuningModule

    def __init__(self, args: list[str], *, recipe_file: Path | None, command: str, run: bool, name: str | None = None) -> None:
        args = with_local(args)
        self.recipe_file = recipe_file
        self.recipe, self._name = name or ("recipe" if recipe_file is None else recipe_file.stem), name
        self.command, self.words = command, args
        self.results = TestResults()
        self.clock = StageClock()
        die_with_launcher()
        self._read: dict[str, Any] | None = None
        self._dumped = ("", "")
        self._plain: tuple[str, dict[str, Any]] = ("", {})
        quieten()
        super().__init__(
            model_class=TuningModule,
            datamodule_class=SegmentationDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={"log_every_n_steps": 5, "enable_model_summary": False},
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the ``run`` group and, for the native ``run`` command, ``--ckpt_path``."""
        parser.add_class_arguments(RunSettings, "run")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed_number)
        if not hasattr(self, "_subcommand_method_arguments"):
            told = "A file, last for the newest run, or auto: last if there is one."
            parser.add_argument("--ckpt_path", type=str, default=None, help=told)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401
        parser: LightningArgumentParser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.add_argument(UNTUNED, action="store_true", help="Use the network as it is before any training.")
        if subcommand in _SCORED:
            parser.set_defaults(verbose=False)  # Lightning's table; a line of our own says the figures
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 - Lightning's ArgsType
        """Parse ``args``; a fault becomes one RecipeError."""
        keys = self.known_keys
        sections = {key.partition(".")[0] for key in keys} - _OPTIONS
        check_recipe_files(args, sections, also=(*SUBCOMMANDS, *_OPTIONS))
        for file in config_files(args):
            load_named_classes(read_yaml(file))
        try:
            words = expand_short_keys(
                expand_class_names(args or []), whole=sections | _OPTIONS, keys_of=lambda words: self._keys(parser, words)
            )
            self.words = self._without_sample_settings(pretrained_words(words))
            self.config = parser.parse_args(self.words)
            resolve_paths(self.config)
        except ArgumentError as error:
            recipe = "recipe" if self.recipe_file is None else str(self.recipe_file)
            raise RecipeError(one_fault(str(error), recipe=recipe, known_keys=keys)) from error
        values = self._section().as_dict()
        check_numbers(values)
        for section, name in (("data", "root"), ("run", "folder")):
            check_place(f"{section}.{name}", str(values[section][name]))
        check_trainer_values(values["trainer"], subcommand=self.config.get("subcommand"))

    def _keys(self, parser: LightningArgumentParser, words: list[str]) -> list[str]:
        """Return every key of the resolved recipe, those of sections and classes included."""
        config = parser.parse_args([word for word in words if not word.startswith("--print_config")])
        section = config[config.subcommand] if config.get("subcommand") in SUBCOMMANDS else config
        return [str(key) for key in section.keys(branches=True)]

    def _without_sample_settings(self, words: list[str]) -> list[str]:
        """Return the command line with the sample's settings set back, where a training names other data."""
        trains = not words or words[0] not in SUBCOMMANDS or words[0] == "fit"
        if not trains or self.recipe_file is None or not self.recipe_file.is_file():
            return words
        found, told = own_folder_words(self.recipe_file, words)
        words, dropped = without_sample_settings(self.recipe_file, words, found)
        if told:
            say(told)
        elif dropped and not any(word.startswith("--print_config") for word in words):
            say(f"Not the recipe's sample: data.source's {', '.join(dropped)} count as if the recipe did not set them.")
        return words

    def before_instantiate_classes(self) -> None:
        """Turn ``--ckpt_path`` into a file before anything is built."""
        self.folder: RunFolder | None = None
        section = self._section()
        trains = self.subcommand in (None, "fit")
        if not trains:
            check_weights_named(str(self.subcommand), section.get("ckpt_path"), untuned=section.untuned)
        self.checkpoint = path = self._checkpoint(section)
        if "ckpt_path" in section:
            section["ckpt_path"] = None if path is None else str(path)
        if path is None:
            return
        self._read = read_checkpoint(path)
        run = run_folder_of(path)
        if trains and run is not None:
            self.folder = RunFolder(share_run_folder(run))
            self.folder.remove_leftovers()
            continue_wandb(section.trainer, self.folder)
            say(f"Continuing {path} in {run}")

    def instantiate_classes(self) -> None:
        """Build everything; what a class refuses becomes one RecipeError."""
        try:
            super().instantiate_classes()
        except (ArgumentError, ValueError) as error:
            # The parser wraps what a constructor raises; what is neither ours nor the parser's keeps its traceback.
            ours = own_error(error)
            if ours is None and not isinstance(error, ArgumentError):
                raise
            raise ours or RecipeError(one_fault(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:  # noqa: ANN401
        """Make the run folder and build the trainer that logs into it."""
        if self.checkpoint is not None:
            self._check_checkpoint(self.checkpoint)
        recipe = self._get(self.config_init, "trainer")
        if self.subcommand in (None, "fit"):
            check_global_batch(self.datamodule, vars(recipe))
        if self.subcommand == "predict":
            check_needs_no_user(self.model.segmenter)
        # Before a folder is made: faulty data must leave nothing behind.
        rule = self.model.segmenter.input_rule
        split = self.subcommand != "predict"
        masks = split and self.model.task.needs_masks
        folder, tested = self._split_folder(), self.subcommand == "test"
        self.datamodule.open(rule, run_folder=folder, require_masks=masks, split=split, cohort=tested)
        if split and not self.datamodule.splits.train:
            cases = counted(len(self.datamodule.splits.test), "case")
            say(f"Another cohort than the run's: all of its {cases} are tested, none of which trained it or chose its weights.")
        if self.checkpoint is not None and self.subcommand in _SCORED:
            warn_of_other_settings(self.checkpoint, self.recipe_values()["data"], self.words)
            warn_of_trained_cases(self.checkpoint, getattr(self.datamodule.splits, _SCORED[self.subcommand]))
        if split:
            self.results.pretraining = check_unseen(self)
        check_cacheable(self.model.segmenter, self.datamodule)
        self.model.segmenter.check_data(self.datamodule)
        self._check_before_folder(recipe)
        section = self._section()
        continued = self.folder is not None
        if self.folder is None:
            self.folder = RunFolder(make_run_folder(Path(section.run.folder), self.place))
            keep_record(self)
        config = trainer_config(self, recipe, continued=continued)
        try:
            trainer = pl.Trainer(**config)
            if self.subcommand == "predict":
                check_one_process(trainer)
            if self.subcommand in (None, "fit"):
                set_global_batch(trainer, self.datamodule)
            check_limits(trainer, self.datamodule, _STAGES[self.subcommand], interval=recipe["val_check_interval"])
            if self.subcommand in (None, "fit"):
                self._plan_length(trainer)
                self.datamodule.epochs = planned_epochs(trainer, self.datamodule)
                self.datamodule.check_refreshed()
                self.model.check_schedule(planned_steps(trainer, self.datamodule))
        except (MisconfigurationException, RecipeError, TypeError, ValueError, ImportError) as error:
            self.discard_unused_folder()
            raise own_error(error) or RecipeError(trainer_fault(str(error), list(vars(recipe)))) from error
        return trainer

    def take_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the checkpoint with its file, once: nothing else may keep it in memory."""
        content, self._read = self._read, None
        return None if self.checkpoint is None or content is None else (self.checkpoint, content)

    def _check_checkpoint(self, path: Path) -> None:
        if self._read is not None:
            check_fits(self.model, self._read, str(path))
            if self.subcommand in (None, "fit"):
                check_goes_on(path, self._read, self.model.trainable_parameters())

    def _check_before_folder(self, recipe: Mapping[str, Any]) -> None:
        if self.subcommand in (None, "fit"):
            self.model.trainable_parameters()
            check_chunk_memory(self.model.segmenter, self.datamodule)
            self.model.check_optimizer()
            check_pretraining(self.model, self.datamodule)
            # The split of a test on another cohort has cases to test alone; ``check_trains`` refuses to train on it.
            tests_alone = self.subcommand is None and not self.datamodule.splits.train
            if self.model.task.needs_masks and recipe["limit_val_batches"] != 0 and not tests_alone:
                check_validation(self.datamodule)
        check_trainer_parts(vars(recipe), figures=self.model.validation_figures())
        if recipe["strategy"] == FSDP and self.subcommand in (None, "fit"):
            check_sharded(vars(recipe), self.model)
        if self.settings.compile and self.subcommand in (None, "fit"):
            check_compiled(self.model, cached=self.datamodule.cache_embeddings, strategy=recipe["strategy"])
        self.dump()

    def _plan_length(self, trainer: pl.Trainer) -> None:
        """Make an example's training long enough for the data at hand; the stored recipe says what was set."""
        section = self._section()
        said = stated(self.recipe_file, self.words, section.data.root)
        for key, number in plan_length(trainer, self.model, self.datamodule, said).items():
            section[key] = number

    def _split_folder(self) -> Path | None:
        """Return the folder whose splits.json counts: a continued run's, or that of the run whose checkpoint is scored."""
        split = self.datamodule.split
        if self.checkpoint is None or self.subcommand not in _SCORED or split.file is not None:
            if self.folder is not None and not self.folder.splits.is_file() and split.file is None:
                raise CheckpointError(
                    f"{self.folder.splits}: is missing, so nobody knows which cases the run trained on. Restore it from a "
                    "copy, or name the split with --data.split.file."
                )
            return None if self.folder is None else self.folder.path
        return run_with_split(self.checkpoint, self.words, split).path

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Hold one stage of the trainer: what fails before anything was recorded leaves no folder, and Ctrl-C stays Ctrl-C."""
        finished = False
        try:
            yield
            finished = True
        except SystemExit as error:
            # Lightning turns Ctrl-C into the exit status 1 of an error.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            if isinstance(error, SIGTERMException):
                raise SystemExit(SIGTERM_STATUS) from error
            raise
        finally:
            if not finished:
                self.discard_unused_folder()

    def _parse_ckpt_path(self) -> None:
        """Take no settings from a checkpoint, as Lightning would: the recipe of its run has them."""

    def after_validate(self) -> None:
        """Say what was scored."""
        say(scores_line(self.trainer.callback_metrics, "val"))

    def after_test(self) -> None:
        """Say what was scored."""
        say(scores_line(self.trainer.callback_metrics, "test"))

    def _run_subcommand(self, subcommand: str) -> None:
        with self.stage():
            super()._run_subcommand(subcommand)

    def discard_unused_folder(self) -> None:
        """Remove the run folder if nothing was recorded in it."""
        if self.folder is not None and is_rank_zero() and not self.folder.config.is_file():
            self.folder.remove()

    def dump(self) -> str:
        """Return the resolved recipe as YAML; which checkpoint it was continued from is no part of it.

        Raises:
            RecipeError: If it holds a value that no YAML can, such as a default of a class that is no text.
        """
        section = self._section().clone()
        if "ckpt_path" in section:
            section["ckpt_path"] = None
        section.pop("untuned", None)
        values = repr(section)
        if values != self._dumped[0]:
            try:
                # The parser has looked at every value already; to look again takes most of the time.
                how: dict[str, Any] = {"skip_none": False, "skip_validation": True, "format": "yaml"}
                self._dumped = values, self._parser(self.subcommand).dump(section, **how)
            except (ValueError, yaml.YAMLError) as error:
                raise RecipeError(f"recipe: {unwritable(str(error))}") from error
        return self._dumped[1]

    def take_found(self) -> dict[str, int]:
        """Take into the recipe the batch size that a finder has found, without the finder, and return it by key."""
        section, found = self._section(), self.datamodule.batch_size
        section.trainer.callbacks = without_finder(section.trainer.callbacks)
        if section.data.batch_size == found:
            return {}
        section.data.batch_size = found
        return {"data.batch_size": found}

    def recipe_values(self) -> dict[str, Any]:
        """Return the resolved recipe as plain nested values, without what no recipe has."""
        text = self.dump()
        if text != self._plain[0]:
            self._plain = text, read_dumped(text)
        return {name: deepcopy(value) for name, value in self._plain[1].items() if name not in _OPTIONS}

    @property
    def place(self) -> str:
        """Return where the runs of this recipe on these data lie, below ``run.folder``."""
        section = self._section()
        return self._name or run_place(section.data.root, self.recipe, section.run.name).as_posix()

    @property
    def settings(self) -> RunSettings:
        """Return the recipe's ``run`` section."""
        settings: RunSettings = self._get(self.config_init, "run")
        return settings

    @property
    def run_folder(self) -> RunFolder:
        """Return the run's folder.

        Raises:
            RuntimeError: Before the trainer is built.
        """
        if self.folder is None:
            raise RuntimeError("the run folder is made together with the trainer")
        return self.folder

    def _checkpoint(self, section: Namespace) -> Path | None:
        """Return the checkpoint to go on from: the one asked for, or that of this SLURM job before it was put back."""
        value, root = section.get("ckpt_path"), Path(section.run.folder)
        trains = self.subcommand in (None, "fit")
        if value is None or (value == "auto" and trains):
            run = agreed_run(lambda: self._begun(root, value)) if trains else None
            return None if run is None else RunFolder(run).last_checkpoint
        path = resolve_ckpt_path(value, root, self.place)
        if value in ("best", "last") and not trains:
            check_same_data(value, path.parent.parent, self.recipe_values()["data"])
        return path

    def _begun(self, root: Path, value: str | None) -> Path | None:
        """Return the run of this SLURM job, or the newest where the recipe goes on by itself; None begins a new one."""
        run = requeued_run(root, self.place, slurm_job())
        return newest_run(root, self.place) if run is None and value == "auto" else run

    def _section(self) -> Namespace:
        section: Namespace = self.config[self.config.subcommand] if self.config.get("subcommand") else self.config
        return section


def main(argv: list[str]) -> int:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` with LightningCLI's full power; return the exit code."""
    MedsamCLI(argv, recipe_file=next(config_files(argv), None), command=shlex.join(["medsam-tune", *argv]), run=True)
    return 0


def _seed_number(seed: bool | int) -> int:
    return 0 if isinstance(seed, bool) else seed
