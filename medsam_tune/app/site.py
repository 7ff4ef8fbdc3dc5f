"""The page as a site of this machine alone: no address of another one is called by the browser or by this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.app.models import Models
from medsam_tune.serve.limits import Application, Message, Receive, Send

if TYPE_CHECKING:
    from fastapi import FastAPI

# Everything of the page comes from the server itself; its scripts and styles stand in the page, pictures in its values.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'"
)
MOST_UPLOADED = "4gb"
_NAMES = ("127.0.0.1", "localhost")


class OwnHostOnly:
    """Tell the browser to load nothing from another host, whatever a page asks for.

    Args:
        app: What answers, an ASGI application.
    """

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Add the policy to each answer."""

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self.app(scope, receive, with_policy)


def make_site(models: Models, *, saved: Path, licence: str, work: Path) -> FastAPI:
    """Return the application around a page; arguments as for ``Page``."""
    # Gradio reads them when it is imported and when it is asked for a page.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(work)
    import gradio
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from medsam_tune.app.page import STYLE, Page

    page = Page(models, saved=saved, licence=licence, work=work).build()
    site = FastAPI(title="medsam-tune", docs_url=None, redoc_url=None, openapi_url=None)
    site.add_middleware(OwnHostOnly)
    site.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_NAMES))
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    found: FastAPI = gradio.mount_gradio_app(
        site,
        page,
        path="/",
        server_name=_NAMES[0],
        theme=gradio.themes.Soft(primary_hue="orange", font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
        footer_links=[],
        max_file_size=MOST_UPLOADED,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        run_history=False,
        show_error=False,
    )
    return found
