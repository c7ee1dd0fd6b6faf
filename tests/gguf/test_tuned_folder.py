"""A tuned model's folder: what llama.cpp's converter and transformers 4 read there is what training had."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.parts import models
from tools import Failed
from tools.gguf import lora, tuned_folder

pytestmark = pytest.mark.heavy

HARD = "<|end|>  I'LL go to 12345\n\n     \n é 你好 🙂"


def parts(kind: str, folder: Path, **changes: Any) -> tuple[Path, Path]:
    """A base and an adapter on it, with the tokenizer as training saves it."""
    base_model = models.make(kind, folder / "base")
    adapter = models.make_adapter(folder / "adapter", base_model)
    tokenizer: Any = AutoTokenizer.from_pretrained(base_model)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(adapter)
    return base_model, adapter


def settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json."""
    found: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_bytes())
    return found


@pytest.mark.parametrize("kind", ["phi4", "phi4-mini"])
def test_the_tokenizers_class_is_the_bases_and_its_tokens_are_trainings(kind: str, tmp_path: Path) -> None:
    base_model, adapter = parts(kind, tmp_path)
    assert settings(adapter)["tokenizer_class"] == tuned_folder.BACKEND != settings(base_model)["tokenizer_class"]
    tuned_folder.assemble(base_model, adapter, tmp_path / "whole")
    assert settings(tmp_path / "whole")["tokenizer_class"] == settings(base_model)["tokenizer_class"]
    trained, whole = (AutoTokenizer.from_pretrained(each) for each in (adapter, tmp_path / "whole"))
    assert trained(HARD)["input_ids"] == whole(HARD)["input_ids"]


@pytest.mark.parametrize(("kind", "begins"), [("mistral", True), ("phi3", False)])
def test_whether_a_text_begins_with_its_token_is_told_to_the_converter(kind: str, begins: bool, tmp_path: Path) -> None:
    base_model, adapter = parts(kind, tmp_path)
    assert "add_bos_token" not in settings(adapter)
    tuned_folder.assemble(base_model, adapter, tmp_path / "whole")
    assert settings(tmp_path / "whole")["add_bos_token"] is begins
    assert (tmp_path / "whole" / tuned_folder.SENTENCE_PIECE).read_bytes() == (
        base_model / tuned_folder.SENTENCE_PIECE
    ).read_bytes()


def test_the_end_token_and_the_template_are_those_of_training(tmp_path: Path) -> None:
    base_model, adapter = parts("qwen2", tmp_path, chat_template="{{ messages }}", eos_token="<|endoftext|>")
    tuned_folder.assemble(base_model, adapter, tmp_path / "whole")
    whole: Any = AutoTokenizer.from_pretrained(tmp_path / "whole")
    assert (whole.chat_template, whole.eos_token) == ("{{ messages }}", "<|endoftext|>")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "whole" / name).read_bytes())["eos_token_id"] == whole.eos_token_id


def test_more_tokens_than_the_embedding_has_rows_are_refused(tmp_path: Path) -> None:
    base_model, adapter = parts("qwen2", tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(adapter)
    rows = next(shape[0] for name, shape in lora.shapes(base_model).items() if "embed_tokens" in name)
    tokenizer.add_tokens([f"<new {number}>" for number in range(rows - len(tokenizer) + 1)])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(Failed, match=f"its tokenizer has {rows + 1} tokens and the base an embedding of {rows}"):
        tuned_folder.assemble(base_model, adapter, tmp_path / "whole")
