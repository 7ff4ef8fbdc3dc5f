"""What a run says to the person at the terminal, from rank 0 only."""

from __future__ import annotations

import logging
import warnings

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from medsam_tune.errors import DataWarning

_usual_format = warnings.formatwarning
_console = Console(highlight=False, soft_wrap=True)


@rank_zero_only
def say(text: str) -> None:
    """Show one message (plain text, may hold several lines) on rank 0."""
    _console.print(text, markup=False)


class _NotAnAdvertisement(logging.Filter):
    """Drop Lightning's tip to install litlogger: that package would take the ``lightning`` command away from ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "litlogger" not in record.getMessage()


class _NotAboutReading(logging.Filter):
    """Drop Lightning's word that ``weights_only`` is False: it saves the optimizer too, but reads as if pickles were loaded."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "`weights_only` was not set" not in record.getMessage()


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format our own warnings without the place in the code, which says nothing to whoever can act on them."""
    if issubclass(category, DataWarning):
        return f"warning: {message}\n"
    return _usual_format(message, category, filename, lineno, line)


def quieten() -> None:
    """Silence the messages of Lightning that ask for nothing a user of recipes could or should do; show our own plainly."""
    warnings.formatwarning = _format_warning
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_NotAnAdvertisement())
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(_NotAboutReading())
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        r"Found \d+ module\(s\) in eval mode.*",  # frozen modules stay in eval mode by design
        r".*does not have many workers.*",
        r"The number of training batches.*is smaller than the logging interval.*",
        r"The dirpath has changed from.*",  # a checkpoint tested from another folder
        r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint.*",  # other run settings
        r"Checkpoint directory .* exists and is not empty.*",  # a continued run
        r"`loftq_config` specified but will be ignored.*",  # the parser writes out this default of peft's LoraConfig
    ):
        warnings.filterwarnings("ignore", message=message)
