"""A proof of parity from end to end: a recipe's model on all sides, its answers too."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parts import models
from tools import Failed
from tools.core import files
from tools.core.trajectory import test_set
from tools.gguf import llamacpp
from tools.parity import prove
from tools.pipeline.model import make_gguf
from tools.pipeline.serving import check_parity
from tools.pipeline.trained import tuned
from tools.recipes import recipe
from tools.serving import ollama


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of a small random model that was run: an adapter with training's tokenizer, the recipe, its hashes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{llamacpp.free_port()}")  # no Ollama of the user's
    base = models.make("qwen2", tmp_path / "base")
    settings = dict(recipe.open_recipe("smollm2-135m-lora").settings) | {"base_model": str(base)}
    path = tmp_path / "tiny-lora.yaml"
    path.write_text(yaml.safe_dump(settings))
    this = recipe.read_recipe(path).run
    wanted = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, wanted).save_pretrained(str(this.adapter))
    AutoTokenizer.from_pretrained(base).save_pretrained(this.adapter)
    files.write(this.recipe, path.read_bytes())
    hashes = {"recipe": "a", "data": "b", "base": "c"}
    files.write_json(this.folder / "run.json", {"train": {"inputs": hashes}})
    make_gguf(tuned(str(path)), "F16")
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("quick_conversions")
def test_a_recipes_model_is_proven_on_all_sides(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    check_parity(tuned(str(path)), "F16", "react-tiny", answers=True, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(recipe.read_recipe(path).run.parity.read_bytes())
    assert found["equal"] is True and found["greedy"]["equal"] is True
    assert found["sides"] == ["transformers", "llama-server", *(["Ollama"] if ollama.find() else [])]
    assert found["tokenizer"]["equal"] is True and found["tokenizer"]["tokens"] > 151000
    answers = found["greedy"]
    assert (answers["prompts"], answers["steps"]) == (20, 64)
    assert answers["same"] + answers["ties"] == 20 and answers["largest_gap"] < answers["tolerance"]

    # The base's GGUF in place of the tuned model's: the same tokens, other answers.
    this = recipe.read_recipe(path).run
    other = prove.answers(tmp_path / "base", this.adapter, this.gguf("F16", "base"), test_set())
    with pytest.raises(Failed, match="the same prompts, other answers: .* not a near tie"):
        prove.print_result(found | {"greedy": other}, as_json=False)
