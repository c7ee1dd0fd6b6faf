"""Parity: equal with real servers, and each way to break a good model is caught and named, with its fix."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parts.metadata import with_metadata
from tools import Failed, cli
from tools.core import files, run_folder, trajectory
from tools.gguf import convert, find_base, llamacpp
from tools.parity import compare, diagnose, prove, vocabulary
from tools.serving import ollama
from tools.training import tokens

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("quick_conversions")]

# What the good model's template is made of; each break replaces one part of it in the GGUF. The comment leaves room.
SYSTEM = "<|im_start|>system\nYou are good. Today Date: 26 Jul 2024<|im_end|>\n"
PARTS = {
    "begin": "{{ bos_token }}",
    "default": "{% if messages[0]['role'] != 'system' %}{{ '" + SYSTEM.replace("\n", "\\n") + "' }}{% endif %}",
    "turns": "{% for m in messages %}",
    "turn": "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}",
    "done": "{% endfor %}",
    "ask": "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
}
ROOM = 400
USER = {"role": "user", "content": "  Your task is to: put some mug on desk 12345. "}
ANSWER = {"role": "assistant", "content": "Thought: I see <it> & 'go'. é 你好 🙂\nAction: go to desk 1"}
# No system message: the template puts a default one before it. Spaces at both ends.
BARE = [USER, ANSWER, {"role": "user", "content": " Observation: Nothing happens.\n"}, ANSWER]
LLAMA = "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] + '<|eot_id|>' }}"
REFUSAL = "{% if messages[0]['content'].startswith(' ') %}{{ raise_exception('never') }}{% endif %}"
BARE_TEXT = {"begin": "", "default": "", "turn": "{{ m['content'] }}", "ask": ""}

Check = Callable[..., dict[str, Any]]


def template(**changes: str) -> str:
    """The good template, or one with some of its parts changed."""
    return "".join((PARTS | changes).values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with SmolLM2's tokenizer, a beginning-of-sequence token and the good template."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    out = tmp_path_factory.mktemp("good")
    tokenizer = AutoTokenizer.from_pretrained(find_base.resolve("smollm2-135m"))
    tokenizer.bos_token, tokenizer.chat_template = "<|endoftext|>", template() + "{#" + " " * ROOM + "#}"
    tokenizer.save_pretrained(out)
    ids: dict[str, Any] = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids))
    model.to(torch.bfloat16).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def good(folder: Path) -> Path:
    """The good model's GGUF, whose tokenizer adds the beginning as Llama's does."""
    convert.to_gguf(folder, folder / "good.gguf")
    number("tokenizer.ggml.add_bos_token", True)(folder / "good.gguf")
    return folder / "good.gguf"


@pytest.fixture(scope="module")
def url(good: Path) -> Iterator[str]:
    with llamacpp.server(good, 512) as url:
        yield url


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def difference_of(found: compare.Compared) -> compare.FirstDifference:
    """The first difference, which there must be."""
    assert found["first_difference"]
    return found["first_difference"]


@pytest.fixture(scope="module")
def check(folder: Path, tokenizer: Any) -> Check:
    """The check of the bare conversation and another, which Axolotl tokenises once for all tests."""
    talks = [BARE, [compare.system("Solve it."), *BARE]]
    entry = compare.ENTRY | compare.SHAPE
    trained = tokens.tokenise(folder, entry, [{"messages": talk} for talk in talks], 2048)

    def compared(*sides: compare.Side, which: slice = slice(2)) -> dict[str, Any]:
        return {**compare.compare_conversations(talks[which], trained[which], sides, tokenizer)}

    return compared


def edit(path: Path, key: str, change: Callable[[Any], None]) -> None:
    """Change a value of a GGUF in its place: `change` gets the array that lies in the file."""
    from gguf import GGUFReader

    field = GGUFReader(path, "r+").get_field(key)
    assert field is not None, key
    change(field)


def rewrite(path: Path, **changes: str) -> None:
    """Give a GGUF a chat template with other parts, padded by a comment to the old one's length."""

    def change(field: Any) -> None:
        new = template(**changes).encode()
        old = field.parts[field.data[0]]
        old[:] = bytearray(new + b"{#" + b" " * (len(old) - len(new) - 4) + b"#}")

    edit(path, "tokenizer.chat_template", change)


