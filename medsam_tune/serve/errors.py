"""What a client is told, with the status of HTTP that it knows how to show."""

from __future__ import annotations

from medsam_tune.errors import MedsamTuneError


class Refusal(MedsamTuneError):
    """A request that cannot be answered.

    Args:
        status: Of HTTP; nnInteractive's client takes 410 for an expired session and 503 for a full server.
        said: What was expected, what came, what to do.
    """

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status
