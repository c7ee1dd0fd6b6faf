"""The header of a GGUF against training's: every token, merge and special token as tables, and the model's settings.

Training's side is llama.cpp's own conversion of training's tokenizer, so that both say it in the same words.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from tools.core import files, progress
from tools.gguf import convert, header
from tools.gguf.header import Value
from tools.parity import diagnose
from tools.parity.diagnose import Reason

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Entries of a table that are shown.
SHOWN = 3
KEYS = "tokenizer.ggml."
# Kinds of tokens (gguf.TokenType).
KINDS = {1: "normal", 2: "unknown", 3: "control", 4: "user-defined", 5: "unused", 6: "byte"}
NORMAL, UNUSED = 1, 5
# What stands in a header for what llama.cpp takes where it is not there: llama-vocab.cpp of llama.cpp, impl::load.
SENTENCE_PIECE = {"add_bos_token": True, "add_space_prefix": True, "bos_token_id": 1, "eos_token_id": 2}
BYTE_LEVEL = {"bos_token_id": 11, "eos_token_id": 11}
# Those of its pre-tokenizers that begin a text with the token for that by themselves.
BEGINS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"}
BEGINS |= {"tekken", "chameleon"}
SWITCHES = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces")
# Of the model's own settings: what llama.cpp takes where they are not there; what the tensors say; what may be larger.
USUAL = {".rope.freq_base": 10000.0, ".rope.scaling.factor": 1.0}
BY_TENSORS, CONTEXT = ".vocab_size", ".context_length"
SPECIAL = ("bos_token_id", "eos_token_id", "padding_token_id")
# Tokens that llama.cpp finds by their texts where no key names them, from the same place.
TURN_ENDS = b"<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> [EOT]".split()
TURN_ENDS += ["<\uff5cend\u2581of\u2581sentence\uff5c>".encode(), b"<end_of_utterance>"]
BY_TEXT: dict[str, list[bytes]] = {
    "eot_token_id": TURN_ENDS,
    "eom_token_id": [b"<|eom_id|>"],
    "fim_pad_token_id": b"<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]".split(),
    "fim_rep_token_id": b"<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>".split(),
    "fim_sep_token_id": [b"<|file_sep|>"],
}
# And those that end an answer by their texts, whatever the keys say.
ENDS = {*TURN_ENDS, *b"<|return|> <|call|> <|flush|> <|calls|> </s> <|eom_id|> [EOS] <eos> <turn|> [e~[".split()}
ENDS |= {b"<|tool_response>"}


class Entry(TypedDict):
    """An entry of a table that differs: where it is, counted from 0, and what each side has there, None for nothing."""

    at: int | None
    trained: str | None
    served: str | None


class TableDifference(Reason):
    """How one table (tokens, merges ...) or one setting differs: `differ` of its `of` entries, the `first` of those."""

    what: str
    differ: int
    of: int
    first: list[Entry]


class Tables(TypedDict):
    """What parity.json holds of the tokenizer: how many tokens and merges were compared, and each difference."""

    equal: bool
    tokens: int
    merges: int
    differences: list[TableDifference]


@dataclass(frozen=True)
class Tokenizer:
    """What the header of a GGUF says of its tokenizer: numbers and texts by their keys (less KEYS), and arrays.

    `model`: what it says of the model itself, by whole keys; of an array how many elements it has.
    """

    values: Mapping[str, Value]
    arrays: "Mapping[str, list[bytes] | npt.NDArray[np.generic]]"
    template: bool
    model: Mapping[str, Value] = field(default_factory=dict)

    @property
    def tokens(self) -> list[bytes]:
        """The texts of all tokens."""
        return self.texts("tokens")

    def texts(self, key: str) -> list[bytes]:
        """An array of texts, empty where there is none."""
        return [each if isinstance(each, bytes) else str(each).encode() for each in self.arrays.get(key, [])]

    def numbers(self, key: str, default: float) -> list[float]:
        """A number for each token, as llama.cpp has it where the array is not there or is too short."""
        found = self.arrays.get(key, [])
        given = found if isinstance(found, list) else found.tolist()
        return [*given, *[default] * (len(self.tokens) - len(given))]

    def value(self, key: str) -> Value | None:
        """A number, a truth or a text, or what llama.cpp takes where it is not there."""
        if self.values.get("model") == "llama":
            usual: Mapping[str, Value] = SENTENCE_PIECE
        else:
            usual = BYTE_LEVEL | {"add_bos_token": self.values.get("pre") in BEGINS}
        return self.values.get(key, usual.get(key, False if key in SWITCHES else None))

    def named(self, number: Value | None) -> str:
        """A token by its number and text."""
        if not isinstance(number, int):
            return "none"
        known = 0 <= number < len(self.tokens)
        return f"{number} ({shown(self.tokens[number]) if known else 'no such token'})"


def compare_tokenizers(base: Path, adapter: Path | None, gguf: Path, log_beside: Path) -> Tables:
    """Compare the tokenizer and settings in a GGUF with those of a base and of its adapter's tokenizer, if it has one.

    `base`: a folder, its weights are not needed. `log_beside`: a path beside which a file may lie meanwhile. Raises
    BadInput and Failed as convert.tokenizer_to_gguf.
    """
    with files.scratch(log_beside) as work, progress.step("parity: the tokenizer of training and that of the GGUF"):
        trained = work / "tokenizer.gguf"
        convert.tokenizer_to_gguf(base, adapter, trained)
        mine, theirs = read(trained), read(gguf)
    found = list(differences(mine, theirs))
    return {
        "equal": not found,
        "tokens": len(mine.tokens),
        "merges": len(mine.texts("merges")),
        "differences": found,
    }


def read(gguf: Path) -> Tokenizer:
    """The tokenizer in a GGUF. Raises BadInput for what is none."""
    found, there = header.metadata_and_arrays(gguf, KEYS)
    values = {key.removeprefix(KEYS): each for key, each in found.items() if key.startswith(KEYS)}
    arrays = {key.removeprefix(KEYS): each for key, each in there.items()}
    architecture = "general.architecture"
    model = {key: each for key, each in found.items() if key.startswith((architecture, f"{found.get(architecture)}."))}
    told = {key: values[key] for key in values.keys() - arrays}
    return Tokenizer(told, arrays, "tokenizer.chat_template" in found, model)


def differences(mine: Tokenizer, theirs: Tokenizer) -> Iterator[TableDifference]:
    """How training's tokenizer (`mine`) and a GGUF's differ, the most telling first."""
    if mine.template and not theirs.template:
        yield told("template_missing", "chat template", [Entry(at=None, trained="there", served=None)], 1)
    keys = ("model", "pre") if mine.value("model") != "llama" else ("model",)  # llama.cpp: only BPE has those
    yield from settings("pre_tokenizer", keys, mine, theirs, str)
    yield from tables(mine, theirs)
    yield from settings("switch", SWITCHES, mine, theirs, lambda value: str(bool(value)).lower())
    yield from settings("special_token", SPECIAL, mine, theirs)
    turns = [key for key in BY_TEXT if not same_by_text(key, mine, theirs)]
    yield from settings("special_token", turns, mine, theirs)
    ours, others = ends(mine), ends(theirs)
    if ours != others:
        apart = [Entry(at=None, trained=mine.named(number), served=None) for number in sorted(ours - others)]
        apart += [Entry(at=None, trained=None, served=theirs.named(number)) for number in sorted(others - ours)]
        yield told("ends", "tokens that end an answer", apart, len(ours | others))
    for key in dict.fromkeys([*mine.model, *theirs.model]):
        one, other = (each.model.get(key, usual(key)) for each in (mine, theirs))
        if one is not None and other is not None and not same_setting(key, one, other):
            yield told("setting", key, [Entry(at=None, trained=str(one), served=str(other))], 1)


def usual(key: str) -> Value | None:
    """What llama.cpp takes for a setting of the model that a header does not have; None where it is not compared."""
    return next((value for end, value in USUAL.items() if key.endswith(end)), None)


def same_setting(key: str, mine: Value, theirs: Value) -> bool:
    """Whether a setting of the model does what training's does."""
    if key.endswith(BY_TENSORS):
        return True
    if isinstance(mine, int | float) and isinstance(theirs, int | float):
        return math.isclose(mine, theirs, rel_tol=1e-6) or (key.endswith(CONTEXT) and theirs > mine)
    return mine == theirs