def number(key: str, value: Any, index: int = 0) -> Callable[[Path], None]:
    """A break: one number of a GGUF's metadata."""

    def change(field: Any) -> None:
        field.parts[field.data[index]][0] = value

    return lambda path: edit(path, key, change)


def word(key: str, value: str) -> Callable[[Path], None]:
    """A break: one text of a GGUF's metadata, by another of the same length."""

    def change(field: Any) -> None:
        field.parts[field.data[0]][:] = bytearray(value.encode())

    return lambda path: edit(path, key, change)


def parts(**changes: str) -> Callable[[Path], None]:
    """A break: parts of the chat template."""
    return lambda path: rewrite(path, **changes)


def without_begin(path: Path) -> None:
    rewrite(path, begin="")
    number("tokenizer.ggml.add_bos_token", False)(path)


BREAKS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "default system message": ("default_system", parts(default=""), "training begins with 'system"),
    "another default": (
        "another_system",
        parts(default=PARTS["default"].replace("good", "bad")),
        "another system message",
    ),
    "beginning twice": ("begin_twice", parts(begin="{{ bos_token }}{{ bos_token }}"), "twice in llama-server"),
    "no beginning": ("begin_missing", without_begin, "llama-server has no <|endoftext|>"),
    "spaces": ("space", parts(turn=PARTS["turn"].replace("m['content']", "m['content'].strip()")), "llama-server"),
    "no end": ("no_end", parts(turn=PARTS["turn"].replace("<|im_end|>", "")), "llama-server has no <|im_end|>"),
    "another eos": ("no_stop", number("tokenizer.ggml.eos_token_id", 3), "stops at <repo_name>"),
    "a control token as text": (
        "spelled_out",
        number("tokenizer.ggml.token_type", 1, 1),
        "<|im_start|> as ordinary",
    ),
    "a backslash and n": ("line_feeds", parts(turn=PARTS["turn"].replace("\\n", "\\\\n")), "backslash n"),
    "no template": ("no_template", parts(**BARE_TEXT), "bare text"),
    "Llama's template": ("other_template", parts(turn=LLAMA, default="", ask=""), "<|start_header_id|>"),
    "thinking": ("thinking", parts(ask=PARTS["ask"].replace("ant\\n", "ant\\n<think>\\n\\n</think>\\n\\n")), "<think>"),
    "a date": ("date", parts(default=PARTS["default"].replace("26 Jul 2024", "24 Nov 2026")), "26 Jul 2024"),
    "the last message alone": ("message_lost", parts(turns="{% for m in messages[-1:] %}"), "Your task is to: put"),
    "a shorter opening": ("prompt_short", parts(ask=PARTS["ask"].replace("ant\\n", "ant")), "without '\\n'"),
    "a longer opening": ("prompt_long", parts(ask=PARTS["ask"].replace("ant\\n", "ant\\nThought:")), "goes on with"),
    "another pre-tokenizer": ("vocabulary", word("tokenizer.ggml.pre", "falcon"), "another pre-tokenizer"),
    "a template that refuses": ("refused", parts(begin=REFUSAL), "never"),
    "a tab as spaces": (
        "space",
        parts(turn=PARTS["turn"].replace("t']", "t'].replace('put some', 'put\\tsome')")),
        "' ' in training is '\\t' in llama-server",
    ),
    "a line feed more": ("prompt_long", parts(ask=PARTS["ask"].replace("ant\\n", "ant\\n\\n")), "goes on with '\\n'"),
    "a role renamed": (
        "role",
        parts(turn=PARTS["turn"].replace("m['role']", "m['role'].replace('user', 'human')")),
        "'user' in training is 'human' in llama-server",
    ),
    "the answer's role renamed": ("role", parts(ask=PARTS["ask"].replace("assistant", "bot")), "'assistant'"),
    "other words": ("text_changed", parts(turn=PARTS["turn"].replace("t']", "t'].replace('mug', 'cup')")), "'mug'"),
}


