"""The clients of a server: each has a lease, its own image and object, and is forgotten when it falls silent."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from medsam_tune.serve.asked_volume import AskedVolume
from medsam_tune.serve.errors import Refusal

LIVENESS_SECONDS = 60.0
"""A client sends a sign of life at half of this; nnInteractive's own server waits as long."""


@dataclass
class Session:
    """Hold one client: what it asks about, the lock that keeps its requests in order, and when it was heard."""

    volume: AskedVolume
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen_at: float = 0.0
    active_at: float = 0.0


class Sessions:
    """Give leases, find the session of each, and drop those whose client is gone or idle.

    Args:
        open_volume: Makes what a new client asks about.
        most: Clients at once.
        idle_seconds: Without a prompt or an image for so long, a client is idle.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        open_volume: Callable[[], AskedVolume],
        *,
        most: int,
        idle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open, self.most, self.idle_seconds, self._clock = open_volume, most, idle_seconds, clock
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many clients hold a lease."""
        return len(self._sessions)

    def claim(self) -> str:
        """Return the token of a new session.

        Raises:
            Refusal: With status 503 if all are taken.
        """
        self.sweep()
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            if len(self._sessions) >= self.most:
                raise Refusal(503, f"all {self.most} places of this server are taken. Try again in a minute.")
            self._sessions[token] = Session(self._open(), seen_at=now, active_at=now)
        return token

    def find(self, token: str | None, *, active: bool) -> Session:
        """Return the session of a token, and note that its client lives.

        Args:
            token: As ``claim`` returned it.
            active: Whether the user did something; a sign of life alone does not keep an idle session.

        Raises:
            Refusal: With status 410 if there is none, or no longer.
        """
        self.sweep()
        now = self._clock()
        with self._lock:
            session = self._sessions.get(token or "")
            if session is None:
                raise Refusal(410, "this session has expired or never was. Connect again.")
            session.seen_at = now
            session.active_at = now if active else session.active_at
        return session

    def remaining_seconds(self, session: Session) -> float:
        """Return for how long the session stays if its user does nothing."""
        return max(0.0, self.idle_seconds - (self._clock() - session.active_at))

    def release(self, token: str | None) -> None:
        """Drop a session, if there is one."""
        with self._lock:
            session = self._sessions.pop(token or "", None)
        if session is not None:
            with session.lock:
                session.volume.close()

    def sweep(self) -> None:
        """Drop the sessions of clients that are gone or idle; one that is at work is neither, and is not waited for."""
        now = self._clock()
        with self._lock:
            old = [
                token
                for token, session in self._sessions.items()
                if not session.lock.locked()
                and (now - session.seen_at > LIVENESS_SECONDS or now - session.active_at > self.idle_seconds)
            ]
        for token in old:
            self.release(token)
