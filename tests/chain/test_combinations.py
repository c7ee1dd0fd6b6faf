"""Each way in which a recipe trains (adapter, bits, sharding, recomputing) makes its updates, here on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
import yaml

from tests.parts.trainings import Trainings
from tools.core import catalog, run_folder
from tools.core.catalog import Tier
from tools.recipes import plan, recipe
from tools.training import game_checks, run_axolotl
from tools.training.run_axolotl import Launch

# A recipe for each way. That of the tier cpu is trained whole in test_whole_chain.py.
STARTED = (
    "12gb/qwen0.5b-full",
    "12gb/qwen1.5b-full",
    "2x8x80gb/qwen0.5b-full",
    "2x24gb/qwen0.5b-full",
    "2x8x80gb/qwen7b-full",
    "2x8x80gb/qwen32b-full",
    "2x24gb/qwen3b-full",
    "2x8x80gb/qwen72b-full",
    "24gb/qwen0.5b-lora",
    "12gb/qwen3b-lora",
    "24gb/qwen14b-lora",
    "2x24gb/qwen0.5b-lora",
    "2x8x80gb/qwen32b-lora",
    "2x24gb/qwen1.5b-lora",
    "2x24gb/qwen14b-lora",
    "12gb/qwen0.5b-qlora",
    "12gb/qwen7b-qlora",
    "2x24gb/qwen0.5b-qlora",
    "2x24gb/qwen3-8b-qlora",
    "2x24gb/qwen14b-qlora",
    "12gb/qwen0.5b-dpo",
    "12gb/qwen3b-dpo",
    "12gb/smollm2-360m-dpo",
    "2x24gb/qwen0.5b-dpo",
    "2x24gb/qwen1.5b-dpo",
    "2x24gb/qwen7b-dpo",
    "12gb/qwen0.5b-grpo",
    "8gb/qwen0.5b-grpo",
    "8gb/qwen3b-grpo",
)
# What needs a GPU, or the real model: kernels, Liger, FlashAttention, its end token and template, its layers' names.
CHANGES: dict[str, Any] = {
    "tf32": False,
    "attn_implementation": "sdpa",
    "special_tokens": {"eos_token": "<|im_end|>"},
    "chat_template": "tokenizer_default",
    "val_set_size": 0,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "max_steps": 2,
    "save_steps": 2,
    **dict.fromkeys(catalog.training().lora_kernels, False),
}
WITHOUT = ("plugins", "liger", "eval", "load_best", "saves_per_epoch", "chat_template_jinja", "lora_target_modules")


class Way(NamedTuple):
    """What of a recipe decides whether the parts that train it work together; `reentrant`: None, Axolotl chooses."""

    adapter: str
    bits: int
    sharding: str
    offload: str
    recomputed: bool
    reentrant: bool | None
    pairs: bool
    games: bool


def way(settings: Mapping[str, Any], tier: Tier) -> Way:
    """The way of a recipe for a tier."""
    s = plan.from_recipe(settings, tier)
    how = settings.get("gradient_checkpointing_kwargs") or {}
    adapter = str(settings.get("adapter") or "full")
    return Way(
        adapter, s.bits, s.sharding, s.offload, s.checkpointing, how.get("use_reentrant"), s.pairs, bool(s.group)
    )


def test_every_way_of_every_recipe_is_started_here() -> None:
    ways: dict[Way, str] = {}
    for path in sorted(recipe.RECIPES.glob("*/*.yaml")):
        if (tier := catalog.tiers().get(path.parent.name)) and tier.gpu:
            ways[way(yaml.load(path.read_text(), yaml.CSafeLoader), tier)] = str(path)
    started = [way(asked.settings, asked.tier) for asked in map(recipe.open_recipe, STARTED)]
    assert len(set(started)) == len(started)
    assert set(started) == set(ways), {each: path for each, path in ways.items() if each not in started}


def as_pair(episode: bytes) -> bytes:
    """An episode's first answer beside another one, as a line of pairs."""
    system, task, answer = orjson.loads(episode)["messages"][:3]
    other = {"role": "assistant", "content": "Action: look"}
    return orjson.dumps({"prompt": [system, task], "chosen": [answer], "rejected": [other]}) + b"\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTED)
def test_two_updates_and_a_checkpoint(
    tmp_path: Path, tiny: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    original = recipe.open_recipe(name)
    asked = way(original.settings, original.tier)
    settings = {key: value for key, value in original.settings.items() if not key.startswith(WITHOUT)} | CHANGES
    episodes = (run_folder.ROOT / "data" / "train.jsonl").read_bytes().splitlines(keepends=True)[:8]
    lines = map(as_pair, episodes) if asked.pairs else episodes
    (tmp_path / "data.jsonl").write_bytes(b"".join(lines))
    settings["datasets"][0]["path"] = str(tmp_path / "data.jsonl")
    settings["lora_target_linear"] = True
    if asked.games:
        settings |= {"plugins": [game_checks.READER], "trl": settings["trl"] | {"num_generations": 2}}
    if asked.adapter == "full":
        settings = {key: value for key, value in settings.items() if not key.startswith("lora")}
    if "fsdp_config" in settings:
        settings["fsdp_config"]["transformer_layer_cls_to_wrap"] = "Qwen2DecoderLayer"
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    processes = 1 if asked.sharding == "none" else 2
    here = recipe.read_recipe(path, catalog.tiers()["cpu"], changes={"bf16": True})
    composed = run_axolotl.compose(here, str(tiny), Launch(processes))
    (tmp_path / "composed.yaml").write_text(yaml.safe_dump(composed))
    written = trainings.train(tmp_path / "composed.yaml", processes, tmp_path / "train.log")
    ways = {"none": "1 process on the CPU", "ddp": "DDP", "fsdp2": "FSDP2"}
    shown = ways.get(asked.sharding) or f"DeepSpeed ZeRO-{asked.sharding[-1]}"
    assert shown in written
    checkpoint = here.run.checkpoints / "checkpoint-2"
    history = orjson.loads((checkpoint / "trainer_state.json").read_bytes())["log_history"]
    # A model of random weights finds all tokens of its vocabulary alike, and wins no game; DPO begins as the reference,
    # at log 2.
    wanted, within = (0.693, 0.01) if asked.pairs else (0.0, 0.0) if asked.games else (10.8, 0.3)
    assert [entry["loss"] for entry in history if "loss" in entry] == pytest.approx([wanted] * 2, abs=within)
    if asked.games:
        assert [entry["reward"] for entry in history if "loss" in entry] == [0.0, 0.0]
