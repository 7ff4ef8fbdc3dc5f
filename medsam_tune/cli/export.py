"""``medsam-tune export``: write what a run trained in a reloadable form, or merged into a plain SAM."""

from __future__ import annotations

import argparse


def main(arguments: list[str]) -> int:
    """Run ``export`` with its arguments.

    Raises:
        CheckpointError: If the run cannot be loaded, or cannot take the form that is asked for.
    """
    if arguments and arguments[0] != "merge" and not arguments[0].startswith("-"):
        return _export(arguments)
    options = parser().parse_args(arguments or ["--help"])
    from medsam_tune.export.merge import merge_export

    architecture = merge_export(
        options.run, options.merged, checkpoint=options.checkpoint, force=options.force, trusted=options.trust
    )
    print(f'segment_anything.sam_model_registry["{architecture}"](checkpoint="{options.merged}") loads it')
    return 0


def _export(arguments: list[str]) -> int:
    """Write RUN/export."""
    from medsam_tune.cli.of_run import opened

    run, changed = opened("export", arguments)
    print(f'medsam_tune.load_export("{run.export(changed).folder / "export"}") loads it')
    return 0


def parser() -> argparse.ArgumentParser:
    """Return what parses the words after ``medsam-tune export``."""
    described = "RUN alone in place of a form writes its export folder again: `medsam-tune export RUN`."
    parser = argparse.ArgumentParser("medsam-tune export", description=f"Turn a finished run into other forms. {described}")
    forms = parser.add_subparsers(dest="form", required=True)
    merge = forms.add_parser("merge", help="one plain SAM checkpoint that segment_anything loads")
    merge.add_argument("run", metavar="RUN", help="a run folder, or its export folder")
    merge.add_argument("merged", metavar="OUT.pth", help="the file to write")
    merge.add_argument("--checkpoint", metavar="FILE", help="where the base weights lie if they are a file of your own")
    merge.add_argument("--force", action="store_true", help="go on with other base weights than those of the training")
    merge.add_argument("--trust", action="store_true", help="import classes from outside medsam_tune that the run names")
    return parser
