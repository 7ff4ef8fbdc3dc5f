"""``medsam-tune serve MODEL``: napari, 3D Slicer and Label Studio ask the model through the protocols that they speak."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand

if TYPE_CHECKING:
    from argparse import Namespace

    from medsam_tune.inference.propagation import PropagationRules
    from medsam_tune.serve.served_model import ServedModel

_DESCRIPTION = """\
Answer napari (plug-in napari-nninteractive, Remote) and 3D Slicer (extension nnInteractive, Remote) with a model of yours.

With --protocol label-studio it is an ML backend of Label Studio instead, for single images.

MODEL is a run's folder, an export folder, or the name of released weights: the untuned network. Boxes and points are answered
on the slice that they are drawn on, along the axis and by the rule of grey levels of the training; with --propagate the object
is followed up and down from there.

Only this machine is let in, unless --host says otherwise; then clients need a key, and what is sent is not encrypted: an SSH
tunnel (ssh -L 1527:127.0.0.1:1527 MACHINE) needs no --host and is. docs/how-to/viewers.md goes through it click by click."""
_PORTS = {"nninteractive": 1527, "label-studio": 9090}
_PACKAGES = ("fastapi", "uvicorn", "nnInteractive", "blosc2")


def main(words: list[str]) -> int:
    """Run ``serve`` with its words, until it is interrupted.

    Raises:
        MedsamTuneError: If the model cannot be loaded, or the place is taken.
    """
    options = parser().parse_args(words)
    check_packages()
    from medsam_tune.serve.server import allowed_hosts, check_host, listen, read_key, run

    key = read_key(None if options.key_file is None else expand(options.key_file, "--key-file"))
    check_host(options.host, key)
    _check_numbers(options)
    _check_protocol(options)
    with listen(options.host, _PORTS[options.protocol] if options.port is None else options.port) as place:
        model = _model(options)
        app = _app(options, model, key, allowed_hosts(options.host))
        print(_opening(options, model, place.getsockname()[1], key), flush=True)
        run(app, place)
    return 0


def parser() -> OptionParser:
    """Return what parses the words."""
    found = OptionParser("medsam-tune serve", _DESCRIPTION)
    found.add_argument("model", metavar="MODEL", help="a run folder, an export folder, or weights such as lite_medsam")
    found.add_argument("--host", default="127.0.0.1", help="where to listen; any but this machine (127.0.0.1) demands a key")
    found.add_argument("--port", type=int, help="by default 1527, as nnInteractive's own server; 9090 for Label Studio")
    found.add_argument(
        "--protocol", choices=sorted(_PORTS), default="nninteractive", help="of napari and Slicer, or of Label Studio"
    )
    found.add_argument("--images", metavar="DIR", help="Label Studio: where its tasks' images lie on this machine")
    found.add_argument("--label-studio", metavar="URL", help="Label Studio: fetch images there; LABEL_STUDIO_API_KEY logs in")
    found.add_argument("--key-file", metavar="FILE", help="holds the key; else NN_INTERACTIVE_API_KEY is one")
    found.add_argument(
        "--orientation",
        default="SPL",
        help="where the axes of the viewer's arrays run, SPL as of DICOM; see the page on viewers",
    )
    found.add_argument("--label", metavar="NAME", help="the class that is shown, of a model with several")
    found.add_argument(
        "--propagate", action="store_true", help="follow the object up and down from the slice that was drawn on"
    )
    found.add_argument("--least-iou", type=float, metavar="IOU", help="with --propagate: stop where the predicted IoU is below")
    found.add_argument("--sessions", type=int, default=4, metavar="N", help="clients at once, 4")
    found.add_argument("--idle-minutes", type=float, default=30, metavar="N", help="an idle client is forgotten after 30")
    found.add_argument("--max-gigabytes", type=float, default=2, metavar="N", help="size of an image when unpacked, 2")
    found.add_argument("--checkpoint", metavar="FILE", help="where the base weights lie if they are a file of your own")
    found.add_argument("--trust", action="store_true", help="import classes from outside medsam_tune that the run names")
    return found


def check_packages() -> None:
    """Refuse to start without what the extra brings.

    Raises:
        RecipeError: Saying how to install it.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"serve: needs {', '.join(missing)}. Install it: pip install medsam-tune[serve]")


