"""Write a tuned model in one of the forms: all that can be refused is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medsam_tune import __version__
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.export.forms.adapter import why_not_adapter, write_adapter
from medsam_tune.export.forms.base import FORMS, RECORD_FILE, RECORD_VERSION, CannotTakeForm, FormName, Tuned, Written
from medsam_tune.export.forms.bundle import write_bundle
from medsam_tune.export.forms.hub import why_not_transformers, write_transformers
from medsam_tune.export.forms.onnx_graphs import why_not_onnx, write_onnx
from medsam_tune.export.forms.reference import REFERENCE_FILE, make_reference
from medsam_tune.export.forms.stock_sam import rule_note, why_not_sam, write_sam
from medsam_tune.export.model_card import form_card
from medsam_tune.files import atomic_folder, sha256_of, write_bytes, write_json, write_text
from medsam_tune.segmenters.base import Segmenter

CARD_FILE = "README.md"
LOADS_IN: dict[FormName, str] = {
    "adapter": "peft",
    "sam": "segment_anything",
    "transformers": "transformers",
    "onnx": "onnxruntime",
    "bundle": "MONAI",
}
# A bundle keeps its card where MONAI looks for it, a hub folder where a hub does.
_CARDS: dict[FormName, str] = {"bundle": "docs/README.md"}
_WHY_NOT: dict[FormName, Callable[[Segmenter], str | None]] = {
    "adapter": why_not_adapter,
    "sam": why_not_sam,
    "transformers": why_not_transformers,
    "onnx": why_not_onnx,
    "bundle": why_not_onnx,
}
_WRITE: dict[FormName, Callable[[Tuned, Path], Written]] = {
    "adapter": write_adapter,
    "sam": write_sam,
    "transformers": write_transformers,
    "onnx": write_onnx,
    "bundle": write_bundle,
}
Measure = Callable[[Path, Written], Mapping[str, Any]]
"""Measures something on the folder that was written, such as what 8 bits cost; called before the card."""


def write_form(tuned: Tuned, form: FormName, folder: Path, *, measure: Measure | None = None) -> Path:
    """Write ``folder``, which appears whole or not at all, with a model card and the reference it is checked against.

    Args:
        tuned: The tuned model; its tuner may be merged in place.
        form: Which form.
        folder: Made new; an earlier export of a form there is replaced.
        measure: Adds figures, and perhaps files, to what was written.

    Raises:
        CheckpointError: If the network cannot take this form, saying why and which forms it can, if ``folder`` holds something
            else, or on a full disk.
        RecipeError: If ``folder`` is that of the run's own export.
    """
    check_form(tuned.segmenter, form)
    _check_place(tuned, folder)
    reference = make_reference(tuned.segmenter).packed()
    with atomic_folder(folder, replace=True, error=CheckpointError) as partial:
        try:
            written = _WRITE[form](tuned, partial)
        except CannotTakeForm as error:
            raise _refusal(tuned.segmenter, form, str(error), lost=error.lost) from error
        figures = {**written.figures, **(measure(partial, written) if measure else {})}
        write_bytes(partial / REFERENCE_FILE, reference, error=CheckpointError)
        if form != "adapter":
            loading = "\n\n".join([written.loading.rstrip(), rule_note(tuned.segmenter), _checking(form)]) + "\n"
            card = form_card(tuned.description, None, loading=loading, more=_rows(tuned, form, figures), library=_library(form))
            write_text(partial / _CARDS.get(form, CARD_FILE), card, error=CheckpointError)
        record = {
            "format_version": RECORD_VERSION,
            "medsam_tune": __version__,
            "form": form,
            "loads_in": LOADS_IN[form],
            "input_rule": tuned.description["input_rule"],
            "base_weights": tuned.description["base_weights"],
            **written.facts,
            "figures": figures,
            "files": {file.relative_to(partial).as_posix(): sha256_of(file) for file in _files(partial)},
        }
        write_json(partial / RECORD_FILE, record, error=CheckpointError)
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_form(segmenter: Segmenter, form: FormName) -> None:
    """Refuse a form that the network cannot take.

    Raises:
        CheckpointError: Saying why, and which forms it can take.
    """
    reason = _why_not(segmenter, form)
    if reason is not None:
        raise _refusal(segmenter, form, reason)


def _why_not(segmenter: Segmenter, form: FormName) -> str | None:
    """Return why a network cannot take a form; one that mixes slices would see one slice in any foreign tool."""
    if form != "adapter" and segmenter.mixes_slices():
        return "its adapters mix the slices of a chunk, which no weight of SAM can hold and no graph of one image shows"
    return _WHY_NOT[form](segmenter)


def _refusal(segmenter: Segmenter, form: FormName, reason: str, *, lost: tuple[FormName, ...] = ()) -> CheckpointError:
    can = [name for name in FORMS if name not in (form, *lost) and _why_not(segmenter, name) is None]
    own = "the run's own export folder, which medsam_tune.load_export reads"
    return CheckpointError(f"--to {form}: {reason.rstrip('.')}. What this model can be written as: {', '.join(can) or own}.")


def _check_place(tuned: Tuned, folder: Path) -> None:
    if folder.resolve() == tuned.folder.resolve():
        raise RecipeError(f"{folder}: is the run's own export, which every form starts from. Name another folder.")
    known = (folder / RECORD_FILE).is_file() and not (folder / "checkpoints").exists()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not known)):
        raise CheckpointError(f"{folder}: holds something else than an export of this command. Name another folder.")


def _rows(tuned: Tuned, form: FormName, figures: Mapping[str, Any]) -> dict[str, str]:
    rows = {} if form == "adapter" else {"Licence": _licence(tuned.description)}
    for name, value in figures.items():
        rows[name.replace("_", " ").capitalize()] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return rows


def _licence(description: Mapping[str, Any]) -> str:
    """Return what a user must know: unlike an adapter, these files hold the base weights."""
    weights = description["base_weights"]
    if weights is None:
        return str(description["licence"])
    from medsam_tune.backbone.weights import WEIGHTS

    name = weights["name"]
    licence = WEIGHTS[name].licence if name in WEIGHTS else "whatever licence they came with"
    held = f"Holds the base weights {name}, which stay under {licence}, and what was trained."
    return f"{held} Terms of the training data may apply."


def _library(form: FormName) -> str | None:
    return {"transformers": "transformers", "onnx": "onnx", "bundle": "monai"}.get(form)


def _checking(form: FormName) -> str:
    return (
        f"`{REFERENCE_FILE}` holds drawn images, questions and the tuned network's own answers; `medsam-tune export --verify "
        f"FOLDER` asks {LOADS_IN[form]} the same and compares."
    )
