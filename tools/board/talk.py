"""The tuned model at work: it answers beside its base, and plays a room, as `ask` and `eval` have it do."""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

from tools import Failed
from tools.board.choice import Choice
from tools.board.runs import Work
from tools.core import quote
from tools.core.trajectory import Message
from tools.evaluation import play
from tools.evaluation.backends import Chat, Reply
from tools.evaluation.play import Game, Rules
from tools.pipeline import ask, evaluation
from tools.pipeline.serving import WEIGHTS
from tools.pipeline.trained import tuned
from tools.worlds.world import Task, World

# What each model was asked and answered, by its name, tuned or base.
Talks = dict[str, list[Message]]


def answers(work: Work, choice: Choice, quant: str, prompt: str, before: Talks) -> Iterator[Talks]:
    """What both models were asked and answered `before`, this prompt and their answers, again and again as they grow.

    One after the other, as `ask`. Raises BadInput and Failed as it does, and BadInput while other work goes on.
    """
    with work.going(choice.command("ask", quant=quant, prompt=prompt)):
        model = tuned(choice.name, tier=choice.tier)
        players = ["base", "tuned"] if model.before else ["tuned"]
        talks = {who: [*(before.get(who) or ask.opened(model, prompt)[:-1])] for who in players}
        question = ask.opened(model, prompt)[-1]
        for who in players:
            talks[who] += [question, {"role": "assistant", "content": ""}]
        for who in players:
            with ask.answering(model, quant, who, "", "auto", WEIGHTS) as stream:
                for answer in stream(talks[who][:-1]):
                    talks[who][-1] = {"role": "assistant", "content": answer.text}
                    yield talks


def game(work: Work, choice: Choice, quant: str, room: int) -> Iterator[tuple[Sequence[Message], str]]:
    """The tuned model's game in an unseen room, counted from 1, as `eval` plays it: all turns so far, how it ended.

    Raises as `answers`.
    """
    asked = evaluation.Asked(rooms=room)
    with work.going(choice.command("eval", quant=quant, rooms=str(room))):
        model = tuned(choice.name, tier=choice.tier)
        drawn = asked.drawn()
        chat = evaluation.chat_with(model, quant, "tuned", "", WEIGHTS, asked)
        with chat as answer:
            rules = asked.rules("tuned", drawn.world.steps)
            with closing(watched(answer, drawn.world.make(), drawn.tasks[-1], rules)) as seen:
                yield from seen


def watched(chat: Chat, world: World, task: Task, rules: Rules) -> Generator[tuple[Sequence[Message], str]]:
    """A game as it is played, in a thread of its own, which makes no further move once this is closed."""
    told: queue.SimpleQueue[list[Message] | Game | BaseException] = queue.SimpleQueue()
    closed = threading.Event()

    def heard(messages: list[Message], seed: int) -> Reply:
        told.put(messages)
        if closed.is_set():
            raise Failed("stopped")
        return chat(messages, seed)

    def run() -> None:
        try:
            told.put(play.play_game(heard, world, task, rules))
        except BaseException as error:
            told.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while not isinstance(seen := told.get(), Game):
            if isinstance(seen, BaseException):
                raise seen
            yield seen, ""
        yield seen.transcript, f"{seen.end}{f': {seen.error}' if seen.error else ''}"
    finally:
        closed.set()


def text(messages: Sequence[Message]) -> str:
    """Turns as plain text, the system's left out."""
    turns = [each for each in messages if each["role"] != "system"]
    return "\n\n".join(f"[{each['role']}]\n{quote.visible(each['content'], keep=chr(10))}" for each in turns)
