"""The same tokens in training and in serving, shown on real conversations before a model gets its name."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from tools import BadInput, Failed
from tools.core import chat_template, progress
from tools.core.trajectory import Episode, Message
from tools.gguf import llamacpp
from tools.gguf.llamacpp import Refused
from tools.parity import diagnose
from tools.parity.diagnose import Pair, Reason, text
from tools.training import tokens
from tools.training.tokens import IGNORED

if TYPE_CHECKING:
    from ollama import Client
    from transformers import PreTrainedTokenizerBase

# A conversation's token ids and labels, of the same length; a label is IGNORED where nothing is learned.
Trained = tuple[list[int], list[int]]

# The texts that a template compares a role with: role == 'tool', role in ["tool", "ipython"].
ROLE = re.compile(r"role['\"\])]*\s*(?:==|!=|in)\s*([(\[]?\s*(?:['\"][\w-]+['\"][,\s]*)+)")
QUOTED = re.compile(r"['\"]([\w-]+)['\"]")
# Control tokens that a user types at once.
CONTROL = 16
AROUND = 12  # Tokens shown on each side of the first difference.
# Conversations of the test set that are compared beside those made of it.
COUNT = 20
# The roles of our data, and of our templates in Go, which an Ollama before 0.30 takes alone.
ROLES = frozenset({"system", "user", "assistant"})
# How a chat is trained on where no recipe says it: as every recipe of ours.
ENTRY = {"ds_type": "json", "type": "chat_template", "roles_to_train": ["assistant"], "train_on_eos": "turn"}
# How conversations are given to Axolotl here, whatever the shape of the recipe's own data.
SHAPE = {"field_messages": "messages", "message_property_mappings": {"role": "role", "content": "content"}}


class Token(TypedDict):
    """The token where two lists part (id None after the last one), its text, and the text around it."""

    id: int | None
    text: str
    around: str


class Difference(Reason):
    """Where a conversation parts, and why. Turns count from 1, positions from 0; no tokens where none shows it."""

    turn: int | None
    position: int
    trained: Token | None
    served: Token | None


class FirstDifference(Difference):
    """The same, and where: a side by its name, a conversation by its number from 1."""

    side: str
    conversation: int


class Compared(TypedDict):
    """What parity.json holds: `tokens` found equal, all sides together; `refused` by training's own template."""

    equal: bool
    conversations: int
    refused: NotRequired[int]
    tokens: int
    sides: list[str]
    first_difference: FirstDifference | None


@dataclass(frozen=True)
class Side:
    """A way from messages to tokens.

    `render`: messages to the prompt that asks for the assistant's next answer; raises Refused. `tokenise`: a prompt to
    token ids. `stops`: texts of the tokens that end an answer. `system`: the system message that it puts, as it was
    told to, before a conversation that has none. `roles`: those that its template was written for, None for all.
    """

    name: str
    render: Callable[[list[Message]], str]
    tokenise: Callable[[str], list[int]]
    stops: tuple[str, ...]
    system: str | None = None
    roles: frozenset[str] | None = None


def transformers_side(tokenizer: "PreTrainedTokenizerBase", options: Mapping[str, Any] | None = None) -> Side:
    """transformers' own chat template and tokenizer; `options`: the recipe's chat_template_kwargs, of any type."""
    import jinja2

    def render(messages: list[Message]) -> str:
        try:
            shown = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **(options or {})
            )
        except chat_template.Unrendered as error:
            raise Refused(error.said) from error
        except (jinja2.TemplateError, ValueError) as error:  # ValueError: there is no template
            raise Refused(str(error).splitlines()[0]) from error
        return str(shown)

    def tokenise(prompt: str) -> list[int]:
        return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])

    return Side(diagnose.TRANSFORMERS, render, tokenise, (tokenizer.eos_token,))


def llama_server_side(url: str) -> Side:
    """llama-server at `url`: the template, the vocabulary and the end token in the model's file.

    Raises Failed when it does not answer.
    """
    import httpx

    try:
        end = httpx.get(f"{url}/props", timeout=60, trust_env=False).raise_for_status().json()["eos_token"]
    except httpx.HTTPError as error:
        raise Failed(f"{url}: no answer ({error})") from error

    return Side(diagnose.LLAMA_SERVER, partial(llamacpp.apply_template, url), partial(llamacpp.tokenize, url), (end,))


