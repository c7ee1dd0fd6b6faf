"""Why the tokens of a conversation differ between training and serving, and what to do about it."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypedDict

from tools.core import catalog
from tools.core.trajectory import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINING, TRANSFORMERS, LLAMA_SERVER, OLLAMA = "training", "transformers", "llama-server", "Ollama"
# A text's beginning that says which message it is.
ENOUGH = 20
# Tokens before the place where two lists part from which their first edit is looked for.
BEFORE = 3
DATE = re.compile(r"\d{1,2} [A-Z][a-z]{2,8} \d{4}|\d{4}-\d\d-\d\d")
# What templates of all families write around messages.
MARKER = re.compile(r"<[|\w][^>\s]*>|\[/?[A-Z]+\]|###? \w+")
# What a template that looks at later turns seems to be, told from one prompt alone.
SEEMING = {"thinking", "space", "message_lost", "message_cut", "text_changed", "role", "default_system"}
SEEMING |= {"another_system", "no_end", "unknown"}
# Letters around the place where two texts part in which the first edit is looked for, and shown of it at most.
WINDOW, EXCERPT = 200, 60


class Conversations(catalog.Part):
    """Texts that are hard to bring through a template and a tokenizer, by role.

    `lengths`: exchanges of a talk. `turns`: of a talk of short messages. `letters`: of one long message.
    """

    lengths: list[int]
    turns: int
    letters: int
    user: list[str]
    assistant: list[str]
    system: list[str]


class Cause(catalog.Part):
    """Why tokens differ, and what to do about it; `modelfile`: where Ollama renders."""

    cause: str
    fix: str
    modelfile: str = ""


class Reason(TypedDict):
    """A cause of catalog/parity.yaml by its key (`kind`), with its fix: each one line, filled in for a difference."""

    kind: str
    cause: str
    fix: str


class Facts(catalog.Part):
    """catalog/parity.yaml."""

    conversations: Conversations
    thinking: list[str]
    causes: dict[str, Cause]


@cache
def facts() -> Facts:
    """catalog/parity.yaml. Raises BadInput where it breaks its schema."""
    return catalog.content("parity", Facts)


def named(kind: str, side: str, **fields: str) -> Reason:
    """A cause by its key, with its fix; `fields`: what stands for the names in braces."""
    entry = facts().causes[kind]
    fix = entry.modelfile or entry.fix if side == OLLAMA else entry.fix
    filled = {"side": side, "who": side, "other": TRAINING, "token": "", "stops": ""} | fields
    return {"kind": kind, "cause": entry.cause.format(**filled), "fix": fix.format(**filled)}


@dataclass(frozen=True)
class Pair:
    """Two lists of tokens that should be one: of training and of a side, with their texts and control tokens."""

    trained: list[int]
    served: list[int]
    side: str
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def place(self) -> int:
        """The first position at which they differ: the shorter one's length where one begins with the other."""
        pairs = enumerate(zip(self.trained, self.served, strict=False))
        shorter = min(len(self.trained), len(self.served))
        return next((i for i, (mine, theirs) in pairs if mine != theirs), shorter)

    @property
    def texts(self) -> tuple[str, str]:
        """Both as text."""
        return text(self.tokenizer, self.trained), text(self.tokenizer, self.served)

    @property
    def control(self) -> set[int]:
        """The control tokens of training."""
        return {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text."""
        return text(self.tokenizer, ids)


def text(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Tokens as text, control tokens spelled out, no space tidied away."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def prompt_end(pair: Pair) -> Reason | None:
    """Why two prompts part at their very end; None when they part before it."""
    place, side, (mine, theirs) = pair.place, pair.side, pair.texts
    # Where transformers' own prompt ends within a token; a server's is compared after that.
    if side == TRANSFORMERS and place == len(pair.served) - 1 and mine != theirs and mine.startswith(theirs):
        return named("merged", side, token=pair.text(pair.trained[place : place + 1]))
    if mine.startswith(theirs):
        more = mine[len(theirs) :]
        return marked(pair, more, side, TRAINING) or named("prompt_short", side, token=more)
    if theirs.startswith(mine):
        more = theirs[len(mine) :]
        return marked(pair, more, TRAINING, side) or named("prompt_long", side, token=more)
    return None


def marked(pair: Pair, words: str, who: str, other: str) -> Reason | None:
    """Thinking marks in what one side writes more than the other; None without."""
    marks = [mark for mark in facts().thinking if mark in words]
    return named("thinking", pair.side, who=who, other=other, token=words.strip()) if marks else None


def likely(pair: Pair, written: str, messages: list[Message], ends: bool, later: bool = False) -> Reason:
    """Why two lists of tokens part, as `named`. `written`: the text of which the side made its own.

    Training's tokenizer tells whose fault it is: where it makes training's tokens of that text, the template wrote the
    right one and the side's tokenizer is to blame; else the template is, by the tokens that training would have had of
    it. `ends`: whether the text ends where an answer begins. `later`: whether more turns follow in the conversation.

    The causes are those that users report of good models that fail in their server; the threads stand beside each.
    """
    if found := by_beginning(pair):
        return found
    again = list(pair.tokenizer(written, add_special_tokens=False)["input_ids"])
    bos = pair.tokenizer.bos_token_id
    if bos is not None and pair.served[:1] == [bos] != again[:1]:
        again.insert(0, bos)
    if again == pair.trained:
        return by_tokenizer(pair)
    shown = Pair(pair.trained, again, pair.side, pair.tokenizer)
    found = (prompt_end(shown) if ends else None) or by_template(shown) or by_message(shown, messages)
    found = found or by_role(shown, messages) or by_system(shown, messages) or by_marker(shown)
    if later and pair.side == TRANSFORMERS and found["kind"] in SEEMING:
        lost, added = first_edit(pair)
        return named("rewritten", pair.side, token=pair.text(lost), stops=pair.text(added))
    return found


def by_beginning(pair: Pair) -> Reason | None:
    """A beginning-of-sequence token that stands twice, or on one side alone: of the template or of the tokenizer."""
    side, place, bos = pair.side, pair.place, pair.tokenizer.bos_token_id
    both = ((side, pair.trained, pair.served), (TRAINING, pair.served, pair.trained))
    if bos is None:
        return None
    for who, one, another in both:
        if another[:2] == [bos, bos] and one[:2] != [bos, bos]:
            return named("begin_twice", side, who=who, token=pair.text([bos]))
    for who, one, another in both:
        if place == 0 and one[:1] == [bos] and another[:1] == one[1:2]:
            return named("begin_missing", side, who=who, token=pair.text([bos]))
    return None


def by_tokenizer(pair: Pair) -> Reason:
    """Why two tokenizers make other tokens of the same text."""
    side, (mine, theirs), place = pair.side, pair.texts, pair.place
    more = pair.served[place:]
    if place == len(pair.trained) and pair.control.issuperset(more):
        return named("end_added", side, token=pair.text(more))
    for who, one, another in ((side, pair.trained, pair.served), (TRAINING, pair.served, pair.trained)):
        here = one[place : place + 1]
        spelled = another[place : place + 1] != here and pair.text(another[place:]).startswith(pair.text(here))
        if mine == theirs and (missing := first_missing(pair, one, another)) is not None:
            return named("spelled_out", side, who=who, token=pair.text([missing]))
        if spelled and pair.control.intersection(here):
            return named("spelled_out", side, who=who, token=pair.text(here))
    if mine != theirs and mine == unicodedata.normalize("NFC", theirs):
        lost, added = (pair.text(ids) for ids in first_edit(pair))
        return named("normalised", side, token=lost, stops=added)
    if "".join(mine.split()) == "".join(theirs.split()) and len(mine) < len(theirs) and (token := stripping(pair)):
        return named("stripped", side, token=token)
    return named("vocabulary", side)


def first_missing(pair: Pair, one: list[int], another: list[int]) -> int | None:
    """The first control token of one list that the other, of the same text, has fewer of."""
    return next((i for i in one if i in pair.control and one.count(i) > another.count(i)), None)


def by_template(pair: Pair) -> Reason | None:
    """A cause that shows in how all of it is written: line feeds, thinking, a date, no template, another family's."""
    side, (mine, theirs) = pair.side, pair.texts
    bos = pair.tokenizer.bos_token_id
    for who, one, another in ((side, mine, theirs), (TRAINING, theirs, mine)):
        if "\\n" in another and another.replace("\\n", "\n") == one.replace("\\n", "\n"):
            return named("line_feeds", side, who=who)
    lost, added = (pair.text(ids) for ids in first_edit(pair))
    for who, other, words in ((side, TRAINING, lost), (TRAINING, side, added)):
        if found := marked(pair, words, who, other):
            return found
    at = common(mine, theirs)
    dates = [next((d[0] for d in DATE.finditer(each) if d.start() <= at <= d.end()), "") for each in (mine, theirs)]
    if all(dates):
        return named("date", side, token=dates[0])
    markers = [i for i in pair.trained if i in pair.control and i != bos]
    if markers and not set(markers).intersection(pair.served):
        first = pair.text(markers[:1])
        marker = next((each[0] for each in MARKER.finditer(theirs) if each[0] not in mine), None)
        if marker is None:
            return named("no_template", side, token=first)
        return named("other_template", side, token=first, stops=marker)
    before, after = edit(mine, theirs)
    if "".join(mine.split()) == "".join(theirs.split()) or before.split() == after.split():
        return named("space", side, token=before, stops=after)
    return None


def stripping(pair: Pair) -> str | None:
    """The control token of training that takes the white space at the place where the two part; None without one."""
    known, place = pair.tokenizer.added_tokens_decoder, pair.place
    for at, side in ((place - 1, "rstrip"), (place, "lstrip")):
        token = known.get(pair.trained[at]) if 0 <= at < len(pair.trained) else None
        if token and getattr(token, side):
            return str(token.content)
    return None


def by_message(pair: Pair, messages: list[Message]) -> Reason | None:
    """A cause that shows in a message which is written less often, or not as it was: lost, cut, or changed."""
    side, (mine, theirs) = pair.side, pair.texts
    at, (lost, added) = common(mine, theirs), edit(mine, theirs)
    fewer = sum(i in pair.control for i in pair.served) < sum(i in pair.control for i in pair.trained)
    written = [(turn["role"], turn["content"].strip()) for turn in messages]
    less = [(role, words) for role, words in written if words and mine.count(words) > theirs.count(words)]
    for role, words in less:
        begin = mine.rfind(words, 0, at + len(words))
        inside = -1 < begin < at < begin + len(words)
        if fewer or not inside:  # Where other turns are lost too, it is not the system turn alone.
            return lost_turn(*next((each for each in less if each[0] != "system"), (role, words)), side)
        rest = mine[at : begin + len(words)]
        if len(rest) > ENOUGH and rest[-ENOUGH:] not in theirs and len(theirs) <= len(mine) - len(rest) + WINDOW:
            return named("message_cut", side, who=role, token=f"{at - begin:,}", stops=f"{len(words):,}")
        return named("text_changed", side, token=lost, stops=added)
    return None


def by_role(pair: Pair, messages: list[Message]) -> Reason | None:
    """A cause that shows in the word after a control token, which says whose turn it is: another word, or no turn."""
    mine, theirs = pair.texts
    at = common(mine, theirs)
    (begin, here), (_, there) = (word_at(words, at) for words in (mine, theirs))
    marks = tuple(pair.text([number]) for number in pair.control)
    if not here or not there or not mine[:begin].rstrip().endswith(marks):
        return None
    if there not in {turn["role"] for turn in messages} | {"assistant"}:
        return named("role", pair.side, token=here, stops=there)
    if here in {turn["role"] for turn in messages} and len(theirs) < len(mine):
        return lost_turn(here, next(turn["content"] for turn in messages if turn["role"] == here), pair.side)
    return None


def lost_turn(role: str, words: str, side: str) -> Reason:
    """A lost message of a role; a lost system turn has a name of its own."""
    return named("system_lost" if role == "system" else "message_lost", side, who=role, token=words[:ENOUGH])


def word_at(words: str, at: int) -> tuple[int, str]:
    """Where the word of letters, digits and "_" begins that a place of a text is in, or at the end of; and the word."""
    begin = at
    while begin and (words[begin - 1].isalnum() or words[begin - 1] == "_"):
        begin -= 1
    found = re.match(r"\w*", words[begin : at + WINDOW])
    return begin, found[0] if found else ""


def last_word(text: str, words: str) -> str:
    """The word before the first place at which a text has `words`."""
    return next(iter(re.findall(r"\w+", text[: text.find(words)])[-1:]), "")


def by_system(pair: Pair, messages: list[Message]) -> Reason | None:
    """A cause that shows before the first message: a system message that nobody gave, another one, or none.

    llama.cpp puts the text of a system message into the user's turn where a template writes no system turn.
    """
    side, (mine, theirs) = pair.side, pair.texts
    words = messages[0]["content"].strip() if messages[0]["role"] == "system" else ""
    if words and words in theirs and last_word(mine, words) != last_word(theirs, words):
        return lost_turn("system", side, words)
    begins = [words[:ENOUGH] for turn in messages if (words := turn["content"].strip())]
    if not begins:
        return None
    before = [each[: each.find(begins[0])] for each in (mine, theirs)]
    if before[0] == before[1]:
        return None
    start, end = common(*before), common(*(each[::-1] for each in before))
    if start + end < min(map(len, before)):
        kind = "another_system" if "system" in before[0] and "system" in before[1] else ""
    else:
        kind = "another_system" if messages[0]["role"] == "system" else "default_system"
    who, other, longer = (side, TRAINING, before[0]) if len(before[0]) > len(before[1]) else (TRAINING, side, before[1])
    added = longer[min(start, len(longer) - end) :][: 3 * ENOUGH]
    return named(kind, side, who=who, other=other, token=added) if kind else None


def by_marker(pair: Pair) -> Reason:
    """A cause that shows in the control token at the place where the two part; unknown without one."""
    mine, theirs = pair.texts
    at = common(mine, theirs)
    here, there = (marker(pair, words, at) for words in (mine, theirs))
    if here and there and there not in mine:
        return named("other_template", pair.side, token=here, stops=there)
    if here:
        return named("no_end", pair.side, who=pair.side, token=here)
    if there:
        return named("no_end", pair.side, who=TRAINING, token=there)
    return named("unknown", pair.side)


def marker(pair: Pair, words: str, at: int) -> str:
    """The control token that a text has at a place, "" for none."""
    for token in (pair.text([number]) for number in pair.control):
        if -1 < words.find(token, max(0, at - len(token) + 1)) <= at:
            return token
    return ""


def common(one: str, another: str) -> int:
    """How many letters two texts begin with alike."""
    pairs = enumerate(zip(one, another, strict=False))
    return next((i for i, (mine, theirs) in pairs if mine != theirs), min(len(one), len(another)))


def edit(mine: str, theirs: str) -> tuple[str, str]:
    """The first words or marks of one text that another has not, and what it has in their place; cut where long."""
    begin = max(0, common(mine, theirs) - EXCERPT)
    one, other = (re.findall(r"\w+|\W", words[begin : begin + WINDOW]) for words in (mine, theirs))
    for kind, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind != "equal":
            return "".join(one[a:b])[:EXCERPT], "".join(other[c:d])[:EXCERPT]
    return "", ""


def first_edit(pair: Pair) -> tuple[list[int], list[int]]:
    """The first run of tokens of training that the side has not, and what it has in their place, near to each other."""
    begin = max(0, pair.place - BEFORE)
    mine, theirs = pair.trained[begin : begin + WINDOW], pair.served[begin : begin + WINDOW]
    for kind, a, b, c, d in difflib.SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        if kind != "equal":
            return mine[a:b], theirs[c:d]
    return [], []
