"""The model that a command names: a run, an export that somebody sent, or released weights, which nobody tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_tune.backbone.weights import WEIGHTS, architecture_of, load_state_dict_file
from medsam_tune.data.formats import FORMATS, ChannelFiles, Format
from medsam_tune.data.formats.channels import channels_of
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.export.description import DESCRIPTION_FILE, read_description
from medsam_tune.export.load import load_export
from medsam_tune.export.parts import PartReader
from medsam_tune.files import sha256_of
from medsam_tune.folders import expand
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.runs.listing import run_named
from medsam_tune.runs.run import Run
from medsam_tune.training.run_folder import RunFolder

if TYPE_CHECKING:
    from medsam_tune.inference.asked_slices import PriorFinder
    from medsam_tune.inference.predictor import Predictor

_RANDOM = "random_"
# File systems keep times to two seconds at worst.
_CLOCK_SECONDS = 2.0


@dataclass(frozen=True)
class AskedModel:
    """Hold a model and all that its folder says about how to ask it.

    Attributes:
        name: As it was named.
        predictor: The network.
        data: What it was trained on.
        identity: A checksum that differs where any answer may.
        formats: Who reads files: those of the package, and before them the one of the run's own recipe.
        is_untuned: Whether these are released weights.
    """

    name: str
    predictor: Predictor
    data: TrainedData
    identity: str
    formats: tuple[Format, ...] = FORMATS
    is_untuned: bool = False

    def prior_finder(self) -> PriorFinder | None:
        """Return what finds the automatic masks of an image as the training did; None where the model fuses none.

        Raises:
            RecipeError: If it does, and nobody knows how they were found.
        """
        if not self.predictor.segmenter.reads_priors():
            return None
        if self.data.priors is None:
            raise RecipeError(f"{self.name}: fuses automatic masks, but its data name no priors. Export the run again.")
        from medsam_tune.inference.automatic import AutomaticMaskGenerator
        from medsam_tune.inference.prior_network import build_prior_network

        network = build_prior_network(self.data.priors).to(next(self.predictor.segmenter.parameters()).device)
        return AutomaticMaskGenerator(network, self.data.priors).generate


def open_model(name: str, *, checkpoint: str | None = None, trusted: bool = False) -> AskedModel:
    """Load the model of a run, of an export folder, or the untuned network of released weights.

    Args:
        name: A folder, the name of weights, or the name or time of the one run below ``runs``; looked for in that order.
        checkpoint: Where the base weights lie if they are a file of your own.
        trusted: Import classes from outside ``medsam_tune`` that the folder names; that runs their code.

    Raises:
        MedsamTuneError: If there is no such model, or it cannot be loaded.
    """
    folder = expand(name, "MODEL")
    if (folder / DESCRIPTION_FILE).is_file():
        predictor = load_export(folder, checkpoint=checkpoint, trusted=trusted)
        return _tuned(name, predictor, folder)
    if RunFolder(folder).config.is_file():
        run = Run.open(folder, trusted=trusted)
        refuse_older_export(folder)
        predictor = run.predictor(checkpoint=checkpoint, trusted=trusted)
        return _tuned(name, predictor, folder / "export", _own_formats(run.config, trusted=trusted))
    if not folder.exists() and "=" not in name and (name in WEIGHTS or name.startswith(_RANDOM)):
        return _untuned(name, checkpoint)
    if (found := plain_checkpoint(name)) is not None:
        return replace(_untuned(*found), name=name)
    if not folder.exists() and (named := run_named(name)) is not None:
        return replace(open_model(str(named), checkpoint=checkpoint, trusted=trusted), name=name)
    raise RecipeError(_no_model(name, folder))


def _tuned(name: str, predictor: Predictor, export: Path, own: tuple[Format, ...] = ()) -> AskedModel:
    described = read_description(export).get("data", {})
    if channels := described.get("channels"):
        own = (channels_of(channels, FORMATS),)
    read = {type(own[0].format)} if own and isinstance(own[0], ChannelFiles) else set()
    # What reads one channel alone would take the other channels for images of their own.
    others = tuple(each for each in FORMATS if type(each) not in read)
    data = TrainedData.of(described)
    return AskedModel(name, predictor, data, sha256_of(export / DESCRIPTION_FILE), (*own, *others))


def _untuned(name: str, checkpoint: str | None) -> AskedModel:
    from medsam_tune.backbone.sam import SamBackbone
    from medsam_tune.inference.predictor import Predictor

    backbone = SamBackbone(name, checkpoint=checkpoint)
    return AskedModel(name, Predictor(backbone), TrainedData(), backbone.weights.sha256, is_untuned=True)


def plain_checkpoint(name: str) -> tuple[str, str] | None:
    """Return the weights whose input rule a plain SAM checkpoint follows, and its file; None for what is no file of weights.

    Args:
        name: ``FILE``, where the architecture in it is that of one name of ``weights list`` alone, or ``NAME=FILE``.

    Raises:
        CheckpointError: If the file cannot be read, or is of no known architecture, or of one that several names share.

    Examples:
        >>> plain_checkpoint("sam_vit_b=mine.pth"), plain_checkpoint("runs/lora")
        (('sam_vit_b', 'mine.pth'), None)
    """
    weights, equals, file = name.partition("=")
    if equals and (weights in WEIGHTS or weights.startswith(_RANDOM)):
        return weights, file
    path = expand(name, "MODEL")
    if not path.is_file():
        return None
    architecture = architecture_of(load_state_dict_file(path))
    fitting = [entry.name for entry in WEIGHTS.values() if entry.architecture == architecture]
    if len(fitting) == 1:
        return fitting[0], str(path)
    meant = " or ".join(f"{each}={name}" for each in fitting)
    hint = f"Say whose input rule it follows: {meant}." if fitting else f"Known are {', '.join(WEIGHTS)}."
    raise CheckpointError(f"{path}: holds {architecture or 'no architecture that is known here'}. {hint}")


def refuse_older_export(folder: Path) -> None:
    """Refuse an export that was written before the run was trained further."""
    export, best = folder / "export" / DESCRIPTION_FILE, RunFolder(folder).checkpoints / "best.ckpt"
    if export.is_file() and best.is_file() and best.stat().st_mtime > export.stat().st_mtime + _CLOCK_SECONDS:
        raise RecipeError(
            f"{export.parent}: is older than checkpoints/best.ckpt, so the run was trained further since. Write it again: "
            f"medsam-tune export {folder}."
        )


def _own_formats(config: Mapping[str, Any], *, trusted: bool) -> tuple[Format, ...]:
    """Return the format that the recipe's source names, if it names one."""
    source = (config.get("data") or {}).get("source")
    described = (source.get("init_args") or {}).get("format") if isinstance(source, Mapping) else None
    if described is None:
        return ()
    described = {"class_path": described} if isinstance(described, str) else described
    return (PartReader(trusted=trusted).part(described, Format, "data.source.format").build(),)


def _no_model(name: str, folder: Path) -> str:
    if not folder.exists():
        return (
            f"{name}: no such run or export folder, and no weights of that name. Give a run of `medsam-tune runs list`, or "
            f"one of {', '.join(WEIGHTS)}."
        )
    depths = ("*", "*/*", "*/*/*")
    runs = sorted(path.parent.relative_to(folder) for depth in depths for path in folder.glob(f"{depth}/config.yaml"))
    hint = (
        f"It holds {len(runs)} runs; name one, such as {folder / runs[-1]}."
        if runs
        else "`medsam-tune runs list` shows the runs there are."
    )
    return f"{name}: is no run (no config.yaml) and no export (no {DESCRIPTION_FILE}). {hint}"
