"""The endpoints of nnInteractive's protocol around one model.

Protocol: https://github.com/MIC-DKFZ/nnInteractive, ``inference/remote`` of nninteractive-client 2.6.0 (Apache-2.0).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import torch
from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from nnInteractive.inference.remote import _protocol as protocol
from pydantic import BaseModel, FiniteFloat, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from medsam_tune.errors import MedsamTuneError
from medsam_tune.serve.asked_volume import AskedVolume, Change
from medsam_tune.serve.errors import Refusal
from medsam_tune.serve.limits import BodyLimit, KeyCheck
from medsam_tune.serve.served_model import ServedModel
from medsam_tune.serve.sessions import LIVENESS_SECONDS, Session, Sessions
from medsam_tune.serve.wire import pack, unpack

_ARRAYS = (protocol.PATH_SET_IMAGE, protocol.PATH_ADD_INITIAL_SEG, protocol.PATH_ADD_SCRIBBLE, protocol.PATH_ADD_LASSO)
_SWEEP_SECONDS = 15.0
Result = TypeVar("Result")


class PointBody(BaseModel):
    """A click."""

    coordinates: list[FiniteFloat]
    include_interaction: bool
    run_prediction: bool = True


class BoxBody(BaseModel):
    """A box: half-open ranges."""

    bbox_coords: list[list[FiniteFloat]]
    include_interaction: bool
    run_prediction: bool = True


class BufferBody(BaseModel):
    """The array that the client writes the mask to; its type is the client's affair."""

    shape: list[int]


class ImageMeta(BaseModel):
    """What comes beside an image; all but the spacing is left unread."""

    class Properties(BaseModel):
        """Of the image."""

        spacing: list[FiniteFloat] | None = None

    image_properties: Properties = Properties()


class MaskMeta(BaseModel):
    """What comes beside a mask."""

    run_prediction: bool = False


Meta = TypeVar("Meta", bound=BaseModel)


class _Endpoints:
    """Answer each path of the protocol; what touches an image runs in a thread, under the lock of its session."""

    def __init__(self, model: ServedModel, sessions: Sessions, most_bytes: int) -> None:
        self.model, self.sessions, self.most_bytes = model, sessions, most_bytes

    def claim(self) -> dict[str, Any]:
        return {
            "lease_token": self.sessions.claim(),
            "idle_timeout_seconds": self.sessions.idle_seconds,
            "liveness_timeout_seconds": LIVENESS_SECONDS,
            "max_sessions": self.sessions.most,
        }

    def release(self, token: Token = None) -> dict[str, bool]:
        self.sessions.release(token)
        return {"released": True}

    def heartbeat(self, token: Token = None) -> dict[str, float]:
        return {"remaining_seconds": self.sessions.remaining_seconds(self.sessions.find(token, active=False))}

    def lease_status(self, token: Token = None) -> dict[str, float]:
        return {**self.heartbeat(token), "idle_timeout_seconds": self.sessions.idle_seconds}

    async def set_image(self, request: Request, token: Token = None) -> dict[str, list[int]]:
        session = self.sessions.find(token, active=True)
        spacing = _meta(request, ImageMeta).image_properties.spacing
        body = await request.body()

        def work(volume: AskedVolume) -> tuple[int, ...]:
            return volume.set_image(unpack(body, most_bytes=self.most_bytes), spacing)

        return {"original_image_shape": list(await run_in_threadpool(_under_lock, session, work))}

    def set_target_buffer(self, body: BufferBody, token: Token = None) -> dict[str, Any]:
        self._do(token, lambda volume: volume.set_mask(body.shape))
        return {}

    def set_do_autozoom(self, token: Token = None) -> dict[str, Any]:
        self.sessions.find(token, active=True)  # This model always looks at whole slices.
        return {}

    def reset(self, token: Token = None) -> dict[str, Any]:
        self._do(token, AskedVolume.reset)
        return {}

    def add_point(self, body: PointBody, token: Token = None) -> Response:
        def work(volume: AskedVolume) -> Change | None:
            volume.add_point(body.coordinates, positive=body.include_interaction)
            return volume.answer() if body.run_prediction else None

        self._refuse_where_none_is_taken("points")
        return _changed(self._do(token, work), ran=body.run_prediction)

    def add_box(self, body: BoxBody, token: Token = None) -> Response:
        def work(volume: AskedVolume) -> Change | None:
            volume.add_box(body.bbox_coords, positive=body.include_interaction)
            return volume.answer() if body.run_prediction else None

        self._refuse_where_none_is_taken("boxes")
        return _changed(self._do(token, work), ran=body.run_prediction)

    def add_other(self, request: Request) -> Response:
        kind = request.url.path.removeprefix("/add_").removesuffix("_interaction")
        raise Refusal(400, f"SAM reads no {kind}. Use points and boxes.")

    async def add_mask(self, request: Request, token: Token = None) -> Response:
        session = self.sessions.find(token, active=True)
        if _meta(request, MaskMeta).run_prediction:
            raise Refusal(400, "SAM refines no mask by itself. Load it without refinement, and use points and boxes.")
        body = await request.body()

        def work(volume: AskedVolume) -> None:
            volume.take_mask(unpack(body, most_bytes=self.most_bytes))

        await run_in_threadpool(_under_lock, session, work)
        return _changed(None, ran=False)

    def predict(self, token: Token = None) -> Response:
        change = self._do(token, lambda volume: volume.answer(everything=True))
        return _changed(change, ran=change is not None)

    def undo(self, token: Token = None) -> Response:
        change = self._do(token, AskedVolume.undo)
        return _changed(change, ran=change is not None)

    def _do(self, token: str | None, work: Callable[[AskedVolume], Result]) -> Result:
        return _under_lock(self.sessions.find(token, active=True), work)

    def _refuse_where_none_is_taken(self, kind: str) -> None:
        if not self.model.encoded.predictor.segmenter.takes_prompts():
            raise Refusal(400, f"this model takes no {kind}: it finds its object by itself. Run a prediction without prompts.")


