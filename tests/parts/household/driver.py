"""ALFWorld's own engine behind JSON lines; runs in the engine's environment, not in ours (engine.py).

One request a line on stdin, one answer a line on stdout:
{"load": path of a game.tw-pddl, "names": {id: name} or null} starts a game, {"do": command} makes a move; both answer
{"observation", "won", "admissible"}. {"make": folder} runs ALFWorld's own alfworld-generate over a json_2.1.1 folder
and answers {"made": the number of solvable games}. {"logic": true} answers ALFWorld's domain and grammar,
{"facts": true} its tables of what holds what, what can be done, and how tasks are put.

The engine translates each game's PDDL four times, parses its grammar at every line, and copies all it knows of the
room for each word: here translations and grammars are kept, and what nothing changes is not copied. Its answers stay
the same.
"""

import contextlib
import copy
import functools
import json
import os
import runpy
import sys
from pathlib import Path

import fast_downward
import textworld
import textworld.envs.pddl.logic as logic
import textworld.envs.pddl.textgen as textgen
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from alfworld.gen import constants, goal_library
from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
from textworld.envs import PddlEnv
from textworld.logic import Rule

# A command's template is one of some twenty texts; parsing it again gives the same symbols.
_parse_text = functools.cache(textgen._parse_and_convert)
_pddl2sas = functools.lru_cache(maxsize=4)(fast_downward.pddl2sas)
textgen._parse_and_convert = lambda text, **how: copy.deepcopy(_parse_text(text, **how))
fast_downward.pddl2sas = lambda domain, problem, verbose=False, optimize=False: _pddl2sas(domain, problem)
logic._parse_and_convert = functools.cache(logic._parse_and_convert)
Rule.parse_conjunctive_query = functools.cache(Rule.parse_conjunctive_query)


def _with_context(symbol: textgen.Symbol, context: dict[str, object]) -> textgen.Symbol:
    copied = copy.copy(symbol)
    copied.context = textgen.copy_context(context)
    return copied


textgen.copy_context = lambda context: {
    **context,
    "variables": dict(context["variables"]),
    "mapping": dict(context["mapping"]),
}
textgen.Symbol.copy = _with_context


def answer(state: textworld.GameState) -> dict[str, object]:
    """What a player is told."""
    return {"observation": state.feedback, "won": state.won, "admissible": state.admissible_commands}


def make(folder: str) -> int:
    """ALFWorld's own program makes a game.tw-pddl of each traj_data.json and initial_state.pddl; how many it solves."""
    program = Path(sys.executable).with_name("alfworld-generate")
    made = Path(folder).with_name("made")
    sys.argv = [program.name, "--data_path", folder, "--save_path", str(made), "--end", "1000000"]
    sys.argv += ["--domain", ALFRED_PDDL_PATH, "--grammar", ALFRED_TWL2_PATH]
    runpy.run_path(str(program), run_name="__main__")
    games = [json.loads(path.read_text()) for path in made.rglob("game.tw-pddl")]
    return sum(bool(game["solvable"]) for game in games)


def tables() -> dict[str, object]:
    """ALFWorld's facts."""
    return {
        "holds": {key: sorted(things) for key, things in constants.VAL_RECEPTACLE_OBJECTS.items()},
        "can": {key: sorted(things) for key, things in constants.VAL_ACTION_OBJECTS.items()},
        "openable": constants.OPENABLE_CLASS_LIST,
        "vessels": constants.MOVABLE_RECEPTACLES,
        "rooms": {task: sorted(rooms) for task, rooms in constants.GOALS_VALID.items()},
        "say": {task: known["templates"] for task, known in goal_library.gdict.items()},
    }


def main() -> None:
    """Answer requests until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What the engine prints goes to stderr.
    env = AlfredDemangler(PddlEnv(textworld.EnvInfos(admissible_commands=True, won=True)), shuffle=False)
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            env.load(request["load"])
            for key, name in (request.get("names") or {}).items():
                env._entity_infos[key].name = name
            said = answer(env.reset())
        elif "do" in request:
            said = answer(env.step(request["do"])[0])
        elif "make" in request:
            with contextlib.redirect_stdout(sys.stderr):
                said = {"made": make(request["make"])}
        elif "logic" in request:
            said = {"domain": Path(ALFRED_PDDL_PATH).read_text(), "grammar": Path(ALFRED_TWL2_PATH).read_text()}
        else:
            said = tables()
        print(json.dumps(said), file=out, flush=True)


main()
