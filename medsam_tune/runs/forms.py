"""``medsam-tune export RUN --to FORM``: a run, or an export that somebody sent, in a form that other tools load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medsam_tune.backbone.weights import WEIGHTS, fetch_weights
from medsam_tune.errors import CheckpointError, RecipeError
from medsam_tune.export.description import DESCRIPTION_FILE
from medsam_tune.export.forms import FormName, Tuned, read_tuned, verify_form, write_form
from medsam_tune.export.forms.adapter import rounded
from medsam_tune.export.forms.base import Written, read_record
from medsam_tune.export.forms.bundle import is_own_code
from medsam_tune.export.forms.graph_segmenter import GraphSegmenter
from medsam_tune.export.forms.int8 import SUFFIX, write_int8
from medsam_tune.export.forms.write import Measure
from medsam_tune.export.load import load_export
from medsam_tune.folders import expand
from medsam_tune.runs.asked_model import refuse_older_export
from medsam_tune.runs.listing import run_or_folder
from medsam_tune.runs.run import Run
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.training.run_folder import RunFolder


@dataclass(frozen=True)
class Exported:
    """Hold a folder that was written, and how it did in the foreign tool: the figures of ``verify_form``."""

    folder: Path
    figures: Mapping[str, Any]


def export_form(
    name: str,
    form: FormName,
    out: str | None = None,
    *,
    int8: bool = False,
    half: bool = False,
    checkpoint: str | None = None,
    force: bool = False,
    trusted: bool = False,
) -> Exported:
    """Write a form of a run or an export folder, and check it in the tool it is for.

    Args:
        name: The folder, or the name of a run.
        form: Which form.
        out: Where to; by default ``export-FORM`` in the run, or beside the export folder.
        int8: Write graphs of 8 bits too and measure their Dice on the run's test cases.
        half: Write an adapter in float16, half the bytes, and measure its Dice on the run's test cases.
        checkpoint: Where the base weights lie if they are a file of your own.
        force: Go on with other base weights than those of the training.
        trusted: Import classes from outside ``medsam_tune`` that the folder names; that runs their code.

    Raises:
        CheckpointError: If the model cannot take this form, or the tool does not answer as the tuned network does.
        RecipeError: If there is no such model, or ``int8`` goes with another form than onnx, or ``half`` than adapter.
    """
    folder = run_or_folder(name, "RUN")
    run = Run.open(folder, trusted=trusted) if RunFolder(folder).config.is_file() else None
    if int8 and form != "onnx":
        raise RecipeError(f"--int8: belongs to --to onnx, got --to {form}. Leave it out.")
    if int8 and run is None:
        raise RecipeError(f"--int8: its cost is measured on a run's test cases, and {name} is no run. Give the run's folder.")
    if half and form != "adapter":
        raise RecipeError(f"--half: belongs to --to adapter, got --to {form}. Leave it out.")
    if run is not None:
        refuse_older_export(folder)
        if not (folder / "export" / DESCRIPTION_FILE).is_file():
            run.export([f"--model.backbone.checkpoint={checkpoint}"] if checkpoint else [])
    read = partial(read_tuned, folder, checkpoint=checkpoint, force=force, trusted=trusted)
    tuned = rounded(read()) if half else read()
    place = expand(out, "OUT") if out else _default(folder, run is not None, form)
    measure: Measure | None = None
    if run is not None and (int8 or half):
        measure = partial(_eight_bits, run=run, tuned=tuned) if int8 else partial(_halves, run=run, tuned=tuned, exact=read)
    write_form(tuned, form, place, measure=measure)
    return Exported(place, check_export(place, checkpoint=checkpoint, force=force, trusted=trusted))


def check_export(folder: Path, *, checkpoint: str | None = None, force: bool = False, trusted: bool = False) -> dict[str, Any]:
    """Check an export of any form in the tool it is for, and return the figures of ``verify_form``.

    An adapter that stock peft cannot load is checked by this package, and ``loads_in`` says so.

    Raises:
        CheckpointError: As ``verify_form``; also if a bundle runs other code than this package writes.
    """
    record = read_record(folder)
    if record["form"] == "bundle" and not trusted and not is_own_code(folder):
        raise CheckpointError(
            f"{folder}: its scripts or configs/inference.json are not what this version of medsam-tune writes, and checking a "
            "bundle runs them. Give --trust if you trust whoever sent it."
        )
    if record["form"] != "adapter":
        return {**verify_form(folder), "loads_in": record["loads_in"]}
    if record["not_in_peft"] is not None:
        return {**_ask_own(folder, checkpoint, force=force, trusted=trusted), "loads_in": "medsam_tune"}
    return {**verify_form(folder, base=_base_file(record, checkpoint)), "loads_in": record["loads_in"]}


def _base_file(record: Mapping[str, Any], checkpoint: str | None) -> Path:
    weights = record["base_weights"]
    if checkpoint is None and weights["name"] not in WEIGHTS:
        raise CheckpointError(
            f"--verify: the base weights of this adapter are {weights['name']}, sha256 {weights['sha256']}. Say where they "
            "lie: --checkpoint FILE."
        )
    return Path(checkpoint).expanduser() if checkpoint else fetch_weights(weights["name"])


def _ask_own(folder: Path, checkpoint: str | None, *, force: bool, trusted: bool) -> dict[str, Any]:
    """Reload an adapter by this package and ask it what its reference asks."""
    from medsam_tune.export.forms.foreign import compare, questions
    from medsam_tune.export.forms.reference import make_reference
    from medsam_tune.export.forms.verify import check_figures

    segmenter = load_export(folder, checkpoint=checkpoint, force=force, trusted=trusted).segmenter
    answers = [(answer.low_res_masks, answer.masks) for answer in make_reference(segmenter).answers]
    figures = compare(list(questions(folder)), answers)
    check_figures(folder, {"loads_in": "medsam_tune"}, figures)
    return figures


def _default(folder: Path, is_run: bool, form: FormName) -> Path:
    return folder / f"export-{form}" if is_run else folder.with_name(f"{folder.resolve().name}-{form}")


def _eight_bits(folder: Path, written: Written, *, run: Run, tuned: Tuned) -> dict[str, Any]:
    """Write graphs of 8 bits and measure what they cost against those of 32 on the run's test cases."""
    sizes = write_int8(folder)
    exact, small = GraphSegmenter(tuned.segmenter, folder), GraphSegmenter(tuned.segmenter, folder, SUFFIX)
    return {**sizes, **_cost(run, "int8", exact, small)}


def _halves(folder: Path, written: Written, *, run: Run, tuned: Tuned, exact: Callable[[], Tuned]) -> dict[str, Any]:
    """Measure what 16 bits cost against 32 on the run's test cases."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"weights_MB": round(size / 1e6, 2), **_cost(run, "float16", exact().segmenter, tuned.segmenter)}


def _cost(run: Run, name: str, exact: Segmenter, small: Segmenter) -> dict[str, Any]:
    """Return the Dice of a network in float32 and in fewer bits."""
    scores = run.score_networks({"float32": exact, name: small})
    dice = {each: found["dice"]["mean"] for each, found in scores.items()}
    return {
        "dice_float32": dice["float32"],
        f"dice_{name}": dice[name],
        f"dice_cost_of_{name}": dice["float32"] - dice[name],
        "test_cases": scores[name]["n_cases"],
    }