Token = Annotated[str | None, Header(alias=protocol.LEASE_HEADER)]


def make_app(
    model: ServedModel,
    *,
    key: str | None = None,
    hosts: tuple[str, ...] = ("*",),
    most_sessions: int = 4,
    idle_seconds: float = 1800.0,
    most_bytes: int = 2 * 10**9,
) -> FastAPI:
    """Return the application.

    Args:
        model: What it offers.
        key: What clients must know; None lets everybody in who reaches the port.
        hosts: By which names the server may be called, so that no web page calls it by another.
        most_sessions: Clients at once.
        idle_seconds: After how long without a prompt a client is forgotten.
        most_bytes: Of an image, packed and unpacked.
    """
    sessions = Sessions(model.open_volume, most=most_sessions, idle_seconds=idle_seconds)
    # No pages that describe the endpoints: they load scripts from another host.
    app = FastAPI(title="medsam-tune", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_sweeping(sessions))
    app.add_middleware(BodyLimit, arrays=_ARRAYS, most_bytes=most_bytes)
    if key is not None:
        app.add_middleware(KeyCheck, key=key, open_paths=(protocol.PATH_HEALTHZ,))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    tell_faults(app)
    _route(app, _Endpoints(model, sessions, most_bytes))
    return app


def tell_faults(app: FastAPI) -> None:
    """Answer what a request did wrong with one sentence, and log nothing of it."""
    app.add_exception_handler(MedsamTuneError, _say_refusal)
    app.add_exception_handler(RequestValidationError, _say_misfit)
    app.add_exception_handler(ValueError, _say_refusal)
    app.add_exception_handler(MemoryError, _say_full)
    app.add_exception_handler(torch.OutOfMemoryError, _say_full)


def _route(app: FastAPI, endpoints: _Endpoints) -> None:
    app.add_api_route(protocol.PATH_HEALTHZ, lambda: {"ok": True}, methods=["GET"])
    read = {
        protocol.PATH_CAPABILITIES: endpoints.model.capabilities,
        protocol.PATH_LEASE_STATUS: endpoints.lease_status,
    }
    written: dict[str, Callable[..., Any]] = {
        protocol.PATH_CLAIM: endpoints.claim,
        protocol.PATH_RELEASE: endpoints.release,
        protocol.PATH_HEARTBEAT: endpoints.heartbeat,
        protocol.PATH_SET_IMAGE: endpoints.set_image,
        protocol.PATH_SET_TARGET_BUFFER: endpoints.set_target_buffer,
        protocol.PATH_SET_DO_AUTOZOOM: endpoints.set_do_autozoom,
        protocol.PATH_RESET_INTERACTIONS: endpoints.reset,
        protocol.PATH_ADD_POINT: endpoints.add_point,
        protocol.PATH_ADD_BBOX: endpoints.add_box,
        protocol.PATH_ADD_SCRIBBLE: endpoints.add_other,
        protocol.PATH_ADD_LASSO: endpoints.add_other,
        protocol.PATH_ADD_INITIAL_SEG: endpoints.add_mask,
        protocol.PATH_PREDICT: endpoints.predict,
        protocol.PATH_UNDO: endpoints.undo,
    }
    for method, routes in (("GET", read), ("POST", written)):
        for path, endpoint in routes.items():
            app.add_api_route(path, endpoint, methods=[method], response_model=None)


def _sweeping(sessions: Sessions) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP_SECONDS)
                sessions.sweep()

        task = asyncio.create_task(sweep())
        yield
        task.cancel()

    return lifespan


def _under_lock(session: Session, work: Callable[[AskedVolume], Result]) -> Result:
    with session.lock:
        return work(session.volume)


def _meta(request: Request, kind: type[Meta]) -> Meta:
    try:
        return kind.model_validate_json(request.headers.get(protocol.META_HEADER, "{}"))
    except ValidationError as error:
        raise Refusal(400, f"{protocol.META_HEADER}: {_misfits(error.errors())}") from error


def _changed(change: Change | None, *, ran: bool) -> Response:
    """Return the part of the mask that changed, as the clients expect it."""
    meta: dict[str, Any] = {"ran_prediction": ran, "bbox": None}
    body = b""
    if change is not None:
        meta |= {"bbox": [list(each) for each in change.ranges], "dtype": "uint8", "shape": list(change.values.shape)}
        body = pack(change.values)
    return Response(body, media_type=protocol.CONTENT_TYPE_OCTET_STREAM, headers={protocol.META_HEADER: json.dumps(meta)})


async def _say_refusal(_: Request, error: Exception) -> JSONResponse:
    """Tell the client what is wrong; nothing of it is logged, since it may hold what the client sent."""
    return JSONResponse({"detail": str(error)}, status_code=error.status if isinstance(error, Refusal) else 400)


async def _say_full(_: Request, error: Exception) -> JSONResponse:
    said = "the server has no memory left for this. Crop the image, or close other clients."
    return JSONResponse({"detail": said}, status_code=413)


async def _say_misfit(_: Request, error: Exception) -> JSONResponse:
    said = _misfits(error.errors()) if isinstance(error, RequestValidationError) else str(error)
    return JSONResponse({"detail": said}, status_code=400)


def _misfits(errors: Any) -> str:  # noqa: ANN401 - pydantic's and fastapi's errors differ in their declared types
    """Return where a request does not fit, without what stood there."""
    return "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in errors)
