"""One prompt, or a conversation, to the base and to the tuned model: their answers side by side, as they come."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tools import BadInput
from tools.core import catalog, progress, quote, trajectory
from tools.core.trajectory import Message
from tools.gguf import base
from tools.pipeline.serving import WEIGHTS, served
from tools.pipeline.trained import Tuned

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tools.serving.chat_backends import Stream
    from tools.serving.ollama import Answer

# What the step-by-step guide asks its model by hand: a kitchen of ALFWorld's, listed in full.
KITCHEN = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 10, a cabinet 9, a cabinet 8, "
    "a cabinet 7, a cabinet 6, a cabinet 5, a cabinet 4, a cabinet 3, a cabinet 2, a cabinet 1, a coffeemachine 1, "
    "a countertop 3, a countertop 2, a countertop 1, a diningtable 1, a drawer 6, a drawer 5, a drawer 4, a drawer 3, "
    "a drawer 2, a drawer 1, a fridge 1, a garbagecan 1, a microwave 1, a sinkbasin 1, a stoveburner 4, "
    "a stoveburner 3, a stoveburner 2, a stoveburner 1, and a toaster 1.\n"
    "Your task is to: heat some potato and put it in diningtable.\n\n"
    "Please solve this task using ReAct (Reasoning + Acting) approach."
)


def ask(
    model: Tuned,
    quant: str,
    called: str,
    prompt: str = "",
    conversation: str = "",
    backend: str = "auto",
    proof: str = WEIGHTS,
) -> None:
    """Show the answers of the base, where it is known, and of the tuned model to a prompt or a file's conversation.

    One after the other, so that neither slows the other down. The system prompt of training goes before a conversation
    that has none. `backend`: auto, ollama, llama-server or transformers. `proof`: see serving.publish. Raises BadInput
    for a conversation that cannot be answered.
    """
    from rich.console import Console

    messages = opened(model, prompt, conversation)
    console = Console()
    print(f"{quote.visible(messages[-1]['content'], keep=chr(10))}\n")
    players = ["base", "tuned"] if model.before else ["tuned"]
    if not model.before:
        print("No base is known to compare with; BASE= names it.")
    weights = "as trained" if backend == "transformers" else quant.upper()
    answers: dict[str, Answer | None] = dict.fromkeys(f"{who}, {weights}" for who in players)
    live = console.is_terminal and not console.is_dumb_terminal
    for who, title in zip(players, list(answers), strict=True):
        with answering(model, quant.upper(), who, called, backend, proof) as stream:
            told = stream(messages)
            if live:
                draw(console, answers, title, told)
            else:
                write(title, told)
        del stream, told  # a model in this process makes room for the next
    if live:
        console.print(columns(answers))


def opened(model: Tuned, prompt: str, conversation: str = "") -> list[Message]:
    """What both models are asked: a file's conversation, else a prompt, else KITCHEN, after training's system prompt.

    Raises BadInput for a conversation that cannot be answered, and for a prompt beside it.
    """
    if prompt and conversation:
        raise BadInput("a prompt or a conversation, not both: leave out PROMPT= or CONVERSATION=")
    messages = read(Path(conversation)) if conversation else [{"role": "user", "content": prompt or KITCHEN}]
    if model.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": model.system}, *messages]
    return messages


@contextlib.contextmanager
def answering(model: Tuned, quant: str, who: str, called: str, backend: str, proof: str) -> Iterator["Stream"]:
    """The answers of the tuned or the base model by a backend, see `ask`."""
    from tools.serving import chat_backends

    if backend == "transformers":
        yield in_this_process(model, who)
        return
    with served(model, quant, who, called, proof=proof, backend=backend) as (client, where):
        yield chat_backends.of_ollama(client, where) if client else chat_backends.of_llama_server(where)


def in_this_process(model: Tuned, who: str) -> "Stream":
    """The answers of the tuned model, its adapter beside the base, or of the base, on a GPU where there is one."""
    import torch

    from tools.core import chat_template
    from tools.parity import training_model
    from tools.serving import chat_backends

    words, weights, adapter = model.tokenizer, model.base, model.adapter
    if who == "base" and model.before:
        words, weights, adapter = model.before, model.before, None
    tokenizer = chat_template.tokenizer(words)
    with progress.step(f"loading the {who} model"):
        loaded = training_model.load(weights, adapter)
        if torch.cuda.is_available():
            loaded.to("cuda")  # type: ignore[arg-type]
    known = catalog.model_of(model.base_name)
    return chat_backends.of_transformers(
        loaded, tokenizer, [*base.end_texts(words, weights), *([known.eos] if known else [])]
    )


def read(path: Path) -> list[Message]:
    """The one conversation of a JSON file, which the user's turn ends. Raises BadInput for anything else."""
    wanted = 'give one conversation, {"messages": [{"role": "user", "content": "..."}]}'
    try:
        found = trajectory.row(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); {wanted}") from error
    messages = found if isinstance(found, str) else found["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{path}: {messages or 'no messages'}; {wanted}")
    for number, turn in enumerate(messages, 1):
        role, text = turn.get("role"), turn.get("content")
        if role not in {"system", "user", "assistant"} or not isinstance(text, str) or not text.strip():
            raise BadInput(f"{path}: message {number} must have a role (system, user, assistant) and a text as content")
    if why := trajectory.order(messages):
        raise BadInput(f"{path}: {why}")
    if messages[-1]["role"] != "user":
        raise BadInput(f"{path}: the last message is the {messages[-1]['role']}'s; the user's must end it")
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]


def draw(console: "Console", answers: "dict[str, Answer | None]", title: str, told: "Iterator[Answer]") -> None:
    """Draw the answers on the terminal while the one of `title` grows."""
    from rich.live import Live

    with Live(get_renderable=lambda: columns(answers), console=console, refresh_per_second=8, transient=True):
        for answer in told:
            answers[title] = answer


def columns(answers: "Mapping[str, Answer | None]") -> "Table":
    """The answers so far, side by side, with the speed of each below it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, show_footer=True)
    for title, answer in answers.items():
        table.add_column(Text(title), Text(speed(answer) if answer else ""), ratio=1, overflow="fold")
    table.add_row(*(Text(quote.visible(each.text, keep="\n") if each else "") for each in answers.values()))
    return table


def write(title: str, told: "Iterator[Answer]") -> None:
    """Write an answer as it grows, for what is no terminal."""
    print(f"{title}:")
    answer, shown = None, 0
    for answer in told:
        print(quote.visible(answer.text[shown:], keep="\n"), end="", flush=True)
        shown = len(answer.text)
    print(f"\n({speed(answer) if answer else 'no answer'})\n")


def speed(answer: "Answer") -> str:
    """How long an answer is and how fast it came."""
    told = f"{answer.tokens} tokens"
    if answer.seconds:
        told += f", {answer.tokens / answer.seconds:.1f} tokens/s"
    return f"{told}, cut there" if answer.done_reason == "length" else told