def turns(of: str) -> Callable[[Path], None]:
    """A break: the messages that are written."""
    return parts(turns="{% for m in " + of + " %}")


def content(written: str) -> Callable[[Path], None]:
    """A break: what is written of a message."""
    return parts(turn=PARTS["turn"].replace("m['content']", written))


# What shows in hard conversations alone.
HARD_BREAKS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "tool turns dropped": ("message_lost", turns("messages if m['role'] != 'tool'"), "the tool's"),
    "a tool's role renamed": (
        "role",
        parts(turn=PARTS["turn"].replace("m['role']", "m['role'].replace('tool', 'ipython')")),
        "'tool' in training is 'ipython'",
    ),
    "the last 130 messages": ("message_lost", turns("messages[-130:]"), "the user's"),
    "the middle left out": (
        "message_lost",
        turns("messages[:40] + messages[[40, messages | length - 60] | max :]"),
        "the user's",
    ),
    "content cut": ("message_cut", content("m['content'][:4000]"), "4,000 of the assistant's 20,000 letters"),
    "an answer cut": (
        "message_cut",
        content("(m['content'][:9000] if m['role'] == 'assistant' else m['content'])"),
        "9,000 of the assistant's 20,000 letters",
    ),
    "the system message dropped": ("system_lost", turns("messages if m['role'] != 'system'"), "the system turn lost"),
    "the system message cut": (
        "message_cut",
        content("(m['content'][:99] if m['role'] == 'system' else m['content'])"),
        "99 of the system's 20,000 letters",
    ),
    "messages of white space left out": ("system_lost", turns("messages if m['content'] | trim"), "writes none for"),
}


@pytest.fixture(scope="module")
def hard(folder: Path, tokenizer: Any) -> Callable[[str], dict[str, Any]]:
    """The check of hard conversations by the last of them, which Axolotl tokenises once for all tests."""
    talks = compare.conversations(trajectory.read(run_folder.ROOT / "data" / "test.jsonl"), tokenizer, 1)
    entry = compare.ENTRY | compare.SHAPE
    trained = tokens.tokenise(folder, entry, [{"messages": talk} for talk in talks], 2048)

    def compared(url: str) -> dict[str, Any]:
        last_first = slice(None, None, -1)
        sides = [compare.llama_server_side(url)]
        return {**compare.compare_conversations(talks[last_first], trained[last_first], sides, tokenizer)}

    return compared


@pytest.mark.parametrize("name", HARD_BREAKS)
def test_what_hard_conversations_alone_show_is_caught_and_named(
    name: str, good: Path, tmp_path: Path, hard: Callable[[str], dict[str, Any]]
) -> None:
    kind, damage, says = HARD_BREAKS[name]
    broken = Path(shutil.copy2(good, tmp_path / "broken.gguf"))
    damage(broken)
    with llamacpp.server(broken, 512) as url:
        first = hard(url)["first_difference"]
    assert first and first["kind"] == kind and says in first["cause"], compare.words(first)


def test_an_end_token_that_the_tokenizer_adds(good: Path, tmp_path: Path, check: Check) -> None:
    broken = with_metadata(good, tmp_path / "broken.gguf", {"tokenizer.ggml.add_eos_token": True})
    with llamacpp.server(broken, 512) as url:
        first = check(compare.llama_server_side(url))["first_difference"]
    assert first["kind"] == "end_added" and "adds <|im_end|>" in first["cause"], compare.words(first)


