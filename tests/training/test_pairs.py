"""Training on preference pairs: the tokens are those that are served, and what would be lost in silence is told."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import yaml

from tests.parts import models
from tools import BadInput
from tools.core import catalog, trajectory
from tools.core.preference import Pair
from tools.data import reader
from tools.gguf import find_base
from tools.recipes import commands, plan, recipe, render, schema
from tools.recipes.recipe import Recipe
from tools.training import pair_checks, pair_tokens, preflight, recipe_checks

NAME = "smollm2-135m-dpo"
CPU, LARGE = catalog.tiers()["cpu"], catalog.tiers()["80gb"]
# A model of each family and the small random one that has its vocabulary and chat template.
FAMILIES = {"qwen0.5b": "qwen2", "qwen3-0.6b": "qwen3", "llama3.2-1b": "llama", "mistral-7b": "mistral"}
FAMILIES |= {"gemma3-1b": "gemma3", "phi4": "phi4"}


def pairs(count: int = 3) -> list[Pair]:
    """Pairs that part at the second answer of shipped episodes."""
    made = []
    for episode in list(trajectory.read(trajectory.TRAIN_DATA))[:count]:
        turns = [{key: turn[key] for key in ("role", "content")} for turn in episode["messages"]]
        place = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"][1]
        other = {"role": "assistant", "content": "Thought: I look around once more.\nAction: look"}
        made.append({"prompt": turns[:place], "chosen": [turns[place]], "rejected": [other]})
    return made


def write(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in rows))
    return path


def of(model: str, tier: str) -> str:
    """The text of a model's recipe for pairs, whether recipes/ has it or not."""
    way, on = catalog.methods()["dpo"], catalog.tiers()[tier]
    found = plan.choose(catalog.models()[model], way, on)
    assert found
    return render.recipe_text(on, found.model, way, found)


@dataclass(frozen=True)
class Made:
    """A family's recipe, a random base of it, pairs, and Axolotl's own reading of the recipe."""

    asked: Recipe
    base: Path
    rows: list[Pair]
    cfg: Any


def made(model: str, kind: str, folder: Path) -> Made:
    """See Made."""
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    base = models.make(kind, folder / "base")
    data = write(folder / "pairs.jsonl", rows := pairs())
    settings = yaml.safe_load(of(model, "80gb")) | {"base_model": str(base)}
    settings["datasets"][0]["path"] = str(data)
    # Plugins and attention are a GPU's; no token hangs on them.
    for key in [key for key in settings if key.startswith("liger")] + [
        "plugins",
        "bf16",
        "tf32",
        "attn_implementation",
    ]:
        settings.pop(key, None)
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(settings | {"dataset_prepared_path": str(folder / "prepared")}, sort_keys=False))
    asked = recipe.read_recipe(path, LARGE)
    cfg = validate_config(DictDefault(dict(asked.settings) | {"tokenizer_config": str(base), "dataset_num_proc": 1}))
    return Made(asked, base, rows, cfg)


