"""Where a server listens, who may call it, and how it is run."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.errors import RecipeError

if TYPE_CHECKING:
    from fastapi import FastAPI

KEY_VARIABLE = "NN_INTERACTIVE_API_KEY"
"""nnInteractive's client reads its key from there as well."""
SHORTEST_KEY = 16
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


def read_key(file: Path | None) -> str | None:
    """Return the key that clients must know: of a file, else of the environment, else None.

    Raises:
        RecipeError: If the file cannot be read, or the key is too short to keep anybody out.
    """
    try:
        key = os.environ.get(KEY_VARIABLE, "") if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--key-file: {file} cannot be read ({error}). Give a text file with the key in it.") from error
    if (file is not None or key) and not (len(key) >= SHORTEST_KEY and key.isascii() and key.isprintable()):
        raise RecipeError(
            f"the key of {file or KEY_VARIABLE} must have at least {SHORTEST_KEY} letters and digits, got {len(key)}. "
            'Make one: python -c "import secrets; print(secrets.token_urlsafe(24))"'
        )
    return key or None


def is_local(host: str) -> bool:
    """Tell whether only this machine reaches a host's port.

    Examples:
        >>> is_local("127.0.0.1"), is_local("0.0.0.0")
        (True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str) -> tuple[str, ...]:
    """Return the names by which clients may call the server; on this machine alone, no web page's own name is one."""
    return _LOCAL_NAMES if is_local(host) else ("*",)


def check_host(host: str, key: str | None) -> None:
    """Refuse to let other machines in without a key.

    Raises:
        RecipeError: Saying how to make one.
    """
    if not is_local(host) and key is None:
        raise RecipeError(
            f"--host: {host} lets other machines in, which needs a key. Write one to a file and give --key-file FILE, or set "
            f"{KEY_VARIABLE}. Without a key: stay on 127.0.0.1, and reach it through `ssh -L`."
        )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes any free one.

    Raises:
        RecipeError: If the place is taken or is none.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with ExitStack() as failed:
            found = failed.enter_context(socket.socket(family, socket.SOCK_STREAM))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
            found.listen()
            failed.pop_all()
    except (OSError, OverflowError) as error:
        raise RecipeError(
            f"--port: cannot listen on {host}, port {port} ({error}). Give another one, such as --port 1528."
        ) from error
    return found


def run(app: FastAPI, place: socket.socket) -> None:
    """Answer until somebody stops the process; requests are not logged, faults are, without what a client sent."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="on")
    uvicorn.Server(config).run(sockets=[place])