def tables(mine: Tokenizer, theirs: Tokenizer) -> Iterator[TableDifference]:
    """How the arrays differ. Rows that only fill up the end of a vocabulary may be on one side alone."""
    kinds = mine.numbers("token_type", NORMAL), theirs.numbers("token_type", NORMAL)
    used = max(last_used(each) for each in kinds)
    of_each: list[tuple[str, str, Sequence[object], Sequence[object], Callable[[object], str]]] = [
        ("token_texts", "tokens", mine.tokens, theirs.tokens, shown),
        (
            "token_types",
            "token types",
            *kinds,
            type_name,
        ),
        ("token_scores", "token scores", mine.numbers("scores", 0.0), theirs.numbers("scores", 0.0), str),
        ("merges", "merges", mine.texts("merges"), theirs.texts("merges"), shown),
        ("suppressed", "suppressed tokens", numbered(mine), numbered(theirs), str),
        ("pre_tokenizer", "bytes of the normaliser's map", charsmap(mine), charsmap(theirs), str),
    ]
    for kind, what, one, other, say in of_each:
        if what.startswith("token"):
            shorter = min(len(one), len(other))
            most = max(used, shorter) if kind == "token_texts" else shorter
            one, other = one[:most], other[:most]
        if one == other:
            continue
        longer = max(len(one), len(other))
        places = [i for i in range(longer) if one[i : i + 1] != other[i : i + 1]]
        apart = [Entry(at=i, trained=entry(one, i, say), served=entry(other, i, say)) for i in places[:SHOWN]]
        yield told(kind, what, apart, longer, len(places))


