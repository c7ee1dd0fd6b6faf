"""A server of OpenAI's API on this machine that answers by a script."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Status, headers and body of an answer, by the number of the request (from 0) and what was asked.
Script = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], dict[str, Any]]]


def says(text: str, finish: str = "stop") -> tuple[int, dict[str, str], dict[str, Any]]:
    """An answer with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"completion_tokens": 7, "prompt_tokens": 1, "total_tokens": 8}
    about = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return 200, {}, {**about, "choices": [choice], "usage": usage}


@contextlib.contextmanager
def serving(script: Script) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The server's address and what it was asked, its headers under "headers"."""
    asked: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.tell(200, {}, {"data": [{"id": "only-model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                number = len(asked)
                told = {name.lower(): value for name, value in self.headers.items()}
                asked.append(body | {"headers": told, "path": self.path})
            self.tell(*script(number, body))

        def tell(self, status: int, headers: dict[str, str], body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "content-type": "application/json",
                "content-length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
