"""Parity of each family: small models with the true vocabularies and chat templates, and what no server can match."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parts import models
from tools.core import run_folder, trajectory
from tools.gguf import convert, llamacpp
from tools.parity import compare, vocabulary
from tools.training import tokens

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_conversions")]

# A small random model of a family, made once for all tests.
Bases = Callable[[str], Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return cache(lambda family: models.make(family, tmp_path_factory.mktemp(family)))


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("qwen2", None),
        ("llama", None),
        ("gemma2", None),
        ("gemma3", None),
        ("qwen3", "thinking"),
        ("mistral", "rewritten"),
        ("phi4", "stripped"),
        ("phi4-mini", "stripped"),
    ],
)
def test_each_family_with_its_own_template(bases: Bases, family: str, kind: str | None, tmp_path: Path) -> None:
    """Qwen3's and Mistral's own templates write earlier turns otherwise once later ones follow: no server can match.

    Nor can one where the tokenizer of training strips white space (Phi's).
    """
    base_model = bases(family)
    found = against_llama_server(base_model, base_model, tmp_path / "f16.gguf")
    first = found["first_difference"]
    assert (first and first["kind"]) == kind, compare.words(first) if first else kind
    assert found["refused"] == 0 or family == "gemma2"


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("qwen2", "qwen7b-lora", None),
        ("qwen3", "qwen3-8b-lora", None),
        ("llama", "llama3.1-8b-lora", None),
        # Of a tokenizer.model alone, transformers 5 makes merges of its own for runs of spaces; the hub has a
        # tokenizer.json beside it, which is not at hand here.
        ("mistral", "mistral-7b-lora", "vocabulary"),
        ("gemma3", "gemma3-4b-lora", None),
        ("phi4", "phi4-lora", None),
        ("phi4-mini", "phi4-mini-lora", None),
    ],
)
def test_each_family_with_its_recipe(bases: Bases, family: str, name: str, kind: str | None, tmp_path: Path) -> None:
    """The tokenizer is loaded as the recipe says and lies beside the adapter, as Axolotl does both."""
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.dict import DictDefault

    recipe = yaml.safe_load((run_folder.ROOT / "recipes" / "48gb" / f"{name}.yaml").read_bytes())
    base_model = bases(family)
    adapter = models.make_adapter(tmp_path / "adapter", base_model)
    asked = {key: recipe[key] for key in tokens.TOKEN_KEYS if key in recipe}
    where = {"base_model": str(base_model), "tokenizer_config": str(base_model)}
    load_tokenizer(DictDefault(asked | where)).save_pretrained(adapter)
    found = against_llama_server(base_model, adapter, tmp_path / "f16.gguf", asked)
    first = found["first_difference"]
    assert (first and first["kind"]) == kind, compare.words(first) if first else kind
    assert found["refused"] == 0


def against_llama_server(
    base_model: Path, adapter: Path, gguf_file: Path, recipe: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What parity says of the hard conversations, tokenized by what lies in `adapter` and by a GGUF of the two.

    The tables of the two tokenizers are the same.
    """
    from transformers import AutoTokenizer

    other = None if adapter == base_model else adapter
    convert.to_gguf(base_model, gguf_file, adapter=other)
    tables = vocabulary.compare_tokenizers(base_model, other, gguf_file, gguf_file.with_suffix(".log"))
    assert tables["differences"] == [] and tables["tokens"] > 30000
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    talks = compare.conversations(trajectory.read(run_folder.ROOT / "data" / "test.jsonl"), tokenizer, 1)
    with llamacpp.server(gguf_file, 512) as url:
        return {
            **compare.compare_with_training(
                talks, base_model, [compare.llama_server_side(url)], tokenizer=tokenizer, recipe=recipe
            )
        }


def test_letters_that_the_tokenizer_of_training_joins(bases: Bases, tmp_path: Path) -> None:
    """Qwen's writes e and an accent as one letter, NFC, before it splits a text; llama.cpp does not."""
    from transformers import AutoTokenizer

    base_model = bases("qwen2")
    convert.to_gguf(base_model, tmp_path / "f16.gguf")
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    talk = [
        {"role": "user", "content": "Where is the cafe\u0301?"},
        {"role": "assistant", "content": "Action: go to desk 1"},
    ]
    with llamacpp.server(tmp_path / "f16.gguf", 512) as url:
        found = compare.compare_with_training([talk], base_model, [compare.llama_server_side(url)], tokenizer=tokenizer)
    assert found["first_difference"] and found["first_difference"]["kind"] == "normalised", found