def _check_protocol(options: Namespace) -> None:
    label_studio = options.protocol == "label-studio"
    if not label_studio and (options.images or options.label_studio):
        raise RecipeError("--images, --label-studio: go with --protocol label-studio, which is not given. Give it.")
    if label_studio and options.propagate:
        raise RecipeError("--propagate: Label Studio shows single images, which have no neighbours. Leave it out.")
    if label_studio and not (options.images or options.label_studio):
        raise RecipeError("--protocol label-studio: needs --images DIR or --label-studio URL, where the tasks' images are.")
    if label_studio and options.label_studio and not options.label_studio.startswith(("http://", "https://")):
        raise RecipeError(f"--label-studio: expected an address such as http://localhost:8080, got {options.label_studio}.")
    if options.images and not expand(options.images, "--images").is_dir():
        raise RecipeError(f"--images: {options.images} is no folder. Give the folder of the images.")


def _app(options: Namespace, model: ServedModel, key: str | None, hosts: tuple[str, ...]) -> Any:  # noqa: ANN401 - fastapi stays in serve/
    most_bytes = round(options.max_gigabytes * 1e9)
    if options.protocol == "label-studio":
        from medsam_tune.serve.label_studio.app import make_app as make_label_studio
        from medsam_tune.serve.label_studio.images import TaskImages

        images = TaskImages(
            model.data,
            folder=None if options.images is None else expand(options.images, "--images"),
            address=options.label_studio,
            token=os.environ.get("LABEL_STUDIO_API_KEY"),
            most_bytes=most_bytes,
        )
        version = Path(options.model).name or options.model
        return make_label_studio(model, images, version=version, key=key, hosts=hosts, most_bytes=most_bytes)
    from medsam_tune.serve.app import make_app

    return make_app(
        model,
        key=key,
        hosts=hosts,
        most_sessions=options.sessions,
        idle_seconds=60 * options.idle_minutes,
        most_bytes=most_bytes,
    )


def _check_numbers(options: Namespace) -> None:
    for name in ("sessions", "idle_minutes", "max_gigabytes"):
        if not getattr(options, name) > 0:
            raise RecipeError(f"--{name.replace('_', '-')}: expected a number above 0, got {getattr(options, name)}.")


def _model(options: Namespace) -> ServedModel:
    from medsam_tune.runs.asked_model import open_model
    from medsam_tune.serve.served_model import ServedModel

    rules = _rules(options)
    model = open_model(options.model, checkpoint=options.checkpoint, trusted=options.trust)
    return ServedModel.of(model, orientation=options.orientation, label=options.label, rules=rules)


def _rules(options: Namespace) -> PropagationRules | None:
    from medsam_tune.inference.propagation import PropagationRules

    if not options.propagate:
        if options.least_iou is not None:
            raise RecipeError("--least-iou: goes with --propagate, which is not given. Give it, or leave this out.")
        return None
    return PropagationRules() if options.least_iou is None else PropagationRules(least_iou=options.least_iou)


def _opening(options: Namespace, model: ServedModel, port: int, key: str | None) -> str:
    name = Path(options.model).name or options.model
    asked = "points and boxes" if model.capabilities()["supported_interactions"]["points"] else "no prompts: press Run"
    following = "" if model.rules is None else " and follows the object from there"
    host = f"[{options.host}]" if ":" in options.host else options.host
    if options.protocol == "label-studio":
        asked = "boxes, key points and brush strokes" if asked.startswith("points") else "no prompts"
        return "\n".join(
            [
                f"{name}: http://{host}:{port}, {'with' if key else 'without'} a key, for Label Studio; takes {asked}",
                f"  {model.licence()}",
                "  Ctrl+C stops it.",
            ]
        )
    return "\n".join(
        [
            f"{name}: http://{host}:{port}, {'with' if key else 'without'} a key, for {options.sessions} clients",
            f"  {model.data.axis} slices, arrays run {model.orientation}; takes {asked}{following}",
            f"  {model.licence()}",
            "  Ctrl+C stops it.",
        ]
    )
