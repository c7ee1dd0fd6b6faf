"""A small model with random weights, the real SmolLM2 tokenizer and a recipe for it: a training takes seconds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parts.trainings import Trainings
from tools.core import run_folder
from tools.gguf import find_base
from tools.recipes import recipe


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Qwen2-shaped model of two layers."""
    import torch
    import transformers

    source = find_base.resolve("smollm2-135m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    folder = tmp_path_factory.mktemp("tiny-qwen2")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256,
        vocab_size=len(tokenizer), max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    """Trainings in processes that import Axolotl once for all of a file's tests."""
    with Trainings() as running:
        yield running


def tiny_recipe(folder: Path, tiny: Path, **changes: Any) -> Path:
    """A recipe that trains every weight of the small model for 10 updates of 2 episodes, in float32."""
    settings = recipe.open_recipe("smollm2-135m-lora", "cpu").settings
    settings = {key: value for key, value in settings.items() if "lora" not in key and not key.startswith("peft")}
    lines = (run_folder.ROOT / "data" / "train.jsonl").read_bytes().splitlines(keepends=True)[:40]
    (folder / "data.jsonl").write_bytes(b"".join(lines))
    settings["datasets"][0]["path"] = str(folder / "data.jsonl")
    settings |= {"base_model": str(tiny), "adapter": None, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    settings |= {"max_steps": 10, "save_steps": 5, "save_total_limit": 3} | changes
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    return path
