"""Recipes with a chat template of their own: Axolotl's tokens are llama-server's and Ollama's, at every turn."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.parts import models
from tests.serving.test_ollama_templates import ASSISTANT, OBSERVATION, SYSTEM, USER
from tools.core import catalog
from tools.gguf import convert, llamacpp
from tools.recipes import recipe, schema
from tools.serving import ollama
from tools.training import data_checks, tokens

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("quick_conversions")]

TALKS = [
    [SYSTEM, USER, ASSISTANT],
    [SYSTEM, *[USER, ASSISTANT, OBSERVATION, ASSISTANT] * 2],
    [USER, ASSISTANT, OBSERVATION, ASSISTANT],
]


@dataclass(frozen=True)
class Tuned:
    """A small random model tuned with a recipe: its base, its episodes' tokens and labels in training, its GGUF."""

    base: Path
    family: str
    trained: list[tuple[list[int], list[int]]]
    file: Path


@pytest.fixture(
    scope="module",
    params=[
        ("mistral-7b-qlora", "mistral", "mistral_v2v3"),
        ("qwen3-4b-qlora", "qwen3", "Qwen-Qwen3-0.6B"),
        ("llama3.2-1b-qlora", "llama", "meta-llama-Llama-3.2-3B-Instruct"),
        pytest.param(("llama3.1-8b-qlora", "llama", "meta-llama-Llama-3.1-8B-Instruct"), marks=pytest.mark.slow),
    ],
    ids=lambda each: each[0],
)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """Its base has the maker's own template; beside the adapter is what Axolotl saves there."""
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.dict import DictDefault

    name, kind, template = request.param
    folder = tmp_path_factory.mktemp(name)
    path = recipe.find(name, "24gb")
    model = catalog.model_of(recipe.read_recipe(path).settings["base_model"])
    assert model
    base = models.make(kind, folder / "base")
    (base / "chat_template.jinja").write_text(models.template(template))
    settings = dict(recipe.read_recipe(path, changes={"base_model": str(base)}).settings)
    episodes = [{"messages": talk} for talk in TALKS]
    trained = tokens.tokenise(base, recipe.read_recipe(path).dataset, episodes, 2048, settings)
    adapter = models.make_adapter(folder / "adapter", base)
    load_tokenizer(DictDefault(settings | {"tokenizer_config": str(base)})).save_pretrained(adapter)
    convert.build_gguf(base, adapter, folder / "model.gguf", "F16", {}, folder / "model.gguf")
    return Tuned(base, model.family, trained, folder / "model.gguf")


@pytest.fixture(scope="module")
def url(tuned: Tuned) -> Iterator[str]:
    with llamacpp.server(tuned.file, 2048) as url:
        yield url


def prompts(tuned: Tuned) -> Iterator[tuple[list[dict[str, str]], list[int]]]:
    """The messages before each answer, and the tokens before it in training."""
    for talk, (ids, labels) in zip(TALKS, tuned.trained, strict=True):
        starts = [i for i, label in enumerate(labels) if label != -100 and labels[i - 1] == -100]
        answers = [place for place, turn in enumerate(talk) if turn["role"] == "assistant"]
        yield from ((talk[:turn], ids[:start]) for turn, start in zip(answers, starts, strict=True))


def test_llama_server_sees_the_tokens_of_training(tuned: Tuned, url: str) -> None:
    for messages, ids in prompts(tuned):
        assert llamacpp.tokenize(url, llamacpp.apply_template(url, messages)) == ids


def test_ollama_says_what_llama_server_says(tuned: Tuned, url: str, session: ollama.Session) -> None:
    spec = ollama.Spec("react-own-template", tuned.file, "none", "0", "none", {"num_ctx": 2048}, tuned.family)
    ollama.create(session.client, spec, force=True)
    for messages, ids in prompts(tuned):
        said = ollama.render(session.client, spec.name, messages)
        assert said == llamacpp.apply_template(url, messages)
        assert llamacpp.tokenize(url, said) == ids


def test_the_answers_and_their_end_tokens_are_trained(tuned: Tuned) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tuned.base)
    episodes = [{"messages": talk} for talk in TALKS]
    assert list(data_checks.mask("data", tokenizer, episodes, tuned.trained)) == []
    text = tokenizer.decode(tuned.trained[1][0])
    assert text.count(SYSTEM["content"]) == 1 and text.index(SYSTEM["content"]) < text.index(USER["content"])


def test_axolotl_takes_a_recipe_with_a_template_of_its_own(tuned: Tuned) -> None:
    for path in recipe.RECIPES.glob("24gb/*.yaml"):
        found = catalog.model_of(recipe.read_recipe(path).settings["base_model"])
        if found and found.family == tuned.family:
            assert schema.validate(recipe.read_recipe(path)) == []
            assert recipe.read_recipe(path).settings["chat_template_jinja"].startswith("{#- ")


def test_the_end_of_a_turn_is_trained_where_the_tokenizer_names_another(tmp_path: Path) -> None:
    """Gemma's own tokenizer ends a text with <eos>, and its turns with <end_of_turn>."""
    from transformers import AutoTokenizer

    base, path = models.make("gemma3", tmp_path / "base"), recipe.find("gemma3-1b-qlora", "24gb")
    settings = orjson.loads((base / "tokenizer_config.json").read_bytes()) | {"eos_token": "<eos>"}
    (base / "tokenizer_config.json").write_bytes(orjson.dumps(settings))
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    assert tokenizer.eos_token == "<eos>"
    changed = recipe.read_recipe(path, changes={"base_model": str(base)}).settings
    ((ids, labels),) = tokens.tokenise(base, recipe.read_recipe(path).dataset, [{"messages": TALKS[0]}], 2048, changed)
    trained = [token for token, label in zip(ids, labels, strict=True) if label != -100]
    assert tokenizer.convert_ids_to_tokens(trained[-1]) == "<end_of_turn>"
