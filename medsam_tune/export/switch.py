"""Several adapters on one backbone: loaded once each, switched in place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medsam_tune.backbone.fit import misfits
from medsam_tune.errors import CheckpointError
from medsam_tune.export.build import read_segmenter
from medsam_tune.export.folder import ExportFolder
from medsam_tune.export.load import Checkpoint, check_base_weights, load_adapter
from medsam_tune.export.parts import Part, PartReader
from medsam_tune.export.trained import tuner_of

if TYPE_CHECKING:
    from medsam_tune.inference.predictor import Predictor
    from medsam_tune.tuners.peft_tuner import PeftTuner

# These starts rewrite the frozen weights, so two such adapters need two backbones.
_REWRITING_STARTS = ("pissa", "olora", "corda", "mica")


class AdapterSwitch:
    """Hold adapters of one kind for one backbone; ``use`` makes one of them the active one.

    The adapters may differ in width, layers and values. They share the base weights, the method, and every other part of the
    network with its settings; the values of what was trained beside the adapter (such as a decoder's) are switched too.

    Args:
        name: A name for the first adapter.
        folder: Its folder, as ``save_export`` wrote it.
        checkpoint: Where the base weights lie if they are a file of your own.
        force: Go on although the base weights at hand are not those it was trained on.
        trusted: Import classes from outside ``medsam_tune`` that the folder names; that runs their code.

    Attributes:
        predictor: Segments with the active adapter.

    Raises:
        CheckpointError: If the folder cannot be loaded, or its method rewrites the frozen weights.

    Examples:
        >>> adapters = AdapterSwitch("liver", "runs/liver/export")  # doctest: +SKIP
        >>> adapters.add("lung", "runs/lung/export")  # doctest: +SKIP
        >>> mask = adapters.use("lung").segment(image, box=box)  # doctest: +SKIP
    """

    def __init__(
        self,
        name: str,
        folder: str | Path,
        *,
        checkpoint: Checkpoint | None = None,
        force: bool = False,
        trusted: bool = False,
    ) -> None:
        from medsam_tune.tuners.peft_tuner import ADAPTER

        stored = ExportFolder.read(folder)
        _check_start(stored)
        self.predictor: Predictor = load_adapter(folder, force, checkpoint=checkpoint, trusted=trusted)
        self._first, self._force, self._trusted = stored, force, trusted
        self._peft_names = {name: ADAPTER}
        self._extras = {name: dict(stored.trained)}
        self._active = name

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the adapters in the order they came."""
        return tuple(self._peft_names)

    @property
    def active(self) -> str:
        """Return the name of the active adapter."""
        return self._active

    def add(self, name: str, folder: str | Path) -> None:
        """Load another adapter beside the others; the active one stays active.

        Raises:
            CheckpointError: If the name is taken, a file is missing or corrupt, or the adapter belongs to another network.
        """
        if name in self._peft_names:
            raise CheckpointError(f"{name!r} is the name of a loaded adapter. Choose another name.")
        stored = ExportFolder.read(folder)
        _check_start(stored)
        self._check_fits(stored)
        # peft forbids dots and its own prefix in a name; a number of ours is always free.
        peft_name = f"added-{len(self._peft_names)}"
        self._tuner.add_adapter(peft_name, stored.config or {}, stored.adapter)
        self._peft_names[name] = peft_name
        self._extras[name] = dict(stored.trained)
        self.predictor.segmenter.requires_grad_(False).eval()
        self.use(self._active)

    def use(self, name: str) -> Predictor:
        """Make an adapter the active one and return the predictor; its current image, if any, is forgotten.

        Raises:
            CheckpointError: If there is no adapter of this name.
        """
        if name not in self._peft_names:
            raise CheckpointError(f"{name!r} is no loaded adapter; there are {', '.join(self._peft_names)}. Call add first.")
        self._tuner.use_adapter(self._peft_names[name])
        with torch.no_grad():
            self.predictor.segmenter.load_state_dict(self._extras[name], strict=False)
        self._active = name
        self.predictor.reset_image()
        return self.predictor

    @property
    def _tuner(self) -> PeftTuner:
        tuner = tuner_of(self.predictor.segmenter)
        if tuner is None:
            raise CheckpointError("the predictor's segmenter was exchanged for one without an adapter. Build a new switch.")
        return tuner

    def _check_fits(self, stored: ExportFolder) -> None:
        """Check that another adapter differs in its own settings and values alone."""
        if not self._force:
            check_base_weights(stored.folder, stored.description["base_weights"], self.predictor.segmenter)
        ours, theirs = self._around(self._first), self._around(stored)
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                raise CheckpointError(
                    f"{stored.folder}: its {key} is {theirs.get(key)}, that of {self._first.folder} is {ours.get(key)}. "
                    "Adapters that share a backbone differ in the adapter alone; load this one with load_export."
                )
        if faults := misfits(stored.trained, self._first.trained):
            raise CheckpointError(f"{stored.folder}: what was trained beside the adapter does not fit: {faults}.")

    def _around(self, stored: ExportFolder) -> dict[str, object]:
        """Return all that adapters on one backbone share, by name."""
        network = read_segmenter(stored.description["model"], PartReader(self._trusted))
        return {
            **_settings("segmenter", network),
            "method": (stored.config or {}).get("peft_type"),
            "trained beside the adapter": sorted(stored.trained),
            "frozen": stored.description["frozen"],
        }


# What is compared by its tensors (where the adapter lies, what learns beside it), or changes no answer of a trained network.
_FREE = ("tuner", "trainable", "objects_per_decode", "seed", "jitter", "eval_jitter")


def _settings(key: str, value: object) -> dict[str, object]:
    """Return the class and every setting of a part and of the parts inside, by dotted name, without the adapter's own."""
    if not isinstance(value, Part):
        return {key: value}
    found: dict[str, object] = {key: value.constructor.__name__}
    for name, argument in value.arguments.items():
        if name not in _FREE:
            found |= _settings(f"{key}.{name}", argument)
    return found


def _check_start(stored: ExportFolder) -> None:
    start: object = (stored.config or {}).get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_REWRITING_STARTS):
        raise CheckpointError(
            f"{stored.folder}: was trained with init_lora_weights {start}, which rewrites the frozen weights, so it cannot "
            "share a backbone. Load it alone with load_export."
        )
