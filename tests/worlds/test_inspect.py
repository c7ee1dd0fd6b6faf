"""`inspect eval` on a world, by the real package in an environment of its own; the expert answers as a model would."""

import json
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest

from tests.worlds.test_openenv import current
from tools.core import run_folder
from tools.worlds.household.expert import Expert

pytestmark = pytest.mark.slow


class ExpertServer(BaseHTTPRequestHandler):
    """OpenAI's chat completions by the household's expert; in another world it guesses 3."""

    experts: ClassVar[dict[str, Expert]] = {}

    def do_POST(self) -> None:
        """Answer a conversation."""
        messages = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        first, last = (text(message) for message in (messages[1], messages[-1]))
        thought, action = "I try.", "guess 3"
        if "You are in the middle of a room" in first:
            expert = self.experts.setdefault(first, Expert(first, random.Random(0)))
            thought, action = expert.act(last.removeprefix("Observation: "))
        answer = {"role": "assistant", "content": f"Thought: {thought}\nAction: {action}"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "finish_reason": "stop", "message": answer}
        body = orjson.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "expert",
                "choices": [choice],
                "usage": usage,
            }
        )
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def text(message: dict[str, Any]) -> str:
    """A message's text, which OpenAI's format has as a string or in parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@pytest.fixture
def address() -> Iterator[str]:
    """A server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ExpertServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def evaluated(world: str, address: str, folder: Path) -> dict[str, Any]:
    """The log of an evaluation of eight games."""
    program = current().with_name("inspect")
    task = [
        "docs/examples/inspect_task.py",
        "-T",
        f"world={world}",
        "--limit",
        "8",
        "--model",
        "openai-api/local/expert",
    ]
    where = ["--log-dir", str(folder / "logs"), "--log-format", "json", "--display", "none"]
    told = os.environ | {"LOCAL_API_KEY": "none", "LOCAL_BASE_URL": address, "HOME": str(folder)}
    done = subprocess.run(
        [str(program), "eval", *task, *where], cwd=run_folder.ROOT, env=told, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-3000:]}"
    (log,) = (folder / "logs").glob("*.json")
    return json.loads(log.read_text())


def test_the_household_is_an_inspect_task(address: str, tmp_path: Path) -> None:
    log = evaluated("household", address, tmp_path)
    assert log["status"] == "success"
    (score,) = log["results"]["scores"]
    assert score["metrics"]["all"]["value"] == 1
    assert {"put", "heat"} & set(score["metrics"]) and len(log["samples"]) == 8
    for sample in log["samples"]:
        roles = [message["role"] for message in sample["messages"]]
        assert roles == ["system", *["user", "assistant"] * (len(roles) // 2)]
        assert sample["id"].startswith("household-2")


def test_a_world_that_fails_is_a_lost_game_with_its_reason(address: str, tmp_path: Path) -> None:
    source = (run_folder.ROOT / "docs" / "examples" / "my_world.py").read_text()
    mine = tmp_path / "mine.py"
    mine.write_text(source.replace("        self.guesses += 1", "        self.guesses += 1 // (self.guesses < 2)"))
    log = evaluated(f"{mine}:MyWorld", address, tmp_path)
    assert log["status"] == "success" and log["results"]["scores"][0]["metrics"]["all"]["value"] == 0
    reasons = {sample["scores"]["won"]["explanation"] for sample in log["samples"]}
    assert len(reasons) == 1 and "MyWorld raised ZeroDivisionError" in reasons.pop()
