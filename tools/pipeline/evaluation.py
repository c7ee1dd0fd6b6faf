"""Model to games: models play the same tasks; what came of it as tables, a page and demo.json."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import orjson

from tools import BadInput
from tools.core import chat_template, files, progress, quote, run_folder, trajectory
from tools.core.run_folder import Run
from tools.core.trajectory import Message
from tools.pipeline.serving import CLASSIC, player, proof_inputs, spec
from tools.pipeline.trained import Tuned, run_and_name
from tools.recipes.recipe import read_recipe

if TYPE_CHECKING:
    from tools.evaluation.backends import Chat, Sampling
    from tools.evaluation.play import Rules
    from tools.evaluation.scores import Evaluation, Setup
    from tools.worlds.load import Loaded
    from tools.worlds.world import Task

# What a model is told that was not trained on the form of an answer.
FORM = "Answer each turn with two lines and nothing else:\nThought: what you think\nAction: one action"
# The key of a server elsewhere, by OpenAI's own name for it; it is written nowhere.
KEY = "OPENAI_API_KEY"
# Games side by side.
PARALLEL = 4


@dataclass(frozen=True)
class Asked:
    """How a person wants games to be played.

    `rooms`: tasks, the first of their `split` ("": the world's own choice) in a `world`, see worlds/load.py. `backend`:
    "ollama", "llama-server", "transformers", or "auto", the first of these that is there. `prompt`: how a model is
    asked that we did not tune: "trained" (as if it were), "zero-shot", or "few-shot" with so many `shots`. `parse`:
    which reading of an answer is played. `repeat`: games of each task, which differ at a `temperature`.
    """

    rooms: int = 48
    world: str = "household"
    split: str = ""
    backend: str = "auto"
    prompt: str = "trained"
    shots: int = 3
    parse: str = "strict"
    temperature: float = 0.0
    repeat: int = 1

    def drawn(self) -> "Drawn":
        """What is played. Raises BadInput for a world or a split that there is not."""
        from tools.worlds import load

        if self.repeat > 1 and not self.temperature:
            raise BadInput(f"REPEAT={self.repeat}: at temperature 0 all games of a task are one; give TEMPERATURE=0.7")
        loaded = load.load(self.world)
        split, world, code = self.split or loaded.split, loaded.make(), Path(self.world.rpartition(":")[0])
        with progress.step(f"{self.world}: drawing {self.rooms} tasks"):
            tasks = list(islice(world.tasks(split), self.rooms))
        if not tasks:
            raise BadInput(f"{self.world}: no tasks of the split {split}; SPLIT= names another")
        told = [world.system_prompt, *(f"{task.id} {task.goal}" for task in tasks)]
        told += [files.sha256(code)] if code.is_file() else []
        return Drawn(loaded, split, tasks, files.sha256_of("\n".join(told).encode()))

    def chosen_backend(self) -> str:
        """What answers, where "auto" leaves it to what is there."""
        from tools.serving import ollama

        if self.backend != "auto":
            return self.backend
        return "ollama" if ollama.find() or ollama.users_own() else "llama-server"

    def setup(self, who: str, model: str, quant: str, backend: str, drawn: "Drawn", weights: str) -> "Setup":
        """Of what an evaluation is that is played so."""
        prompt = "trained" if who == "tuned" else self.prompt
        return {
            "player": who,
            "model": model,
            "quant": quant,
            "backend": backend,
            "prompt": prompt,
            "shots": self.shots if prompt == "few-shot" else 0,
            "parse": self.parse,
            "temperature": self.temperature,
            "repeat": self.repeat,
            "world": self.world,
            "split": drawn.split,
            "tasks_sha256": drawn.sha256,
            "weights_sha256": weights,
        }

    def sampling(self, who: str) -> "Sampling":
        """How its answers are drawn."""
        from tools.evaluation import backends

        trained = who == "tuned" or self.prompt == "trained"
        return backends.Sampling(self.temperature, backends.ANSWER_TOKENS if trained else backends.PROMPTED_TOKENS)

    def rules(self, who: str, steps: int, data: Path = trajectory.TRAIN_DATA) -> "Rules":
        """How its games are played, for so many steps; `data`: the training set that few-shot episodes are of."""
        from tools.evaluation import play

        if who == "tuned" or self.prompt == "trained":
            return play.Rules(self.parse, steps)
        shown = few(trajectory.read(data), self.shots) if self.prompt == "few-shot" else []
        return play.Rules(self.parse, steps, added=FORM, shown=shown)


class Drawn(NamedTuple):
    """What is played: a world, tasks of one of its splits, and the SHA-256 of all that tells them from others.

    That is the tasks' ids and goals, the system prompt, and the code of a person's own world.
    """

    world: "Loaded"
    split: str
    tasks: "list[Task]"
    sha256: str


def few(episodes: Iterable[trajectory.Episode], count: int) -> list[Message]:
    """The turns of `count` episodes, the first of each task by turns, without what their system turns say."""
    by_task: dict[str, list[list[Message]]] = {}
    for episode in episodes:
        turns = [turn for turn in episode["messages"] if turn["role"] != "system"]
        by_task.setdefault(str(episode.get("task", "")), []).append(turns)
    turn_by_turn = (of[place] for place in range(count) for of in by_task.values() if place < len(of))
    chosen = islice(turn_by_turn, count)
    return [{"role": turn["role"], "content": turn["content"]} for turns in chosen for turn in turns]


def file_name(setup: "Setup") -> str:
    """What an evaluation's file is called after eval-: player and quantisation, then what is not as usual."""
    usual = {"prompt": "trained", "parse": "strict", "world": "household", "split": "unseen"}
    words = [setup["player"], setup["quant"].lower()]
    words += [str(setup[key]) for key, value in usual.items() if setup[key] != value]  # type: ignore[literal-required]
    words += ["transformers"] if setup["backend"] == "transformers" else []
    words += [f"{setup['shots']}-shots"] if setup["shots"] else []
    words += [f"t{setup['temperature']:g}"] if setup["temperature"] else []
    words += [f"x{setup['repeat']}"] if setup["repeat"] > 1 else []
    return "-".join(plain(word) for word in words if word)


def plain(word: str) -> str:
    """A word as a part of a file's name."""
    return re.sub(r"[^\w.-]+|^\.+", "-", word, flags=re.ASCII)[:80]


def play_games(model: Tuned, quant: str, called: str, proof: str, asked: Asked, as_json: bool = False) -> None:
    """Let the tuned model and its base, where it is known, play the same tasks; print the table.

    `proof`: see serving.publish.
    """
    quant, this = quant.upper(), model.run
    drawn = asked.drawn()
    data = read_recipe(this.recipe).data if this.recipe.exists() else trajectory.TRAIN_DATA
    with this.held("eval"), quiet(as_json):
        for who in ("base", "tuned") if model.before else ("tuned",):
            setup, inputs, chat = entrant(model, quant, who, called, proof, asked, drawn)
            play_one(this, setup, inputs, chat, drawn, asked.rules(who, drawn.world.steps, data))
    show(this, drawn, as_json)


class Entrant(NamedTuple):
    """One that plays: of what its games are, the hashes of what answers, and the chat with it."""

    setup: "Setup"
    inputs: dict[str, str]
    chat: "contextlib.AbstractContextManager[Chat]"


def entrant(model: Tuned, quant: str, who: str, called: str, proof: str, asked: Asked, drawn: Drawn) -> Entrant:
    """The tuned model (`who`: tuned) or its base, to play what was drawn. `quant`, `proof`: see serving.player."""
    served, tuned = asked.backend != "transformers", who == "tuned"
    inputs = proof_inputs(spec(model, quant, who, called)) if served else {}
    weights = inputs["gguf"] if served else model.hashes["adapter" if tuned else "base"]
    name = model.name if tuned else model.base_name
    setup = asked.setup(who, name, quant if served else "", asked.chosen_backend(), drawn, weights)
    return Entrant(setup, inputs, chat_with(model, quant, who, called, proof, asked))


def chat_with(
    model: Tuned, quant: str, who: str, called: str, proof: str, asked: Asked
) -> "contextlib.AbstractContextManager[Chat]":
    """The chat with the tuned model or its base by the backend that was asked for."""
    sampling = asked.sampling(who)
    if asked.backend == "transformers":
        return in_process(model, who, sampling)
    return player(model, quant, who, called, proof=proof, backend=asked.backend, sampling=sampling)


def play_served(url: str, name: str, asked: Asked, as_json: bool = False) -> None:
    """Let the model `name` (the only one there, if empty) of an OpenAI-compatible server play; print the table.

    Its files lie in outputs/served/. The key is that of OPENAI_API_KEY in the environment. Raises BadInput for an
    address that cannot be one, or that has a key in it.
    """
    from tools.evaluation import backends

    key, model = server_of(url, name)
    drawn = asked.drawn()
    this = Run(run_folder.outputs() / "served" / plain(model))
    setup = asked.setup("served", model, "", "openai", drawn, "")
    with this.held("eval"), quiet(as_json):
        chat = backends.openai_chat(url, model, key, asked.sampling("served"))
        context = contextlib.nullcontext(chat)
        play_one(this, setup, {}, context, drawn, asked.rules("served", drawn.world.steps))
    show(this, drawn, as_json)


def server_of(url: str, name: str) -> tuple[str, str]:
    """The key for an OpenAI-compatible server, "none" without one, and the model's name there.

    Raises BadInput for an address that cannot be one, or that has a key in it.
    """
    from tools.evaluation import backends

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise BadInput(f"URL= is no address like http://host:port/v1, without name or key in it; {KEY} holds a key")
    key = os.environ.get(KEY) or "none"
    return key, name or backends.only_model(url, key)


def quiet(as_json: bool) -> "contextlib.AbstractContextManager[object]":
    """Send what stages say on stdout to stderr, where stdout is for JSON."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


@contextlib.contextmanager
def in_process(model: Tuned, who: str, sampling: "Sampling") -> Iterator["Chat"]:
    """A chat with the tuned model or its base by transformers, in this process."""
    from tools.evaluation import in_process as batches
    from tools.gguf import base

    tuned = who == "tuned"
    folder = model.base if tuned or not model.before else model.before
    tokens = model.tokenizer if tuned else folder
    tokenizer = chat_template.tokenizer(tokens)
    adapter = model.adapter if tuned else None
    ends = base.end_texts(tokens, folder)
    with batches.transformers_chat(folder, adapter, tokenizer, ends, sampling, PARALLEL) as chat:
        yield chat


def play_one(
    this: Run,
    setup: "Setup",
    inputs: dict[str, str],
    player: "contextlib.AbstractContextManager[Chat]",
    drawn: Drawn,
    rules: "Rules",
) -> None:
    """Let one model play, and write its eval-*.json; nothing where that was done.

    Each game is saved as it ends, in a file beside that ends in .jsonl: what was stopped goes on there.
    """
    from tools.evaluation import expert, play, scores

    name = file_name(setup)
    file, log = this.evaluation(name), this.evaluation(name).with_suffix(".jsonl")
    known = {**setup, **inputs}
    if this.done(f"eval-{name}", known) and file.exists():
        print(f"{file}: already played")
        return
    with this.stage(f"eval-{name}", known), player as chat, contextlib.closing(play.Log(log, known)) as kept:
        world, title = drawn.world, scores.label(setup)
        parallel = min(PARALLEL, world.together or PARALLEL)
        games = play.play_games(chat, world.make, drawn.tasks, rules, setup["repeat"], parallel, title, kept)
        system = next(game.transcript[0] for game in games if game.transcript)
        turns = [system, {"role": "user", "content": CLASSIC}]
        with progress.step(f"{title}: one more answer, to the first prompt that people try"):
            classic: scores.Classic = {"prompt": CLASSIC, "answer": chat(turns, 0).text}
        found: scores.Evaluation = {
            **setup,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "summary": scores.summary(games, expert.first_action),
            "classic": classic,
            "games": [play.as_json(game) for game in games],
        }
        files.write_json(file, found)
    # All that it holds is in the other.
    files.remove(log)


def show(this: Run, drawn: Drawn, as_json: bool = False) -> None:
    """Print the table of a run's evaluations on these tasks, or what they came to as JSON.

    Of a world that is not ours it says what played, and why ALFWorld's games are no row of the literature's tables.
    """
    from rich.console import Console

    from tools.evaluation import report
    from tools.worlds import alfworld

    played = [each for each in evaluations(this) if each["tasks_sha256"] == drawn.sha256]
    if as_json:
        short = [{key: value for key, value in each.items() if key != "games"} for each in played]
        print(orjson.dumps(short).decode())
        return
    Console().print(report.table(played))
    world = drawn.world
    if not world.name.startswith("household"):
        print(f"Played by {world.played_by}.")
    if world.name.startswith("alfworld") and (why := alfworld.why_no_row(drawn.split, len(drawn.tasks), world.steps)):
        print(f"No row of the literature's tables: {why}.")


def evaluations(this: Run, paths: Iterable[Path] | None = None) -> "list[Evaluation]":
    """Evaluations of a run, by default all: the base first, then by quantisation.

    One of an older version is left out, and said on stderr.
    """
    from tools.evaluation import report

    found = []
    for path in sorted(this.folder.glob("eval-*.json")) if paths is None else paths:
        try:
            found.append(report.read_evaluation(path))
        except BadInput as error:
            print(error, file=sys.stderr)
    return found


def sum_up(name: str, quant: str, called: str, adapter: str = "", tier: str = "") -> None:
    """Write demo.json; print the table, a won game, the classic prompt's answer and what comes next."""
    from rich.console import Console

    from tools.evaluation import report
    from tools.serving import ollama as server

    this, served = run_and_name(name, adapter, tier)
    played = evaluations(this, this.usual_evaluations())
    tuned = next((each for each in played if (each["player"], each["quant"]) == ("tuned", quant.upper())), None)
    if tuned is None:
        asked = f"ADAPTER={adapter}" if adapter else f"RECIPE={name}"
        raise BadInput(f"{this.folder}: no games of {quant}; make eval {asked} QUANT={quant} plays them")
    played = [each for each in played if each["tasks_sha256"] == tuned["tasks_sha256"]]
    files.write_json(this.folder / "demo.json", report.demo(this, played, quant.upper()))
    console = Console()
    won = next((game for game in tuned["games"] if game["won"]), None)
    if won:
        console.print(report.transcript(won))
    answer = quote.visible(tuned["classic"]["answer"], keep="\n")
    print(f"\nThe classic first prompt:\n{CLASSIC}\n\n{answer}\n")
    console.print(report.table(played))
    print(report.closing(this, called or served, own=server.users_own() is None))


def write_report(name: str, adapter: str = "", tier: str = "") -> None:
    """Write report.html of a run's games. Raises BadInput where there are none."""
    from tools.evaluation import page

    this, _ = run_and_name(name, adapter, tier)
    played = evaluations(this)
    if not played:
        asked = f"ADAPTER={adapter}" if adapter else f"RECIPE={name}"
        raise BadInput(f"{this.folder}: no games; make eval {asked} plays them")
    files.write(this.report, page.render(f"{this.folder.parent.name}/{this.folder.name}", played, this).encode())
    print(f"{this.report}: {sum(len(each['games']) for each in played)} games")


def compare_evaluations(a: str, b: str, quant: str, as_json: bool) -> None:
    """Print how two models did on the same tasks; see `evaluation_of` for `a` and `b`. Raises BadInput for others."""
    from rich.console import Console

    from tools.evaluation import report, scores

    files_ = [evaluation_of(each, quant) for each in (a, b)]
    first, second = (report.read_evaluation(each) for each in files_)
    if first["tasks_sha256"] != second["tasks_sha256"]:
        tasks = [f"{len({game['id'] for game in each['games']})} of {each['world']}" for each in (first, second)]
        raise BadInput(f"{files_[0]} and {files_[1]}: other tasks ({tasks[0]}, {tasks[1]}); ROOMS= and SPLIT= set them")
    found = scores.compare(first, second)
    names = [quote.visible(os.path.relpath(each)) for each in files_]
    if as_json:
        print(orjson.dumps({**found, "a_file": names[0], "b_file": names[1]}).decode())
        return
    print(f"A: {names[0]}\nB: {names[1]}")
    Console().print(*report.comparison(found))


def evaluation_of(name: str, quant: str) -> Path:
    """The eval-*.json that a person names: a file, else a run's folder or recipe, whose tuned model in `quant` it is.

    Raises BadInput where there is none.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".json":
        return path
    this = Run(path) if (path / "run.json").is_file() else run_and_name(name)[0]
    if not (file := this.evaluation(f"tuned-{quant.lower()}")).is_file():
        there = ", ".join(each.name for each in sorted(this.folder.glob("eval-*.json"))) or "none"
        raise BadInput(f"{file}: no such games; there: {there}; name a file, or make eval plays them")
    return file


def show_runs(as_json: bool) -> None:
    """Print all runs. Raises BadInput where there are none."""
    from tools.evaluation import runs

    runs.show(run_folder.outputs(), as_json)


def score_answers(
    model: Tuned, quant: str, called: str, proof: str, backend: str, held_out: str, as_json: bool
) -> None:
    """Score the answers of the tuned model and its base to held-out conversations; print the figures.

    score-*.json has them. `held_out`: a file of conversations in place of the committed test set.
    """
    from rich.console import Console

    from tools.evaluation import answers
    from tools.parity import training_model

    asked, quant, this = Asked(backend=backend), quant.upper(), model.run
    data = Path(held_out) if held_out else trajectory.TEST_DATA
    wanted = answers.turns(trajectory.read(data))
    found: dict[str, answers.Score | dict[str, float]] = {}
    with this.held("eval"), quiet(as_json):
        for who in ("base", "tuned") if model.before else ("tuned",):
            served = backend != "transformers"
            inputs = proof_inputs(spec(model, quant, who, called)) if served else dict(model.hashes)
            inputs |= {"data": files.sha256(data), "backend": backend}
            title = f"{who} {quant}" if served else f"{who} in transformers"
            file = this.folder / f"score-{plain(title)}.json"
            if not this.done(file.stem, inputs) or not file.exists():
                with this.stage(file.stem, inputs):
                    with chat_with(model, quant, who, called, proof, asked) as ask:
                        said = answers.generated(ask, wanted, PARALLEL, title)
                    tuned = who == "tuned"
                    folder = model.base if tuned or not model.before else model.before
                    loaded = training_model.load(folder, model.adapter if tuned else None).float()
                    tokenizer = chat_template.tokenizer(model.tokenizer if tuned else folder)
                    loss = answers.perplexity(loaded, tokenizer, trajectory.read(data), title)
                    files.write_json(file, {**answers.score(wanted, said), **loss})
            found[title] = files.read_object(file)
    if as_json:
        print(orjson.dumps(found).decode())
    else:
        Console().print(answers.table(found))