@pytest.mark.parametrize("name", BREAKS)
def test_a_model_broken_in_one_way_is_caught_and_named(name: str, good: Path, tmp_path: Path, check: Check) -> None:
    kind, damage, says = BREAKS[name]
    broken = Path(shutil.copy2(good, tmp_path / "broken.gguf"))
    damage(broken)
    with llamacpp.server(broken, 512) as url:
        found = check(compare.llama_server_side(url))
    first = found["first_difference"]
    assert found["equal"] is False
    assert first["kind"] == kind and says in first["cause"], compare.words(first)
    assert first["fix"] and first["side"] == "llama-server" and first["conversation"] == 1
    assert len(compare.words(first).splitlines()) == 1


def test_the_words_of_a_difference_show_both_sides(good: Path, tmp_path: Path, check: Check) -> None:
    broken = Path(shutil.copy2(good, tmp_path / "broken.gguf"))
    rewrite(broken, default="")
    with llamacpp.server(broken, 512) as url:
        first = check(compare.llama_server_side(url))["first_difference"]
    assert (first["turn"], first["position"]) == (2, 2)
    assert (first["trained"]["text"], first["served"]["text"]) == ("system", "user")
    assert "You are good" in first["trained"]["around"] and "Your task" in first["served"]["around"]
    line = compare.words(first)
    assert "llama-server, conversation 1, turn 2, token 2: training has 'system' and llama-server 'user'" in line
    assert "to fix it: give every conversation a system message" in line


def test_all_sides_see_the_tokens_of_training_on_hard_conversations(folder: Path, url: str, tokenizer: Any) -> None:
    talks = compare.conversations(trajectory.read(run_folder.ROOT / "data" / "test.jsonl"), tokenizer, 1)
    found = compare.compare_with_training(talks, folder, [compare.llama_server_side(url)], tokenizer=tokenizer)
    assert found["equal"] is True and found["first_difference"] is None
    assert found["sides"] == ["transformers", "llama-server"]
    assert found["conversations"] == len(talks) and found["tokens"] > 10000


def test_hard_conversations_hold_what_is_hard(tokenizer: Any) -> None:
    talks = compare.conversations(trajectory.read(run_folder.ROOT / "data" / "test.jsonl"), tokenizer, 1)
    said = [turn["content"] for talk in talks for turn in talk if turn["role"] == "user"]
    lengths = {len(compare.answers(talk)) for talk in talks}
    assert {1, 60} <= lengths
    assert {"system", "user"} <= {talk[0]["role"] for talk in talks}
    assert any(turn["role"] == "tool" for talk in talks for turn in talk)
    assert max(map(len, talks)) == 300 and " " in said and any("<|im_start|>x<|im_end|>" in word for word in said)
    long = {turn["role"] for talk in talks for turn in talk if len(turn["content"]) == 20000}
    assert long == {"system", "user", "assistant"}
    assert "" in said and "<|im_end|>" in said and any(word.startswith(" ") for word in said)
    assert any("🙂" in word for word in said) and any(word.endswith("\n") for word in said)


def test_a_chat_request_reads_as_many_tokens_as_were_compared(url: str) -> None:
    """A control token that a user typed counts as such in a real request too."""
    side = compare.llama_server_side(url)
    talk = [{"role": "user", "content": "a literal <|im_end|> é 🙂"}]
    answer = llamacpp.post(f"{url}/v1/chat/completions", {"messages": talk, "max_tokens": 1})
    assert answer["usage"]["prompt_tokens"] == len(side.tokenise(side.render(talk)))


def test_a_mask_without_trained_tokens(url: str, tokenizer: Any) -> None:
    found = compare.compare_conversations(
        [BARE], [([1, 2, 3], [-100] * 3)], [compare.llama_server_side(url)], tokenizer
    )
    assert "the loss mask: 0 trained parts for 2 answers" in compare.words(difference_of(found))


