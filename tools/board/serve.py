"""The board's server: for this machine alone, or for others by a password; nothing of its page comes from elsewhere."""

import hmac
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tools import BadInput
from tools.board import uploads
from tools.core import templates, yaml_text
from tools.gguf import llamacpp

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The environment variable with the password; an argument would be seen by all who list the processes.
PASSWORD = "REACT_RECIPES_UI_PASSWORD"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What the browser may load: what we send, and nothing from elsewhere. No other page may hold ours in a frame.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'"
# What Gradio's page names of other hosts: a script for frames, and fonts.
ELSEWHERE = re.compile(r"<(?:link|script|meta)\b[^>]*\bhttps?://[^>]*>(?:\s*</script>)?")
# Seconds that open connections have when the server ends.
GRACE = 2
FONT = ("system-ui", "sans-serif")


def open_page(port: int, host: str, lang: str) -> None:
    """Serve the board until Ctrl-C; then what runs is ended, a training after its step, with a checkpoint.

    `lang`: en or zh. Raises BadInput for a port that is taken, and for a `host` that others can reach without a
    password in REACT_RECIPES_UI_PASSWORD.
    """
    password, local = os.environ.pop(PASSWORD, ""), is_loopback(host)
    if not local and not password:
        raise BadInput(f"--host {host} opens the page to other machines; set {PASSWORD} to the password they must give")
    llamacpp.free_port(port)
    # Read when Gradio is imported: no telemetry, and what comes in stays in the project's outputs.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(uploads.incoming().absolute())}
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from tools.board import page
    from tools.board.board import Board
    from tools.board.runs import Work

    own_pages_only()
    work = Work()
    app = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        page.build(Board(texts(lang), work)),
        "/",
        server_name=host,
        server_port=port,
        auth=(lambda _, given: hmac.compare_digest(given.encode(), password.encode())) if password else None,
        footer_links=[],
        show_error=False,  # it would show an error's text as HTML
        max_file_size=uploads.MOST,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=gradio.themes.Default(font=FONT, font_mono=("ui-monospace", "monospace")),
        head=templates.template("board/head.html.j2").render(),
    )
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}: the board; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(
        Guard(app, local), host=host, port=port, log_level="warning", timeout_graceful_shutdown=GRACE
    )
    try:
        uvicorn.Server(config).run()
    finally:
        work.end()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is served on a host. Raises BadInput for what is no address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise BadInput(f"--host {host}: not an address; 127.0.0.1, 0.0.0.0 or one of this machine's") from None


def texts(lang: str) -> Mapping[str, str]:
    """The page's texts in one language, by name."""
    path = templates.TEMPLATES / "board" / "texts.yaml"
    return {name: each[lang] for name, each in yaml_text.parse(path.read_text(encoding="utf-8"), path).items()}


def own_pages_only() -> None:
    """Take what Gradio's page names of other hosts out of its templates."""
    import jinja2
    from gradio import routes

    loader = routes.templates.env.loader
    assert loader
    name = "frontend/index.html"
    source = Path(routes.STATIC_TEMPLATE_LIB, name).read_text(encoding="utf-8")
    routes.templates.env.loader = jinja2.ChoiceLoader([jinja2.DictLoader({name: ELSEWHERE.sub("", source)}), loader])


class Guard:
    """Refuses what another site's page asks of us through the browser, and tells the browser to load nothing of others.

    `local`: the page is for this machine alone, so it has no other name: a site cannot pretend to be it by its own.
    """

    def __init__(self, app: "ASGIApp", local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on, or refuse it."""
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import PlainTextResponse

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] != "http" or foreign(headers.get("host", ""), headers.get("origin"), self.local):
            await PlainTextResponse("not from this page", 403)(scope, receive, send)
            return

        async def told(message: "Message") -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["content-security-policy"] = POLICY
            await send(message)

        await self.app(scope, receive, told)


def foreign(host: str, origin: str | None, local: bool) -> bool:
    """Whether a request is another site's: by the name that it gives us, or by the page that it comes from."""
    try:
        return bool(
            (local and urlsplit(f"//{host}").hostname not in LOOPBACK) or (origin and urlsplit(origin).netloc != host)
        )
    except ValueError:
        return True