def ollama_side(
    client: "Client", name: str, url: str, system: str | None = None, roles: frozenset[str] | None = None
) -> Side:
    """The model `name` in Ollama; `url` is a llama-server with the same GGUF, as Ollama runs one to tokenise.

    `system`: SYSTEM of its Modelfile, when it is there on purpose. `roles`: see Side. Raises Failed when one of the two
    does not answer.
    """
    import httpx

    from tools.serving import ollama as server

    def render(messages: list[Message]) -> str:
        try:
            return server.render(client, name, messages)
        except Failed as error:
            if isinstance(error.__cause__, httpx.HTTPStatusError):
                raise Refused(str(error)) from error
            raise

    same = llama_server_side(url)
    return Side(diagnose.OLLAMA, render, same.tokenise, (*same.stops, *server.stops(client, name)), system, roles)


def conversations(
    test_set: Iterable[Episode], tokenizer: "PreTrainedTokenizerBase", count: int = COUNT
) -> list[list[Message]]:
    """The first conversations of a test set, roles and contents alone, and hard ones made of it by catalog/parity.yaml.

    Raises BadInput when it is empty.
    """
    taken: list[list[Message]] = [
        [{"role": turn["role"], "content": turn["content"]} for turn in each["messages"]]
        for each in itertools.islice(test_set, count)
    ]
    if not taken:
        raise BadInput("no conversations to compare")
    return taken + [messages for messages in made(taken, tokenizer) if messages not in taken]


