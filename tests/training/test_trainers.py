"""A recipe for TRL and for Unsloth: TRL's own parser takes it, and both train the tokens and labels of the recipe."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest

from tests.parts import conversations, models
from tests.parts.command import tools
from tools import BadInput
from tools.core import catalog, trajectory
from tools.recipes import recipe
from tools.recipes.recipe import Recipe
from tools.training import trl, unsloth
from tools.training.tokens import tokenise

# A tokenizer of each family, and a recipe of that family.
FAMILIES = {
    "qwen2": "24gb/qwen7b-qlora",
    "qwen3": "24gb/qwen3-8b-qlora",
    "llama": "24gb/llama3.1-8b-qlora",
    "mistral": "24gb/mistral-7b-qlora",
    "gemma3": "24gb/gemma3-1b-lora",
    "phi4": "24gb/phi4-qlora",
    "phi4-mini": "24gb/phi4-mini-qlora",
}
# What a CPU is without.
HERE = {"bf16": False, "fp16": False, "use_cpu": True, "tf32": None, "deepspeed": None}


@pytest.mark.parametrize(
    ("trainer", "name", "changes", "says"),
    [
        (trl, "2x24gb/qwen14b-qlora", {}, "fsdp_version: TRL has nothing for it"),
        (trl, "24gb/gemma3-4b-lora", {}, "base_model: TRL does not leave a model's part for images as it is"),
        (trl, "16gb-turing/qwen7b-qlora", {}, "sample_packing: TRL packs with FlashAttention alone"),
        (trl, "24gb/qwen7b-qlora", {"lr_scheduler": "rex"}, "lr_scheduler: TRL does not know rex"),
        (trl, "24gb/qwen7b-qlora", {"loraplus_lr_ratio": 16}, "loraplus_lr_ratio: TRL has nothing for it"),
        (unsloth, "2x24gb/qwen14b-qlora", {}, "fsdp_config: Unsloth trains on one GPU here"),
        (unsloth, "24gb/qwen7b-qlora", {"adapter": "lora", "load_in_8bit": True}, "load_in_8bit: Unsloth has the base"),
        (unsloth, "cpu/smollm2-135m-lora", {}, "base_model: Unsloth trains on a GPU"),
        (unsloth, "24gb/qwen7b-qlora", {"loraplus_lr_ratio": 16}, "loraplus_lr_ratio: Unsloth has nothing for it"),
    ],
)
def test_what_a_trainer_cannot_do_is_refused_in_a_line(
    trainer: ModuleType, name: str, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(BadInput, match=r"\.yaml:\d+: ") as error:
        trainer.arguments(recipe.read_recipe(recipe.find(name), changes=changes))
    assert says in str(error.value) and "make train" in str(error.value)


def test_a_recipe_is_said_in_the_words_of_trl() -> None:
    found = trl.arguments(recipe.open_recipe("24gb/qwen7b-qlora"))
    wanted = {
        "model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "max_length": 2048, "learning_rate": 2e-4, "lora_r": 16,
        "lora_target_modules": ["all-linear"], "load_in_4bit": True, "use_bnb_nested_quant": True, "packing": True,
        "dtype": "bfloat16", "warmup_steps": 0.1, "per_device_eval_batch_size": 1, "dataset_test_split": "validation",
        "eos_token": "<|im_end|>", "use_liger_kernel": True, "gradient_checkpointing": False,
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted
    layers = trl.arguments(recipe.open_recipe("cpu/smollm2-135m-lora"))["lora_target_modules"]
    assert len(layers) == 20 * 7 and layers[0] == "layers.10.self_attn.q_proj"


def test_an_unsloth_script_is_written_for_every_recipe_that_it_can_train() -> None:
    written = 0
    for each in every_recipe():
        try:
            values = unsloth.arguments(each)
        except BadInput:
            continue
        compile(unsloth.script(each, values, "pip install unsloth"), each.name, "exec")
        written += 1
    assert written > 500


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("trainer", "name", "written"),
    [
        ("llamafactory", "24gb/qwen7b-qlora", "react_training.json"),
        ("trl", "cpu/smollm2-135m-lora", "data/train.jsonl"),
        ("unsloth", "24gb/qwen7b-qlora", "train.jsonl"),
    ],
)
def test_an_export_holds_a_persons_own_data_in_any_format_and_none_of_ours(
    trainer: str, name: str, written: str, tmp_path: Path
) -> None:
    turns = [{"from": "human", "value": "Find the key."}, {"from": "gpt", "value": "Action: open drawer"}]
    (tmp_path / "my.json").write_bytes(orjson.dumps([{"conversations": turns}] * 3))
    asked = ("export", name, "--to", trainer, "--data", str(tmp_path / "my.json"))
    done = tools(*asked, REACT_RECIPES_OUTPUTS=str(tmp_path / "outputs"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / name / "export" / trainer
    text = (folder / written).read_text()
    rows = orjson.loads(text) if written.endswith(".json") else [orjson.loads(line) for line in text.splitlines()]
    assert len(rows) == 3 and (trainer == "trl" or "open drawer" in text)
    # What answers the held-out episodes of the shipped data is not here, and no command of it is printed.
    assert "predict" not in done.stdout and not list(folder.glob("*testing*")) + list(folder.glob("predict*"))


@pytest.mark.heavy
def test_trl_knows_every_key_of_every_recipe(tmp_path: Path) -> None:
    from trl.scripts import sft

    distinct: dict[bytes, dict[str, Any]] = {}
    for each in every_recipe():
        try:
            given = trl.arguments(each)
        except BadInput:
            continue
        named = {key: value for key, value in given.items() if key != "model_name_or_path"}
        distinct[orjson.dumps(named, option=orjson.OPT_SORT_KEYS)] = given
    assert len(distinct) > 100
    file = tmp_path / "train.yaml"
    for given in distinct.values():
        file.write_bytes(orjson.dumps(given | HERE))  # JSON is YAML
        _, training, model, _ = sft.make_parser().parse_args_and_config(["--config", str(file)])
        read = {**vars(training), **vars(model)}
        assert read["max_length"] == given["max_length"] and read["lora_r"] == given.get("lora_r", 16)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_all_train_on_the_same_tokens_and_labels(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Axolotl, TRL's own loader, trainer and collator, and the functions of the Unsloth script."""
    data = conversations.sixty(tmp_path)
    base = models.make(kind, tmp_path / "base")
    episodes = list(trajectory.read(data))
    asked = on_cpu(FAMILIES[kind], base, data)
    ours = tokenise(base, asked.dataset, episodes, 8192, asked.settings)
    wanted = sorted((list(ids), list(labels)) for ids, labels in ours)
    assert any(len(ids) > 2048 for ids, _ in wanted)

    folder, _ = trl.write(asked, tmp_path / "trl", HERE)
    assert first_difference(wanted, sorted(rows_of_trl(folder, monkeypatch))) is None

    folder, _ = unsloth.write(asked, tmp_path / "unsloth")
    script = loaded(folder / "train.py")
    train, _ = script.make_parts(script.load_tokenizer())
    assert first_difference(wanted, sorted(zip(train["input_ids"], train["labels"], strict=True))) is None


