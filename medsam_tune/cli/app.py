"""``medsam-tune app MODEL``: a page in the browser that shows what the model says of an image, and takes corrections."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand

_DESCRIPTION = """\
Open a page in the browser: drop an image, a volume or the files of a DICOM series, scroll its slices, draw a box, click, or let
the model find the object; the untuned network answers beside it. The mask can be corrected with a brush, downloaded in the
format of the image, and saved as new training data.

MODEL is a run's folder, an export folder, or the name of released weights: the untuned network alone.

The page is for this machine only: it listens on 127.0.0.1, calls no other host, and reports nothing to anybody. From elsewhere:
ssh -L 7860:127.0.0.1:7860 MACHINE. Uploads are removed when the command ends. docs/how-to/app.md shows it."""


def main(words: list[str]) -> int:
    """Run ``app`` with its words, until it is interrupted.

    Raises:
        MedsamTuneError: If the model cannot be loaded, or the port is taken.
    """
    options = parser().parse_args(words)
    if importlib.util.find_spec("gradio") is None:
        raise RecipeError("app: needs gradio. Install it: pip install medsam-tune[app]")
    from medsam_tune.serve.server import listen, run

    saved = expand(options.save_to, "--save-to")
    if saved.exists() and not saved.is_dir():
        raise RecipeError(f"--save-to: {saved} is a file; the images and masks need a folder.")
    with listen("127.0.0.1", options.port) as place, tempfile.TemporaryDirectory(prefix="medsam_tune_app_") as work:
        from medsam_tune.app.models import Models
        from medsam_tune.app.site import make_site
        from medsam_tune.runs.asked_model import open_model
        from medsam_tune.serve.served_model import licence_of

        model = open_model(options.model, checkpoint=options.checkpoint, trusted=options.trust)
        models = Models.of(model, label=options.label)
        licence = licence_of(models.segmenter.base_weights())
        site = make_site(models, saved=saved.resolve(), licence=licence, work=Path(work))
        print(f"{Path(options.model).name}: http://127.0.0.1:{place.getsockname()[1]}    Ctrl+C stops it.", flush=True)
        run(site, place)
    return 0


def parser() -> OptionParser:
    """Return what parses the words."""
    found = OptionParser("medsam-tune app", _DESCRIPTION)
    found.add_argument("model", metavar="MODEL", help="a run folder, an export folder, or weights such as lite_medsam")
    found.add_argument("--port", type=int, default=7860, help="by default 7860")
    found.add_argument("--save-to", metavar="DIR", default="corrected", help="the folder of new training data, ./corrected")
    found.add_argument("--label", metavar="NAME", help="the class that is shown, of a model with several")
    found.add_argument("--checkpoint", metavar="FILE", help="where the base weights lie if they are a file of your own")
    found.add_argument("--trust", action="store_true", help="import classes from outside medsam_tune that the run names")
    return found