def made(taken: Sequence[list[Message]], tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[Message]]:
    """Hard conversations, those of texts and lengths each with a system message and without."""
    facts = diagnose.facts().conversations
    control = sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)[:CONTROL]
    tokens = {"{end}": tokenizer.eos_token or "", "{begin}": tokenizer.bos_token or ""}
    tokens["{control}"] = "x".join(diagnose.text(tokenizer, [number]) for number in control)
    heads = [[turn for turn in taken[0] if turn["role"] == "system"] or [system("Answer in one line.")], []]
    talk = [turn for messages in taken for turn in messages if turn["role"] != "system"]
    talk = list(itertools.islice(itertools.cycle(talk), 2 * max(facts.lengths)))
    for head in heads:
        for length in facts.lengths:
            yield [*head, *talk[: 2 * length]]
        for words in facts.user:
            for token, its_text in tokens.items():
                words = words.replace(token, its_text)
            yield [*head, *talk[:2], user(words), talk[1]]
        for words in facts.assistant:
            yield [*head, talk[0], assistant(words), *talk[2:4]]
    for words in facts.system:
        yield [system(words), *talk[:2]]
    # Numbers, so that each part is another and a lost one is known.
    pairs = ((user(f"Observation: desk {i}."), assistant(f"Action: open {i}")) for i in range(facts.turns // 2))
    yield list(itertools.chain.from_iterable(pairs))
    words = " ".join(f"Shelf {i} holds mug {i}." for i in range(facts.letters))[: facts.letters - 1] + "!"
    yield [system(words), *talk[:2]]
    yield [user(words), *talk[1:4]]
    yield [talk[0], assistant(words), *talk[2:4]]
    yield from of_roles(talk, tokenizer)


def of_roles(talk: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[Message]]:
    """Conversations with a turn of each role, beside the three, that training's template writes, tool's among them."""
    own = transformers_side(tokenizer)
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    quoted = {"tool", *(word for found in ROLE.findall(template) for word in QUOTED.findall(found))}
    for role in sorted(quoted - ROLES):
        turn = {"role": role, "content": f"Observation: what {role} says."}
        for before, after in ((talk[:2], talk[3:4]), ([], talk[:2])):
            if rendered([*before, turn, *after[:-1]], own) not in {None, rendered([*before, *after[:-1]], own)}:
                yield [*before, turn, *after]


def rendered(talk: list[Message], side: Side) -> str | None:
    """The prompt that a side's template makes, None where it refuses the conversation."""
    try:
        return side.render(talk)
    except Refused:
        return None


def prompts(talks: Sequence[list[Message]], side: Side, count: int) -> list[list[int]]:
    """Prompts of tokens out of conversations, at different turns of them."""
    turns = ((talk, answers(talk), number + again) for again in range(count) for number, talk in enumerate(talks))
    asked = (talk[: places[which % len(places)]] for talk, places, which in turns)
    return [side.tokenise(side.render(talk)) for talk in itertools.islice(asked, count)]


def system(words: str) -> Message:
    """A system message."""
    return {"role": "system", "content": words}


def user(words: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": words}


def assistant(words: str) -> Message:
    """An answer."""
    return {"role": "assistant", "content": words}


def compare_with_training(
    talks: Sequence[list[Message]],
    base: Path,
    sides: Sequence[Side],
    entry: Mapping[str, Any] = ENTRY,
    sequence_len: int = 2048,
    recipe: Mapping[str, Any] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> Compared:
    """Compare what Axolotl trains on with transformers and with each server, up to the first difference.

    `base`: the folder whose tokenizer trains. `entry`, `recipe`: as for tokens.tokenise. `tokenizer`: the one that
    training left beside its adapter, when it differs from the base's. A conversation that training's own template
    refuses is counted as refused and not compared: nobody can have trained on it, whatever a server makes of it (most
    put a system message that is refused into the user's turn). Raises Failed when it refuses all.
    """

    tokenizer = tokenizer or chat_template.tokenizer(base)
    own = transformers_side(tokenizer, (recipe or {}).get("chat_template_kwargs"))
    # A server that puts a system message of its own must do what training did with that message.
    alone = [side for side in sides if side.system is not None or side.roles is not None]
    groups = [(given(talks, None), [own, *(side for side in sides if side not in alone)])]
    groups += [(given(of_known_roles(talks, side), side.system), [side]) for side in alone]
    taken = [[talk for talk in group if refusal(talk, own) is None] for group, _ in groups]
    if not taken[0]:
        raise Failed(f"training's chat template refuses every conversation: {refusal(talks[0], own)}")
    with progress.step("parity: Axolotl makes the tokens of training"):
        episodes = [{"messages": talk} for group in taken for talk in group]
        trained = iter(tokens.tokenise(base, {**entry, **SHAPE}, episodes, sequence_len, dict(recipe or {})))
    found: Compared = {
        "equal": True,
        "conversations": len(taken[0]),
        "refused": len(talks) - len(taken[0]),
        "tokens": 0,
        "sides": [side.name for _, seen in groups for side in seen],
        "first_difference": None,
    }
    for group, (_, seen) in zip(taken, groups, strict=True):
        compared = compare_conversations(group, list(itertools.islice(trained, len(group))), seen, tokenizer)
        found["tokens"] += compared["tokens"]
        if not compared["equal"]:
            found["equal"], found["first_difference"] = False, compared["first_difference"]
            break
    return found


def given(talks: Sequence[list[Message]], words: str | None) -> list[list[Message]]:
    """The conversations with a system message: their own, else the one given, if any."""
    bare = words is None
    return [talk if bare or talk[0]["role"] == "system" else [system(words or ""), *talk] for talk in talks]


def of_known_roles(talks: Sequence[list[Message]], side: Side) -> list[list[Message]]:
    """The conversations whose roles a side's template was written for."""
    return [talk for talk in talks if side.roles is None or side.roles.issuperset(turn["role"] for turn in talk)]


def refusal(talk: list[Message], side: Side) -> str | None:
    """Why a side's template refuses a conversation or a beginning of it, None when it takes it."""
    try:
        for turn in answers(talk):
            side.render(talk[:turn])
    except Refused as error:
        return str(error)
    return None


def answers(talk: Sequence[Message]) -> list[int]:
    """Where the assistant's turns are."""
    return [index for index, turn in enumerate(talk) if turn["role"] == "assistant"]


def compare_conversations(
    talks: Sequence[list[Message]],
    trained: Sequence[Trained],
    sides: Sequence[Side],
    tokenizer: "PreTrainedTokenizerBase",
) -> Compared:
    """Compare what was trained with what each side sees, prompt by prompt; stops at the first difference.

    `trained`: ids and labels of each conversation, from tokens.tokenise. `tokenizer`: training's, to show tokens.
    `words` tells the difference. Raises Failed when a server does not answer.
    """
    found: Compared = {
        "equal": True,
        "conversations": len(talks),
        "tokens": 0,
        "sides": [side.name for side in sides],
        "first_difference": None,
    }
    with progress.bar("parity: tokens of training and serving", len(sides) * len(talks), "conversations") as shown:
        numbered = enumerate(zip(talks, trained, strict=True), 1)
        for side, (number, (talk, one)) in itertools.product(sides, numbered):
            compared = compare_conversation(talk, one, side, tokenizer)
            shown.advance()
            if not isinstance(compared, int):
                found["equal"] = False
                found["first_difference"] = {"side": side.name, "conversation": number, **compared}
                break
            found["tokens"] += compared
    return found


def compare_conversation(
    talk: list[Message], trained: Trained, side: Side, tokenizer: "PreTrainedTokenizerBase"
) -> int | Difference:
    """Compare one conversation: how many tokens are equal, or the first difference.

    At each answer, the prompt alone must be the tokens that stand before the answer's first trained token, so that a
    merge across its end shows; the last prompt, the answer as the template writes it and the token that ends it, in
    one text, must be all tokens up to the last trained one. What follows that (a template's line feed) no server ever
    sees. Answers without text are not trained; they are compared as a part of the prompts that follow.
    """
    ids, labels = trained
    starts = [i for i, label in enumerate(labels) if label != IGNORED and (i == 0 or labels[i - 1] == IGNORED)]
    end = 1 + max((i for i, label in enumerate(labels) if label != IGNORED), default=-1)
    turns = [turn for turn in answers(talk) if talk[turn]["content"]]
    if not turns or len(starts) != len(turns):
        detail = f"{len(starts)} trained parts for {len(turns)} answers of the assistant"
        return untold(diagnose.named("mask", side.name, token=detail))
    prompt = ""
    for turn, start in zip(turns, starts, strict=True):
        try:
            prompt = side.render(talk[:turn])
        except Refused as error:
            why = diagnose.named("refused", side.name, token=str(error))
            return untold(why, turn)
        pair = Pair(ids[:start], side.tokenise(prompt), side.name, tokenizer)
        if pair.trained != pair.served:
            cause = diagnose.likely(pair, prompt, talk[:turn], ends=True, later=turn != turns[-1])
            return difference(pair, turn, cause)
    last = text(tokenizer, ids[end - 1 : end])
    if ids[end - 1] not in Pair(ids, ids, side.name, tokenizer).control:
        after = text(tokenizer, ids[end : end + 1]) or "the token that ends the turn"
        return untold(diagnose.named("end_untrained", side.name, token=after), turns[-1])
    # Cut out of both decoded, so that a space which a tokenizer drops at the beginning of a text stays.
    answer = text(tokenizer, ids[: end - 1])[len(text(tokenizer, ids[: starts[-1]])) :]
    stop = last if last in side.stops else side.stops[0]
    whole = f"{prompt}{answer}{stop}"
    pair = Pair(ids[:end], side.tokenise(whole), side.name, tokenizer)
    if pair.trained == pair.served:
        return end
    if stop != last and pair.place == end - 1:
        stops = " or ".join(each or "nothing" for each in side.stops)
        return difference(pair, turns[-1], diagnose.named("no_stop", side.name, token=last, stops=stops))
    return difference(pair, turns[-1], diagnose.likely(pair, whole, talk, ends=False))


def untold(cause: Reason, turn: int | None = None) -> Difference:
    """A difference that no token shows."""
    return {**cause, "turn": None if turn is None else turn + 1, "position": 0, "trained": None, "served": None}


def difference(pair: Pair, turn: int, cause: Reason) -> Difference:
    """Where two lists of tokens part, both as text, with the likely cause and its fix. Turns count from 1."""
    mine, theirs = shown(pair, pair.trained), shown(pair, pair.served)
    return {**cause, "turn": turn + 1, "position": pair.place, "trained": mine, "served": theirs}


def shown(pair: Pair, ids: list[int]) -> Token:
    """The token where a pair parts (id None after the last one), its text, and the text around it."""
    token = ids[pair.place : pair.place + 1]
    around = pair.text(ids[max(0, pair.place - AROUND) : pair.place + AROUND])
    return {"id": token[0] if token else None, "text": pair.text(token), "around": around}


def words(found: FirstDifference) -> str:
    """One line that tells a first difference to a person."""
    where = f"{found['side']}, conversation {found['conversation']}"
    mine, theirs = found["trained"], found["served"]
    told = f"likely cause: {found['cause']}; to fix it: {found['fix']}"
    if mine is None or theirs is None:
        return f"{where}: {told}"
    named = [repr(each["text"]) if each["id"] is not None else "nothing" for each in (mine, theirs)]
    return (
        f"{where}, turn {found['turn']}, token {found['position']}: training has {named[0]} and {found['side']} "
        f"{named[1]}; {told}; in training {mine['around']!r}, in {found['side']} {theirs['around']!r}"
    )