@pytest.mark.heavy
@pytest.mark.parametrize(("model", "kind"), FAMILIES.items())
def test_pairs_are_trained_as_they_are_served(model: str, kind: str, tmp_path: Path) -> None:
    """Axolotl's loader and TRL's preparation of it give the tokens of the check, and these those of the template."""
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.data.rl import _load_split
    from trl.trainer import dpo_trainer

    this = made(model, kind, tmp_path)
    pair_tokens.train_as_served()
    tokenizer = load_tokenizer(this.cfg)
    # What the preparation reads of a trainer and its settings.
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    told: Any = SimpleNamespace(dataset_num_proc=None, max_length=2048, truncation_mode="keep_start")
    texts = _load_split(this.cfg, split="train")
    trained = dpo_trainer.DPOTrainer._prepare_dataset(trainer, texts, tokenizer, told, "train")
    ours = pair_tokens.tokenise(this.base, this.asked.dataset, this.rows, this.asked.settings)
    assert sorted((row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trained) == sorted(
        (each.prompt, each.chosen, each.rejected) for each in ours
    )
    for each in ours:
        assert each.prompt.count(tokenizer.bos_token_id) <= 1 and each.chosen[-1] == tokenizer.eos_token_id
    assert list(pair_checks.served("pairs.jsonl", tokenizer, this.rows, ours)) == []


@pytest.mark.heavy
def test_trl_by_itself_would_train_two_begin_tokens(tmp_path: Path) -> None:
    """What `train_as_served` is for: when this fails, that part of it can go."""
    from axolotl.loaders import load_tokenizer
    from trl.data_utils import _tokenize

    this = made("llama3.2-1b", "llama", tmp_path)
    tokenizer = load_tokenizer(this.cfg)
    text = tokenizer.apply_chat_template(this.rows[0]["prompt"], tokenize=False)
    assert _tokenize(tokenizer, text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2


@pytest.mark.heavy
def test_an_end_token_that_the_template_writes_twice_is_told(tmp_path: Path) -> None:
    this = made("phi4-mini", "phi4-mini", tmp_path)
    from axolotl.loaders import load_tokenizer

    ours = pair_tokens.tokenise(this.base, this.asked.dataset, this.rows, this.asked.settings)
    (found,) = pair_checks.served("pairs.jsonl", load_tokenizer(this.cfg), this.rows, ours)
    assert found.level == "error" and "<|end|><|end|>" in found.what and found.where == "pairs.jsonl:1"


def ready(folder: Path, rows: list[Any], changes: dict[str, object] | None = None) -> Recipe:
    """A copy of the committed recipe with data and changes of its own."""
    settings = dict(recipe.open_recipe(NAME, "cpu").settings) | (changes or {})
    settings["datasets"] = [settings["datasets"][0] | {"path": str(write(folder / "pairs.jsonl", rows))}]
    (folder / "my.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return recipe.read_recipe(folder / "my.yaml", CPU)


@pytest.mark.heavy
def test_a_check_counts_pairs_and_shows_the_chosen_answer(tmp_path: Path) -> None:
    rows = pairs(4)
    found = preflight.check(ready(tmp_path, rows), find_base.resolve("smollm2-135m"))
    assert not found.errors and (found.what, found.episodes) == ("pairs", 4) and found.preview
    green = [found.preview.plain[s.start : s.end] for s in found.preview.spans if "green" in str(s.style)]
    assert "".join(green) == f"{rows[0]['chosen'][0]['content']}<|im_end|>"
    assert [each.what for each in found.findings if "updates" in each.what] == [
        "too few updates to learn from: 4 in the whole run, of 4 pairs"
    ]


@pytest.mark.heavy
def test_a_pair_that_is_too_long_and_an_answer_with_white_space_around_it_are_told(tmp_path: Path) -> None:
    rows = pairs(3)
    rows[1]["prompt"][-1]["content"] += " and a cup" * 400
    rows[2]["chosen"][0]["content"] += "\n\n"
    found = preflight.check(ready(tmp_path, rows), find_base.resolve("smollm2-135m"))
    told = {each.where.rpartition(":")[2]: each.what for each in found.findings if "pairs.jsonl" in each.where}
    assert "33% of the pairs are dropped" in told["2"]


def test_each_kind_of_data_is_told_where_the_recipe_wants_the_other(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"pairs.jsonl:1: an episode, and rl: dpo learns from preference pairs"):
        preflight.read(ready(tmp_path, list(trajectory.read(trajectory.TEST_DATA))[:1]))
    data = str(write(tmp_path / "pairs.jsonl", pairs(1)))
    with pytest.raises(BadInput, match="pairs.jsonl:1: a preference pair, and this takes episodes"):
        preflight.read(recipe.open_recipe("smollm2-135m-lora", "cpu", data=data))
    with pytest.raises(BadInput, match=r"my.yaml:\d+: rl: kto: nothing here checks its data"):
        preflight.read(ready(tmp_path, pairs(1), {"rl": "kto"}))


def test_pairs_as_they_are_trained_need_no_conversion(tmp_path: Path) -> None:
    assert reader.is_messages(write(tmp_path / "pairs.jsonl", pairs(2)))
    flat = [{"instruction": "Go.", "input": "", "chosen": "Action: look", "rejected": "Action: wait"}]
    assert not reader.is_messages(write(tmp_path / "alpaca.jsonl", flat))


def test_new_makes_a_recipe_for_pairs_that_recipes_has_not(tmp_path: Path) -> None:
    assert "llama3.2-1b-dpo" not in recipe.names()
    commands.new("llama3.2-1b", "dpo", "24gb", str(tmp_path / "my.yaml"))
    asked = recipe.read_recipe(tmp_path / "my.yaml")
    assert asked.settings["rl"] == "dpo" and asked.base == "outputs/24gb/llama3.2-1b-lora/merged"
    assert schema.validate(asked) == []


def test_a_base_that_is_not_merged_yet_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    asked = recipe.open_recipe(NAME, "cpu")
    with pytest.raises(BadInput, match="not merged yet; make merge RECIPE=smollm2-135m-lora TIER=cpu makes it"):
        find_base.resolve(asked.base)
    assert catalog.model_of(asked.base) == catalog.models()["smollm2-135m"]


def test_axolotl_accepts_each_recipe_for_pairs_and_nothing_is_wrong_with_it() -> None:
    for tier in ("cpu", "16gb-turing", "24gb", "4x24gb"):
        asked = recipe.open_recipe("smollm2-135m-dpo", tier)
        assert schema.validate(asked) == []
        assert list(recipe_checks.findings(asked, catalog.model_of(asked.base))) == []


def test_what_axolotl_does_not_do_beside_pairs_is_told(tmp_path: Path) -> None:
    asked = ready(
        tmp_path, pairs(1), {"lora_mlp_kernel": True, "lora_model_dir": "outputs/cpu/smollm2-135m-lora/adapter"}
    )
    found = list(recipe_checks.learning(asked))
    assert [each.level for each in found] == ["error", "error"]
    (found_in_fp16,) = recipe_checks.learning(ready(tmp_path, pairs(1), {"load_in_8bit": True, "fp16": True}))
    assert "load_in_8bit with rl: dpo and fp16" in found_in_fp16.what
    assert "PeftModelForCausalLM" in found[0].what and "make merge" in found[1].fix


@pytest.mark.slow
def test_a_training_on_pairs_gives_an_adapter_over_the_merged_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates on the CPU, then a GGUF. At first the model is its own reference, so the loss is ln 2."""
    from safetensors import safe_open

    from tools.pipeline import model, trained, training
    from tools.training import events
    from tools.training.run_axolotl import Launch

    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    merged = tmp_path / "outputs" / "cpu" / "smollm2-135m-lora" / "merged"
    shutil.copytree(find_base.resolve("smollm2-135m"), merged)
    data = str(write(tmp_path / "pairs.jsonl", pairs(2)))
    asked = commands.open_asked(NAME, "cpu", "", 0, "", ["learning_rate=1e-3"], 0, data)
    training.train_recipe(asked, Launch())

    log = (asked.run.folder / "train.log").read_text(errors="replace").splitlines()
    losses = [each.loss for each in events.read(log) if each.loss is not None]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3) and losses[1] != losses[0]
    noted = asked.run.provenance()["train"]
    assert noted["steps"] == 2 and noted["tokens"] > 0
    assert not list(asked.run.adapter.glob("model*.safetensors")) and not (asked.run.adapter / "config.json").exists()
    with safe_open(asked.run.adapter / "adapter_model.safetensors", framework="pt") as file:
        up = [name for name in file.keys() if "lora_B" in name]  # noqa: SIM118 - not a dict
        assert len(up) == 20 * 7 and all(file.get_tensor(name).any() for name in up)

    tuned = trained.tuned(NAME, tier="cpu")
    assert tuned.base == merged and tuned.adapter == asked.run.adapter and tuned.longest < 1024
    model.make_gguf(tuned, "F16")
    assert asked.run.gguf("F16").exists() and asked.run.gguf("F16", "base").exists()
