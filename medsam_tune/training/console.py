"""What a run says to the person at the terminal, from rank 0 only."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from medsam_tune.errors import DataWarning

_usual_format = warnings.formatwarning
_PACKAGE = Path(__file__).parents[1]
# In a notebook plain lines too: what rich draws there needs ipywidgets, and parts the lines.
console = Console(highlight=False, soft_wrap=True, force_jupyter=False)
"""Standard output; a bar must be drawn on it too, so that lines appear above the bar and not in it."""

_LABEL_WIDTH = 10


@rank_zero_only
def say(text: str) -> None:
    """Show one message (plain text, may hold several lines) on rank 0."""
    console.print(text, markup=False)


def labelled(label: str, text: str) -> str:
    """Return a line of the beginning or the end of a run.

    Example:
        >>> labelled("Device", "cpu")
        'Device      cpu'
    """
    return f"{label:<{_LABEL_WIDTH}}  {text}"


def span(seconds: float) -> str:
    """Write a time for people, as minutes and seconds, with hours where there are any.

    Example:
        >>> span(8.4), span(3723)
        ('0:08', '1:02:03')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format our own warnings without the place in the code, which says nothing to whoever can act on them."""
    if issubclass(category, DataWarning) or Path(filename).is_relative_to(_PACKAGE):
        return f"warning: {message}\n"
    return _usual_format(message, category, filename, lineno, line)


def quieten() -> None:
    """Silence the messages of Lightning that ask for nothing a user of recipes could or should do; show our own plainly.

    What it tells of devices, seeds, checkpoints and ends of training, and its advertisements, are messages of level INFO; a run
    says the same once in its own words.
    """
    warnings.formatwarning = _format_warning
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        r"Found \d+ module\(s\) in eval mode.*",  # frozen modules stay in eval mode by design
        r".*does not have many workers.*",
        r"The number of training batches.*is smaller than the logging interval.*",
        r"The dirpath has changed from.*",  # a checkpoint tested from another folder
        r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint.*",  # other run settings
        r"Checkpoint directory .* exists and is not empty.*",  # a continued run
        r"It is recommended to use `self\.log\(.*sync_dist=True.*",  # what is logged are means over all processes already
        r"GPU available but not used.*",  # the first lines name the device
        # A test of averaged weights, for which no state of the averaging is needed.
        r"The checkpoint was not created with WeightAveraging.*",
        r"You're using the WeightAveraging callback, but loading a checkpoint outside the 'fit' stage.*",
        r"`loftq_config` specified but will be ignored.*",  # the parser writes out this default of peft's LoraConfig
    ):
        warnings.filterwarnings("ignore", message=message)
