"""Any world as a task of Inspect AI, from the root of the repository:

uv run --no-project --with . --with inspect-ai --with openai \\
  inspect eval docs/examples/inspect_task.py -T world=household --limit 48 --temperature 0 --model ollama/react-smollm2
"""

import sys
from pathlib import Path

import anyio
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import Score, Scorer, Target, accuracy, grouped, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

sys.path.append(str(Path(__file__).parents[2]))
from tools import Failed
from tools.core import trajectory
from tools.worlds import world as worlds
from tools.worlds.load import load


@task
def play(world: str = "household", split: str = "") -> Task:
    """A world's tasks of a split. `world`: as WORLD= has it; a path is relative to this file's folder, or absolute."""
    loaded = load(world)
    tasks = loaded.make().tasks(split or loaded.split)
    samples = [Sample(id=each.id, input=each.goal, metadata={"kind": each.kind}) for each in tasks]
    return Task(dataset=MemoryDataset(samples, name=world), solver=agent(world), scorer=won())


@solver
def agent(world: str) -> Solver:
    """Play a game as `make eval` does: one Thought and one Action a turn, until it is over or has its most steps."""
    loaded = load(world)
    places = anyio.CapacityLimiter(loaded.together or float("inf"))

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        given = worlds.Task(str(state.sample_id), state.metadata["kind"], state.input_text)
        async with places:
            try:
                game = await anyio.to_thread.run_sync(loaded.make)
                first = await anyio.to_thread.run_sync(game.reset, given)
                state.messages = [ChatMessageSystem(content=game.system_prompt), ChatMessageUser(content=first)]
                for _ in range(loaded.steps):
                    state = await generate(state)
                    action = trajectory.action(state.output.completion)
                    said = await anyio.to_thread.run_sync(game.step, action) if action else game.nothing
                    if game.done or state.completed:
                        break
                    state.messages.append(ChatMessageUser(content=trajectory.observation(said)))
                state.store.set("won", game.won)
            except Failed as error:  # the world's, not the model's: a game that is not won, with the reason
                state.store.set("failed", str(error))
        return state

    return solve


@scorer(metrics=[grouped(accuracy(), "kind"), stderr()])
def won() -> Scorer:
    """Whether the game was won; the share for each kind of task and for all."""

    async def score(state: TaskState, target: Target) -> Score:
        return Score(value="C" if state.store.get("won") else "I", explanation=state.store.get("failed"))

    return score
