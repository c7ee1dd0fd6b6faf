"""Each chat family's prompts in real Ollama, to the letter those of transformers with the family's real template."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy
import pytest
from transformers import PreTrainedTokenizerFast

from tests.parts import models
from tests.parts.models import PHI4, PHI4_MINI
from tools.gguf import llamacpp
from tools.recipes import render
from tools.serving import ollama

pytestmark = pytest.mark.heavy

# The newest that the Go module proxy serves; the other tests run the pinned one.
NEWEST = "0.34.4"
SYSTEM = {"role": "system", "content": 'Solve the task.\n\n Use "Thought:" and {{ .Action }}.'}
USER = {"role": "user", "content": "You are in the middle of a room.\nYour task is to: put some mug on desk."}
ASSISTANT = {"role": "assistant", "content": "Thought: I look <around> & 'search'.\nAction: go to desk 1"}
OBSERVATION = {"role": "user", "content": " \n Observation: Nothing happens. é 你好 🙂\u00a0<b> {% x %}\t\n "}
CONVERSATIONS = {
    "a system message": [SYSTEM, USER],
    "none": [USER],
    "turns": [SYSTEM, USER, ASSISTANT, OBSERVATION],
    "turns without a system message": [USER, ASSISTANT, OBSERVATION],
    "sixty turns": [SYSTEM, *[USER, ASSISTANT] * 30, OBSERVATION],
    "an empty question": [SYSTEM, {"role": "user", "content": ""}],
    "an empty answer": [SYSTEM, USER, {"role": "assistant", "content": ""}, OBSERVATION],
    "an answer with spaces around": [USER, ASSISTANT | {"content": "\n\n  Thought: I wait. \n"}, USER],
    "spaces alone": [SYSTEM, {"role": "user", "content": " \n\t "}],
    "a system message with spaces around": [SYSTEM | {"content": "\n Be brief. \n"}, USER],
    "a control token typed": [SYSTEM, USER | {"content": "What does <|im_end|> say, and <end_of_turn>?"}],
}
# As on the model's page: HuggingFaceTB/SmolLM2-135M-Instruct.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Family(NamedTuple):
    """A family by its file in templates/ollama: its template in training (text, or a name for `jinja`), its tokens."""

    name: str
    template: str
    eos: str
    bos: str | None = None


FAMILIES = [
    Family("smollm2", SMOLLM2, "<|im_end|>"),
    Family("qwen2.5", "Qwen-Qwen2.5-7B-Instruct", "<|im_end|>"),
    Family("qwen3", "qwen3", "<|im_end|>"),
    Family("qwen3", "Qwen-Qwen3-0.6B", "<|im_end|>"),
    Family("llama3", "llama3", "<|eot_id|>", "<|begin_of_text|>"),
    Family("mistral", "mistral", "</s>", "<s>"),
    Family("gemma", "gemma3", "<end_of_turn>", "<bos>"),
    Family("phi3", "microsoft-Phi-3.5-mini-instruct", "<|end|>", "<s>"),
    Family("phi4", PHI4, "<|im_end|>"),
    Family("phi4-mini", PHI4_MINI, "<|end|>"),
]
# The makers' own templates of those families that are trained with one of ours.
LLAMAS = [
    Family("llama3", f"meta-llama-Llama-{each}-Instruct", "<|eot_id|>", "<|begin_of_text|>")
    for each in ("3.1-8B", "3.2-3B", "3.3-70B")
]
MISTRAL = Family("mistral", "mistral_v2v3", "</s>", "<s>")


def jinja(family: Family) -> str:
    """The text of a family's template: ours of that name, else the maker's own, which llama.cpp or Axolotl holds."""
    ours = "" if "{" in family.template else render.chat(family.template)
    return ours or models.template(family.template)


def model(path: Path, family: Family, ends: bool = False, recipe: str = "") -> Path:
    """A GGUF of one layer and the 256 bytes, with a family's chat template and special tokens: it loads at once.

    Its weights are random, so that it babbles; or, when it `ends`, such that the end token follows upon every token.
    """
    writer = gguf.GGUFWriter(path, "llama")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(i) for i in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    special = list(dict.fromkeys([family.bos or "<none>", family.eos]))
    tokens = [*letters, "Ġt", *special]
    writer.add_file_type(0)  # float32
    writer.add_context_length(8192)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - len(special)) + [3] * len(special))
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(tokens.index(special[0]))
    writer.add_eos_token_id(tokens.index(family.eos))
    writer.add_add_bos_token(family.bos is not None)
    writer.add_chat_template(jinja(family))
    if recipe:
        writer.add_string("react_recipes.recipe", recipe)
    draw = numpy.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 64), "output": (len(tokens), 64), "output_norm": (64,)}
    shapes |= {f"blk.0.attn_{each}": (64, 64) for each in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{each}": (64, 64) for each in ("gate", "up", "down")}
    shapes |= {f"blk.0.{each}_norm": (64,) for each in ("attn", "ffn")}
    weights = {name: draw.standard_normal(shape, dtype=numpy.float32) for name, shape in shapes.items()}
    weights["output"][tokens.index(family.eos)] = 0.0
    if ends:
        weights |= {name: weight * 0.0 for name, weight in weights.items() if name.startswith("blk")}
        weights["token_embd"][:] = weights["output_norm"][:] = weights["output"][tokens.index(family.eos)] = 1.0
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expected(family: Family, messages: list[dict[str, str]], **switches: Any) -> str:
    """transformers' prompt, without the beginning-of-sequence token: llama.cpp's tokenizer adds that one."""
    from tokenizers import Tokenizer, models

    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token=family.eos)
    if family.bos:
        tokenizer.bos_token = family.bos
    tokenizer.chat_template = jinja(family)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **switches)
    return str(prompt).removeprefix(family.bos or "")


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


# What an Ollama does of its own accord; and with Go's templates alone, as all before 0.30 do.
@pytest.fixture(
    scope="module",
    params=[
        (ollama.VERSION, ""),
        (ollama.VERSION, "1"),
        pytest.param((NEWEST, ""), marks=pytest.mark.slow),
        pytest.param((NEWEST, "1"), marks=pytest.mark.slow),
    ],
    ids=lambda each: f"{each[0]}{'-go' if each[1] else ''}",
)
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch
) -> Iterator[ollama.Session]:
    version, go = request.param
    patch.setattr(ollama, "VERSION", version)
    patch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
    patch.setenv("OLLAMA_HOST", f"127.0.0.1:{llamacpp.free_port()}")
    if go:
        patch.setenv("OLLAMA_GO_TEMPLATE", go)
    else:
        patch.delenv("OLLAMA_GO_TEMPLATE", raising=False)
    if ollama.install() is None:
        pytest.skip("neither Ollama nor Go is installed")
    with ollama.session() as here:
        yield here


@pytest.mark.parametrize("think", [None, True, False])
def test_qwen3_has_its_thinking_switch(session: ollama.Session, think: bool | None, tmp_path: Path) -> None:
    family = next(each for each in FAMILIES if each.template == "Qwen-Qwen3-0.6B")
    file = model(tmp_path / "model.gguf", family)
    spec = ollama.Spec("react-family", file, "none", "0", "none", {"num_ctx": 512}, "qwen3")
    ollama.create(session.client, spec, force=True)
    switches = {} if think is None else {"enable_thinking": think}
    messages = [SYSTEM, USER, ASSISTANT, OBSERVATION]
    served = ollama.render(session.client, spec.name, messages, think)
    assert served == expected(family, messages, **switches)
    assert served.endswith("</think>\n\n") == (think is False)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda each: each.template if "{" not in each.template else each.name)
def test_a_family_is_rendered_to_the_letter(session: ollama.Session, family: Family, tmp_path: Path) -> None:
    file = model(tmp_path / "model.gguf", family)
    spec = ollama.Spec("react-family", file, "none", "0", "none", {"num_ctx": 8192}, family.name)
    ollama.create(session.client, spec, force=True)
    wrong = {}
    for what, messages in CONVERSATIONS.items():
        served, right = ollama.render(session.client, spec.name, messages), expected(family, messages)
        if served != right:
            wrong[what] = (served, right)
    assert wrong == {}


@pytest.mark.parametrize("maker", LLAMAS, ids=lambda each: each.template)
def test_our_llama_template_is_the_makers_with_one_date(maker: Family) -> None:
    ours = next(each for each in FAMILIES if each.name == "llama3")
    for messages in CONVERSATIONS.values():
        assert expected(ours, messages) == expected(maker, messages, date_string="26 Jul 2024")


def test_our_mistral_template_is_the_makers_but_for_where_the_system_message_is() -> None:
    ours = next(each for each in FAMILIES if each.name == "mistral")
    for messages in CONVERSATIONS.values():
        if messages[0]["role"] != "system" or len(messages) == 2:
            assert expected(ours, messages) == expected(MISTRAL, messages)
    whole = expected(ours, [*CONVERSATIONS["turns"], ASSISTANT])
    assert whole.startswith(expected(ours, CONVERSATIONS["turns"]))
    assert whole.startswith(f"[INST] {SYSTEM['content']}\n\n{USER['content']}[/INST]")
