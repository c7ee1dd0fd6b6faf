"""A small text world behind OpenEnv's own server, of openenv-core 0.1 or 0.3, whichever this Python has.

Its arguments: the port, and how the fields of action and observation are named. `boom` raises.
"""

import sys
from typing import Any

import uvicorn

try:
    from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

    NEW = True
except ImportError:
    from dataclasses import make_dataclass

    from openenv_core.env_server import Action, Environment, Observation, State, create_fastapi_app

    NEW = False

PORT, ACTION, OBSERVATION = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if NEW:
    from pydantic import create_model

    action_fields: dict[str, Any] = {ACTION: (str, ...)}
    observation_fields: dict[str, Any] = {OBSERVATION: (str, ...), "tries": (int, 0)}
    said: Any = create_model("Said", __base__=Action, **action_fields)
    seen: Any = create_model("Seen", __base__=Observation, **observation_fields)
else:
    said = make_dataclass("Said", [(ACTION, str)], bases=(Action,), kw_only=True)
    seen = make_dataclass("Seen", [(OBSERVATION, str), ("tries", int)], bases=(Observation,), kw_only=True)


class Number(Environment):
    """A number from 1 to 8 is hidden: the seed's remainder, or 7 where there are no seeds."""

    def reset(self, seed: int = 6, episode_id: str | None = None) -> Any:
        """Hide a number."""
        self.hidden, self.tries = seed % 8 + 1, 0
        return seen(**{OBSERVATION: "Guess a number from 1 to 8.", "tries": 0})

    def step(self, action: Any, **_: object) -> Any:
        """Tell whether a guess is too low or too high; four guesses end it."""
        words = getattr(action, ACTION)
        if words == "boom":
            raise RuntimeError("the world broke")
        guess = int(words.removeprefix("guess "))
        self.tries += 1
        won = guess == self.hidden
        text = "That is it." if won else "Too low." if guess < self.hidden else "Too high."
        return seen(**{OBSERVATION: text, "tries": self.tries}, done=won or self.tries == 4, reward=float(won))

    @property
    def state(self) -> Any:
        """Where the game stands."""
        return State(step_count=self.tries)


app = create_fastapi_app(Number if NEW else Number(), said, seen)
uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="error")