def type_name(kind: object) -> str:
    """A type of tokens in words, see KINDS."""
    return KINDS.get(kind, str(kind)) if isinstance(kind, int) else str(kind)


def last_used(kinds: Sequence[float]) -> int:
    """How many tokens there are up to the last one that is not there to fill up the vocabulary."""
    return next((i for i in range(len(kinds), 0, -1) if kinds[i - 1] != UNUSED), 0)


def numbered(of: Tokenizer) -> list[int]:
    """The tokens that a GGUF keeps from ever being chosen."""
    return sorted(int(each) for each in of.arrays.get("suppress_tokens", []))


def charsmap(of: Tokenizer) -> list[int]:
    """How a SentencePiece vocabulary writes letters anew before it splits a text, in its own form."""
    return [int(each) for each in of.arrays.get("precompiled_charsmap", [])]


def entry(table: Sequence[object], at: int, say: Callable[[object], str]) -> str | None:
    """An entry as text, None after the last one."""
    return say(table[at]) if at < len(table) else None


def settings(
    kind: str,
    keys: Sequence[str],
    mine: Tokenizer,
    theirs: Tokenizer,
    say: Callable[[Value | None], str] | None = None,
) -> Iterator[TableDifference]:
    """How single values differ, said by `say`, or as tokens."""
    for key in keys:
        one, other = mine.value(key), theirs.value(key)
        if one != other:
            words = (say or mine.named)(one), (say or theirs.named)(other)
            yield told(kind, f"{KEYS}{key}", [Entry(at=None, trained=words[0], served=words[1])], 1)


def same_by_text(key: str, mine: Tokenizer, theirs: Tokenizer) -> bool:
    """Whether a token that llama.cpp finds by its text, where a header does not name it, may be the same on both."""
    one, other = mine.value(key), theirs.value(key)
    if one is not None and other is not None:
        return one == other
    by_name = next((each for each in ((mine, one), (theirs, other)) if each[1] is not None), None)
    if by_name is None:
        return True
    tokens, number = by_name[0].tokens, by_name[1]
    return isinstance(number, int) and 0 <= number < len(tokens) and tokens[number] in BY_TEXT[key]


def ends(of: Tokenizer) -> set[int]:
    """All tokens at which llama.cpp ends an answer."""
    named = {key: of.value(key) for key in ("eos_token_id", *BY_TEXT)}
    texts = ENDS.union(*(BY_TEXT[key] for key in BY_TEXT if named[key] is None))
    found = {number for number, text in enumerate(of.tokens) if text in texts}
    return found | {number for number in named.values() if isinstance(number, int)}


def shown(text: object) -> str:
    """A token's or a merge's text; bytes that are no letters stay readable."""
    return repr(text.decode(errors="backslashreplace") if isinstance(text, bytes) else text)


def told(kind: str, what: str, apart: list[Entry], of: int, differ: int | None = None) -> TableDifference:
    """A difference with its cause, in one line."""
    count = len(apart) if differ is None else differ
    places = [line(each) for each in apart[:SHOWN]]
    many = f"{count:,} of {of:,} {what} differ, first " if of > 1 else f"{what}: "
    reason = diagnose.named(kind, "the GGUF", token=f"{many}{'; '.join(places)}", stops=what)
    return TableDifference(**reason, what=what, differ=count, of=of, first=apart[:SHOWN])


def line(one: Entry) -> str:
    """An entry in words."""
    where = "" if one["at"] is None else f"{one['at']}: "
    sides = ((one["trained"], "training"), (one["served"], "the GGUF"))
    return where + ", ".join(f"{'nothing' if text is None else text} in {who}" for text, who in sides)


def words(found: Tables) -> str:
    """All differences, in one line."""
    causes = [f"{each['cause']}; to fix it: {each['fix']}" for each in found["differences"]]
    what = "settings" if all(each["kind"] == "setting" for each in found["differences"]) else "tokenizer"
    return f"the {what} in the GGUF {'are' if what == 'settings' else 'is'} not training's: {'; '.join(causes)}"