def test_an_end_token_that_is_not_trained(url: str, folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """As for a base whose eos is not the token that ends its template's turns, before the recipe says so."""
    other = Path(shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("*.gguf")))
    settings = json.loads((other / "tokenizer_config.json").read_bytes())
    files.write_json(other / "tokenizer_config.json", settings | {"eos_token": "<repo_name>"})
    trained = tokens.tokenise(other, {**compare.ENTRY, **compare.SHAPE}, [{"messages": BARE}], 2048)
    first = difference_of(compare.compare_conversations([BARE], trained, [compare.llama_server_side(url)], tokenizer))
    assert first["kind"] == "end_untrained" and 'eos_token: "<|im_end|>"' in first["fix"]


def test_a_template_that_rewrites_earlier_turns(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """As Qwen3's, which marks the last answer alone, and Mistral's, which moves the system message to the last turn."""
    from transformers import AutoTokenizer

    moved = Path(shutil.copytree(folder, tmp_path / "moved", ignore=shutil.ignore_patterns("*.gguf")))
    late = "{% if loop.last or loop.index == loop.length - 1 %}{{ 'Be brief. ' }}{% endif %}"
    (moved / "chat_template.jinja").write_text(template(turn=late + PARTS["turn"]))
    found = compare.compare_with_training([BARE], moved, [], tokenizer=AutoTokenizer.from_pretrained(moved))
    first = difference_of(found)
    assert (first["side"], first["kind"]) == ("transformers", "rewritten")


def test_what_training_refuses_is_counted_and_not_compared(folder: Path, url: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    strict = Path(shutil.copytree(folder, tmp_path / "strict", ignore=shutil.ignore_patterns("*.gguf")))
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (strict / "chat_template.jinja").write_text(refuse + template())
    tokenizer = AutoTokenizer.from_pretrained(strict)
    with_system = [compare.system("Solve it."), *BARE]
    found = compare.compare_with_training(
        [BARE, with_system], strict, [compare.llama_server_side(url)], tokenizer=tokenizer
    )
    assert (found["equal"], found["conversations"], found["refused"]) == (True, 1, 1)
    with pytest.raises(Failed, match="refuses every conversation: System role not supported"):
        compare.compare_with_training([with_system], strict, [], tokenizer=tokenizer)


def test_a_server_that_is_gone() -> None:
    with pytest.raises(Failed, match="no answer"):
        compare.llama_server_side(f"http://127.0.0.1:{llamacpp.free_port()}")


def test_every_cause_has_its_fix() -> None:
    fields = dict.fromkeys(("token", "stops"), "x")
    for kind in diagnose.facts().causes:
        for side in (diagnose.LLAMA_SERVER, diagnose.OLLAMA):
            named = diagnose.named(kind, side, **fields)
            assert named["cause"] and named["fix"] and "{" not in named["cause"].replace("{eos", ""), kind


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """The exit status and what a command printed."""
    monkeypatch.setattr("sys.argv", ["tools", "parity", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().out


def test_a_gguf_of_any_origin_is_checked_by_a_command(
    folder: Path, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": BARE}) + "\n")
    asked = ["--base", str(folder), "--held-out", str(data), "--json"]
    good = with_metadata(good, tmp_path / "plain.gguf", {"tokenizer.ggml.add_bos_token": False})  # as converted
    status, shown = command(capsys, monkeypatch, "--gguf", str(good), *asked)
    found = json.loads(shown)
    assert (status, found["equal"], found["sides"]) == (0, True, ["transformers", "llama-server"])
    assert found["first_difference"] is None and found["conversations"] > 30
    assert found["tokenizer"] == {"equal": True, "tokens": 49152, "merges": 48900, "differences": []}
    broken = Path(shutil.copy2(good, tmp_path / "broken.gguf"))
    rewrite(broken, turn=PARTS["turn"].replace("<|im_end|>", ""))
    status, shown = command(capsys, monkeypatch, "--gguf", str(broken), *asked)
    first = json.loads(shown)["first_difference"]
    assert (status, first["kind"], first["side"]) == (1, "no_end", "llama-server")
    assert {"cause", "fix", "trained", "served", "conversation", "turn", "position"} <= first.keys()
    # Each conversation has the same tokens, and the server stops at the first line feed.
    early = with_metadata(good, tmp_path / "early.gguf", {"tokenizer.ggml.eot_token_id": 198})
    status, shown = command(capsys, monkeypatch, "--gguf", str(early), *asked)
    found = json.loads(shown)
    assert (status, found["equal"], found["first_difference"]) == (1, False, None)
    assert [each["kind"] for each in found["tokenizer"]["differences"]] == ["special_token", "ends"]


def test_a_cause_that_the_tables_tell_is_told_of_conversations_too(
    folder: Path, good: Path, tmp_path: Path, check: Check
) -> None:
    """Without a chat template llama-server writes ChatML, which differs in what it puts first alone."""
    bare = with_metadata(good, tmp_path / "bare.gguf", {}, {"tokenizer.chat_template"})
    tables = vocabulary.compare_tokenizers(folder, None, bare, tmp_path / "log")
    with llamacpp.server(bare, 512) as url:
        found: Any = check(compare.llama_server_side(url))
    first = prove.together(tables, found)["first_difference"]
    assert first and first["kind"] == "template_missing" and "no chat template in the GGUF" in first["cause"]


CHAT = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
LAST = "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n"
# By name: the kind, what the Modelfile says, which conversation shows it (0: without a system message), the fix.
MODELFILES: dict[str, tuple[str, dict[str, str], int, str]] = {
    "no default system message": ("default_system", {"template": CHAT}, 0, "make SYSTEM in the Modelfile"),
    "a SYSTEM not trained": ("another_system", {"template": CHAT, "system": "Be bad."}, 0, "SYSTEM and TEMPLATE"),
    "beginning twice": ("begin_twice", {"template": f"<|endoftext|>{CHAT}"}, 1, "take <|endoftext|> out of TEMPLATE"),
    "a backslash and n": ("line_feeds", {"template": CHAT.replace("\n", "\\n")}, 1, "write true line feeds"),
    "no template": ("no_template", {"template": "{{ .Prompt }}"}, 1, "TEMPLATE of the model's family"),
    "no end": ("no_end", {"template": CHAT.replace("<|im_end|>", "")}, 1, "write <|im_end|> after each message"),
    "one turn alone": ("system_lost", {"template": LAST}, 1, "the system message of .Messages"),
}


@pytest.fixture(scope="module")
def served(session: ollama.Session, good: Path, url: str) -> Callable[..., compare.Side]:
    """The good model in Ollama, with a Modelfile of one's own."""
    client: Any = session.client

    def create(expected: str | None = None, **said: str) -> compare.Side:
        client.create(model="react-parity", files={good.name: ollama.send(client, good)}, **said)
        return compare.ollama_side(client, "react-parity", url, expected)

    return create


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELFILES)
def test_a_modelfile_wrong_in_one_way_is_caught_and_named(
    name: str, served: Callable[..., compare.Side], check: Check
) -> None:
    kind, said, which, fix = MODELFILES[name]
    first = check(served(**said), which=slice(which, which + 1))["first_difference"]
    assert first["kind"] == kind and first["side"] == "Ollama", compare.words(first)
    assert fix in first["fix"]


@pytest.mark.slow
def test_ollama_sees_the_tokens_of_training_on_hard_conversations(
    served: Callable[..., compare.Side], folder: Path, tokenizer: Any
) -> None:
    """Where SYSTEM is there on purpose, a conversation without a system message equals training with that message."""
    talks = compare.conversations(trajectory.read(run_folder.ROOT / "data" / "test.jsonl"), tokenizer, 1)
    side = served("Solve the task.", template=CHAT, system="Solve the task.")
    found = compare.compare_with_training(talks, folder, [side], tokenizer=tokenizer)
    assert found["equal"] is True and found["sides"] == ["transformers", "Ollama"]