@pytest.mark.slow
def test_they_keep_the_episodes_for_validation_that_axolotl_keeps(tmp_path: Path) -> None:
    """The same rows in the same order: shuffled by the recipe's seed, what is too long left out, then parted."""
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.config import normalize_config, validate_config
    from axolotl.utils.data import prepare_datasets
    from axolotl.utils.dict import DictDefault

    data = conversations.sixty(tmp_path)
    base = models.make("qwen2", tmp_path / "base")
    asked = on_cpu(FAMILIES["qwen2"], base, data, sequence_len=1024, val_set_size=0.2)
    whole = {**asked.settings, "base_model": str(base), "dataset_prepared_path": str(tmp_path / "prepared")}
    whole |= {"output_dir": str(tmp_path / "out"), "datasets": [asked.dataset]}
    cfg = validate_config(DictDefault(whole))
    normalize_config(cfg)
    train, validation, *_ = prepare_datasets(cfg, load_tokenizer(cfg))
    wanted = [list(each["input_ids"]) for each in (train, validation)]
    parts = trl.rows(asked, base)
    assert [[list(ids) for ids, _ in parts[name]] for name in ("train", "validation")] == wanted
    assert sum(map(len, wanted)) == 50  # the long ones are left out
    script = loaded(unsloth.write(asked, tmp_path / "unsloth")[0] / "train.py")
    made = script.make_parts(script.load_tokenizer())
    assert [list(each["input_ids"]) for each in made] == wanted


def every_recipe() -> list[Recipe]:
    """Every recipe that there is."""
    return [recipe.read_recipe(recipe.find(name, tier)) for tier in catalog.tiers() for name in recipe.names(tier)]


def on_cpu(name: str, base: Path, data: Path, **changes: object) -> Recipe:
    """A recipe on a base and data of the test's own, without what needs a GPU."""
    own = recipe.read_recipe(recipe.find(name))
    plain: dict[str, object] = {"adapter": "lora", "load_in_4bit": None, "load_in_8bit": None, "sequence_len": 8192}
    plain |= {"sample_packing": False, "eval_sample_packing": None, "attn_implementation": "sdpa", "plugins": []}
    plain |= {"bf16": False, "fp16": False, "tf32": False, "val_set_size": 0, "load_best_model_at_end": None}
    plain |= {"pad_to_sequence_len": False, "deepspeed": None, "datasets": [{**own.dataset, "path": str(data)}]}
    return recipe.read_recipe(own.path, own.tier, str(base), plain | changes)


def rows_of_trl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """What `trl sft --config train.yaml` trains on in a folder, each row as its collator makes a batch of it."""
    from datasets import load_dataset
    from trl import SFTTrainer, get_peft_config
    from trl.scripts import sft

    monkeypatch.chdir(folder)
    script, training, model, _ = sft.make_parser().parse_args_and_config(["--config", "train.yaml"])
    training.model_init_kwargs = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    data = load_dataset(script.dataset_name, cache_dir=str(folder / "cache"))
    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=data[script.dataset_train_split],
        peft_config=get_peft_config(model),
    )
    rows: Any = trainer.train_dataset
    batches = [trainer.data_collator([row]) for row in rows]
    return [(batch["input_ids"][0].tolist(), batch["labels"][0].tolist()) for batch in batches]


def loaded(script: Path) -> Any:
    """A script as a module: nothing of it runs."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_difference(wanted: list[Any], found: list[Any]) -> str | None:
    """The first token or label that differs, in words; None where all rows are the same."""
    if len(wanted) != len(found):
        return f"{len(found)} rows in place of {len(wanted)}"
    for number, (ours, theirs) in enumerate(zip(wanted, found, strict=True)):
        for what, one, two in zip(("token", "label"), ours, theirs, strict=True):
            if list(one) != list(two):
                place = next((at for at, pair in enumerate(zip(one, two, strict=False)) if len({*pair}) > 1), len(one))
                return (
                    f"row {number}, {what} {place}: {list(two)[place : place + 3]}, not {list(one)[place : place + 3]}"
                )
    return None
