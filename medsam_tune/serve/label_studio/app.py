"""The endpoints of Label Studio's protocol for ML backends around one model.

Protocol: https://github.com/HumanSignal/label-studio-ml-backend, ``label_studio_ml/api.py`` at d02cedf (Apache-2.0), read and
written anew; its package on the index pins a web server of 2021.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from medsam_tune.inference.asked_slices import answer_slice
from medsam_tune.inference.slice_prompts import SliceAnswer
from medsam_tune.serve.app import tell_faults
from medsam_tune.serve.errors import Refusal
from medsam_tune.serve.label_studio.images import TaskImages
from medsam_tune.serve.label_studio.tasks import Interface, make_region, read_drawn, read_interface
from medsam_tune.serve.limits import BodyLimit, KeyCheck
from medsam_tune.serve.served_model import ServedModel

_PREDICT = "/predict"


class TaskBody(BaseModel):
    """A task; all but its data is left unread."""

    data: dict[str, Any]


class PredictParams(BaseModel):
    """What goes along with tasks: the interaction, where somebody drew."""

    context: dict[str, Any] | None = None


class PredictBody(BaseModel):
    """Tasks that want masks."""

    tasks: list[TaskBody]
    label_config: str
    params: PredictParams | None = None


class _Endpoints:
    """Answer each path of the protocol, one request at a time."""

    def __init__(self, model: ServedModel, images: TaskImages, version: str) -> None:
        self.model, self.images, self.version = model, images, version
        self._lock = threading.Lock()

    def health(self) -> dict[str, str]:
        return {"status": "UP", "model_class": "medsam-tune"}

    def setup(self) -> dict[str, str]:
        return {"model_version": self.version}

    def versions(self) -> dict[str, list[str]]:
        return {"versions": [self.version]}

    def webhook(self) -> dict[str, str]:
        return {}  # Annotations are read when they are exported, not one by one.

    def predict(self, body: PredictBody) -> dict[str, Any]:
        interface = read_interface(body.label_config)
        context = (body.params.context if body.params else None) or {}
        regions = context.get("result") or []
        with self._lock:
            results = [self._answer(task, regions, interface) for task in body.tasks]
        return {"results": results, "model_version": self.version}

    def _answer(self, task: TaskBody, regions: list[dict[str, Any]], interface: Interface) -> dict[str, Any]:
        asks_user = self.model.encoded.predictor.segmenter.asks_user() is not None
        if asks_user and not regions:  # Label Studio asks once when a task is opened, before anything is drawn.
            return {"result": [], "score": 0.0, "model_version": self.version}
        stated = task.data.get(interface.key)
        if not isinstance(stated, str):
            raise Refusal(400, f"the task's data have no text at {interface.key}, where its image stands. Import it again.")
        slices = self.images.open(stated)
        height, width = slices.header.stored_shape[1:]
        drawn = read_drawn(regions, (height, width))
        if asks_user and not drawn.prompts.asks:
            return {"result": [], "score": 0.0, "model_version": self.version}
        predictor = self.model.encoded.get(stated, slices, 0)
        answer = answer_slice(predictor, drawn.prompts if drawn.prompts.asks else None, label=self.model.label)
        return self._shown(answer, interface, drawn.label)

    def _shown(self, answer: SliceAnswer, interface: Interface, label: str | None) -> dict[str, Any]:
        known = (label, self.model.label, *interface.labels)
        called = next(name for name in known if name in interface.labels)
        result = [make_region(answer, interface, str(called))] if answer.mask.any() else []
        return {"result": result, "score": answer.predicted_iou or 0.0, "model_version": self.version}


def make_app(
    model: ServedModel, images: TaskImages, *, version: str, key: str | None, hosts: tuple[str, ...], most_bytes: int
) -> FastAPI:
    """Return the application.

    Args:
        model: What answers.
        images: Where tasks' images are found.
        version: What Label Studio shows as the model's version.
        key: The password that Label Studio must bring, with any user's name; None lets everybody in.
        hosts: By which names the server may be called.
        most_bytes: Of a request.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        images.close()

    app = FastAPI(title="medsam-tune", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(BodyLimit, arrays=(_PREDICT,), most_bytes=most_bytes)
    if key is not None:
        app.add_middleware(KeyCheck, key=key, open_paths=("/health",))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    tell_faults(app)
    endpoints = _Endpoints(model, images, version)
    for path in ("/", "/health"):
        app.add_api_route(path, endpoints.health, methods=["GET"])
    for path, endpoint in ((_PREDICT, endpoints.predict), ("/setup", endpoints.setup), ("/versions", endpoints.versions)):
        app.add_api_route(path, endpoint, methods=["POST"], response_model=None)
    app.add_api_route("/webhook", endpoints.webhook, methods=["POST"], status_code=201)
    return app
