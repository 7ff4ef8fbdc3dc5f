"""Turn away who does not know the key, and requests that are larger than their kind may be, before a body is read."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from medsam_tune.serve.errors import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_BYTES_OF_JSON = 64 * 1024
_TOO_LARGE = "the request is larger than this server takes. Crop the image, or start it with a larger --max-gigabytes."


class KeyCheck:
    """Answer 401 to a request that does not bring the key: as a bearer, or as the password of any user.

    Args:
        app: What answers all others, an ASGI application.
        key: What clients must know.
        open_paths: Paths that need no key.
    """

    def __init__(self, app: Application, *, key: str, open_paths: tuple[str, ...] = ()) -> None:
        self.app, self._wanted, self._open = app, key.encode(), open_paths

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Compare the key in a time that tells nothing of it."""
        if scope["type"] == "http" and scope["path"] not in self._open:
            brought = _key_of(dict(scope["headers"]).get(b"authorization", b""))
            if not hmac.compare_digest(brought, self._wanted):
                await _refuse(send, 401, "the key is missing or wrong. Enter the key of this server.")
                return
        await self.app(scope, receive, send)


def _key_of(header: bytes) -> bytes:
    """Return the key that a request brings, or nothing.

    Examples:
        >>> _key_of(b"Bearer secret"), _key_of(b"Basic " + base64.b64encode(b"anna:secret")), _key_of(b"secret")
        (b'secret', b'secret', b'')
    """
    kind, _, value = header.partition(b" ")
    if kind == b"Basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return value if kind == b"Bearer" else b""


class BodyLimit:
    """Answer 413 to a request whose body is too long: by the length that it names, or as soon as more has come.

    Args:
        app: What answers all others, an ASGI application.
        arrays: Paths whose body is an array.
        most_bytes: Of an array; any other body may have ``MOST_BYTES_OF_JSON``.
    """

    def __init__(self, app: Application, *, arrays: tuple[str, ...], most_bytes: int) -> None:
        self.app, self.arrays, self.most_bytes = app, arrays, most_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand the request on with a body that ends at the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.most_bytes if scope["path"] in self.arrays else MOST_BYTES_OF_JSON
        named = dict(scope["headers"]).get(b"content-length", b"0")
        if not named.isdigit() or int(named) > limit:
            await _let_pass(receive)
            await _refuse(send, 413, _TOO_LARGE)
            return
        await self.app(scope, _counted(receive, limit), send)


def _counted(receive: Receive, limit: int) -> Receive:
    """Return what receives a body, and refuses as soon as it is longer than the limit."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise Refusal(413, _TOO_LARGE)
        return message

    return counted


async def _let_pass(receive: Receive) -> None:
    """Read a body and keep nothing: clients read the answer after they have sent all, and see a broken line otherwise."""
    more = True
    while more:
        message = await receive()
        more = message["type"] == "http.request" and message.get("more_body", False)


async def _refuse(send: Send, status: int, said: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": said}).encode()})
