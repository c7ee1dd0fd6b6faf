"""A recipe for LLaMA-Factory: its own parsers take it, its loader trains the same tokens, its adapter is converted."""

import itertools
from pathlib import Path

import orjson
import pytest
import yaml

from tests.parts import command, conversations, models
from tests.parts import llamafactory_programs as its_own
from tools import BadInput
from tools.core import catalog, trajectory
from tools.gguf import find_base
from tools.recipes import recipe
from tools.recipes.recipe import Recipe
from tools.training import llamafactory
from tools.training.tokens import tokenise

# A tokenizer of each family that LLaMA-Factory has a template for, and a recipe of that family.
FAMILIES = {
    "qwen2": "24gb/qwen7b-qlora",
    "qwen3": "24gb/qwen3-8b-qlora",
    "llama": "24gb/llama3.1-8b-qlora",
    "mistral": "24gb/mistral-7b-qlora",
    "gemma3": "24gb/gemma3-4b-lora",
    "phi4": "24gb/phi4-qlora",
}


def every_recipe() -> list[Recipe]:
    """Every recipe that LLaMA-Factory can train."""
    found = (recipe.read_recipe(recipe.find(name, tier)) for tier in catalog.tiers() for name in recipe.names(tier))
    cannot = ("fsdp_version", "rl")
    return [each for each in found if not any(map(each.settings.get, cannot)) and not each.name.startswith("phi4-mini")]


def test_a_recipe_is_said_in_its_words() -> None:
    found = llamafactory.arguments(recipe.open_recipe("24gb/qwen7b-qlora"))
    wanted = {
        "model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "template": "qwen", "finetuning_type": "lora",
        "lora_target": "all", "lora_rank": 16, "quantization_bit": 4, "cutoff_len": 2048, "learning_rate": 2e-4,
        "packing": True, "neat_packing": True, "flash_attn": "fa2", "enable_liger_kernel": True, "val_size": 0.1,
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted
    # Two an epoch, for three epochs: a sixth of all updates.
    assert found["save_steps"] == found["eval_steps"] == pytest.approx(1 / 6, abs=1e-5)
    layers = llamafactory.arguments(recipe.open_recipe("cpu/smollm2-135m-lora"))["lora_target"].split(",")
    assert len(layers) == 20 * 7 and layers[0] == "layers.10.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("2x24gb/qwen14b-qlora", {}, "fsdp_version: LLaMA-Factory"),
        ("24gb/qwen3b-dpo", {}, "rl: LLaMA-Factory gets episodes from here"),
        ("24gb/qwen7b-qlora", {"context_parallel_size": 2}, "context_parallel_size: LLaMA-Factory has nothing for it"),
        ("24gb/phi4-mini-qlora", {}, "base_model: LLaMA-Factory has templates here for models of these families"),
        ("24gb/qwen7b-qlora", {"lr_scheduler": "rex"}, "lr_scheduler: LLaMA-Factory does not know rex"),
        ("24gb/qwen7b-qlora", {"lora_target_modules": ".*_proj"}, "lora_target_modules: LLaMA-Factory takes names"),
    ],
)
def test_what_it_cannot_do_is_refused_in_a_line(name: str, changes: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=r"\.yaml:\d+: ") as error:
        llamafactory.arguments(recipe.read_recipe(recipe.find(name), changes=changes))
    assert says in str(error.value) and "make train" in str(error.value)


@pytest.mark.slow
def test_its_parsers_know_every_key_of_every_recipe(tmp_path: Path) -> None:
    distinct: dict[str, list[object]] = {}
    for each in every_recipe():
        train = llamafactory.arguments(each)
        for kind, given in (
            ("train", train),
            ("train", llamafactory.predicting(train)),
            ("export", llamafactory.exporting(train)),
        ):
            named = {key: value for key, value in given.items() if key != "model_name_or_path"}
            distinct[orjson.dumps([kind, named], option=orjson.OPT_SORT_KEYS).decode()] = [kind, given]
    assert len(distinct) > 100
    assert orjson.loads(its_own.script("llamafactory_parse.py", tmp_path, given=json(list(distinct.values())))) == []


@pytest.mark.slow
def test_it_trains_on_the_tokens_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens, and the same labels but for one: its templates train the line feed after the end token too.

    Its formats have nothing for a turn that is not trained, so all of them are here.
    """
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    episodes = list(trajectory.read(conversations.sixty(tmp_path)))
    for turn in itertools.chain.from_iterable(each["messages"] for each in episodes):
        turn.pop("train", None)
    data = tmp_path / "episodes.jsonl"
    data.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in episodes))
    asked, wanted, tokenizers = [], [], {}
    for kind, name in FAMILIES.items():
        base = tmp_path / kind
        tokenizers[kind] = models.make_tokenizer(kind, base)
        (base / "config.json").write_text(json({"model_type": models.KINDS[kind].model_type}))
        entry = {"datasets": [{**recipe.read_recipe(recipe.find(name)).dataset, "path": str(data)}]}
        own = recipe.read_recipe(recipe.find(name), base=str(base), changes=entry)
        folder, _ = llamafactory.write(own)
        changed = {"packing": False, "neat_packing": False, "val_size": 0, "eval_strategy": "no", "cutoff_len": 8192}
        changed |= {"load_best_model_at_end": False, "bf16": False, "tf32": None, "use_cpu": True, "report_to": "none"}
        changed |= {"enable_liger_kernel": False, "deepspeed": None}
        changed |= {"quantization_bit": None, "output_dir": str(tmp_path / "out"), "dataset_dir": str(folder)}
        asked.append(yaml.safe_load((folder / "train.yaml").read_text()) | changed)
        wanted.append(tokenise(base, own.dataset, episodes, 8192, own.settings))
    found = orjson.loads(its_own.script("llamafactory_rows.py", tmp_path, given=json(asked)))
    for kind, theirs, ours in zip(FAMILIES, found, wanted, strict=True):
        for number, ((ids, labels), (our_ids, our_labels)) in enumerate(zip(theirs, ours, strict=True)):
            if kind == "phi4":  # The test's tokenizer of this family reads words in other parts in its transformers.
                assert tokenizers[kind].decode(ids) == tokenizers[kind].decode(our_ids)
                continue
            assert ids == list(our_ids), f"{kind}, conversation {number}"
            more = [place for place, (one, two) in enumerate(zip(labels, our_labels, strict=True)) if one != two]
            assert all(our_labels[place] == -100 and our_labels[place - 1] != -100 for place in more), kind


@pytest.mark.slow
def test_its_adapter_becomes_a_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates of SmolLM2 by its own command line, then merged and converted by ours."""
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    base = find_base.resolve("smollm2-135m")
    pairs = ["max_steps=2", "sequence_len=1024", "use_tensorboard=false"]
    asked = recipe.open_recipe("cpu/smollm2-135m-lora", base=str(base), pairs=pairs)
    folder, (train, _, export) = llamafactory.write(asked)
    for each in (train, export):
        its_own.run(each.split(), folder)
    assert (folder / "merged" / "model.safetensors").exists()
    done = command.run(("gguf", "--adapter", str(folder / "saves"), "--base", str(base), "--quant", "Q8_0"), {})
    assert done.returncode == 0, done.stderr[-2000:]


def json(value: object) -> str:
    """A value as JSON."""
    return orjson.dumps(value).decode()
