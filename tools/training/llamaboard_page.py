"""Run by LLaMA-Factory's own Python: its web page, opened with a saved configuration filled in.

python llamaboard_page.py CONFIGURATION, in the folder with llamaboard_cache/ and data/. The environment says the
address: GRADIO_SERVER_NAME and GRADIO_SERVER_PORT.
"""

import sys
from collections.abc import Iterator
from typing import Any

from llamafactory.webui import common, interface
from llamafactory.webui.engine import Engine
from starlette.middleware import Middleware

VALUES = common.load_args(sys.argv[1])
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


class Filled(Engine):
    """What is behind the page; where no training runs, opening it fills in the configuration."""

    def resume(self) -> Iterator[dict[object, object]]:
        yield from super().resume()
        if not self.runner.running:
            yield self._update_component({name: {"value": value} for name, value in VALUES.items()})


class OwnFilesOnly:
    """Tells the browser to load nothing from elsewhere: Gradio's page names a script and fonts of other hosts."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, told)


# The page looks up a model's template when its name changes, and would replace ours.
common.DEFAULT_TEMPLATE[VALUES["top.model_name"]] = VALUES["top.template"]
interface.Engine = Filled
interface.fix_proxy()
served = {"middleware": [Middleware(OwnFilesOnly)]}
interface.create_ui().queue().launch(share=False, app_kwargs=served)
