"""What a recipe says that would fail, or would train otherwise than it says, on any machine and any model."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from tools.core import catalog, run_folder
from tools.core.catalog import Model
from tools.core.finding import Finding
from tools.core.yaml_text import Keys
from tools.recipes.recipe import Recipe

# The home folder, as a shell has it: ~/data or ~name/data.
HOME = re.compile(r"~[\w.-]*[/\\]")
# Keys whose texts are no paths.
TEXTS = ("chat_template_jinja", "default_system_message", "special_tokens", "tokens", "added_tokens_overrides")
# What a path of data ends with; a name without it may be a data set on the hub.
DATA_FILE = re.compile(r"\.(jsonl?|csv|parquet|arrow|txt)(\.\w+)?$")


def limits() -> Mapping[str, float]:
    """The numbers that a check warns by (catalog/preflight.yaml)."""
    return catalog.content("preflight", dict[str, float])


def few_updates(recipe: Recipe, total: float, learnt_from: str, fix: str) -> Iterator[Finding]:
    """A run with too few updates. `total`: updates in all; `learnt_from`: of how many of what, in words."""
    if total < limits()["least_updates"] and not recipe.settings.get("max_steps"):
        what = f"too few updates to learn from: {total:.0f} in the whole run, of {learnt_from}"
        yield Finding("warning", what, recipe.at("num_epochs"), fix)


def findings(recipe: Recipe, model: Model | None) -> Iterator[Finding]:
    """All that this module checks. `model`: the recipe's, where the catalog knows it."""
    yield from home(recipe)
    yield from missing(recipe)
    yield from rates(recipe, model)
    yield from scale(recipe)
    yield from half_precision(recipe)
    yield from unfrozen(recipe)
    yield from grouped(recipe)
    yield from validation(recipe)
    yield from sharding(recipe)
    yield from quantised_zero3(recipe)
    yield from learning(recipe)


def method_of(settings: Mapping[str, object]) -> str:
    """The method of a recipe: that of its `rl`; qlora for an adapter over 4 bits, lora for any other, else full."""
    if settings.get("rl") in catalog.methods():
        return str(settings["rl"])
    if not settings.get("adapter"):
        return "full"
    return "qlora" if settings.get("load_in_4bit") or settings["adapter"] == "qlora" else "lora"


def home(recipe: Recipe) -> Iterator[Finding]:
    """A path that begins with ~: a shell knows it as the home folder, Axolotl makes a folder of that name."""
    for keys, text in texts(recipe.settings):
        if HOME.match(text) and keys[0] not in TEXTS:
            what = f"{keys[-1]}: {text}: Axolotl does not read ~ as your home folder"
            whole = os.path.expanduser(text)
            yield Finding("error", what, recipe.at(*keys), f"write {'it in full' if whole == text else whole}")


def texts(value: object, above: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """All texts below a value of YAML, each with the keys and list places above it."""
    if isinstance(value, str):
        yield above, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from texts(each, (*above, key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from texts(each, (*above, number))


def missing(recipe: Recipe) -> Iterator[Finding]:
    """Files and folders that a recipe names and that are not there; its first data set is read before."""
    settings = recipe.settings
    resume, deepspeed = settings.get("resume_from_checkpoint"), settings.get("deepspeed")
    if isinstance(resume, str) and not run_folder.found(resume).is_dir():
        fix = "remove the key: make train resumes from the last checkpoint by itself"
        yield Finding("error", f"{resume}: no such checkpoint to resume from", recipe.at("resume_from_checkpoint"), fix)
    if isinstance(deepspeed, str) and not run_folder.found(deepspeed).is_file():
        fix = "recipes/deepspeed/ has one for each way to shard"
        yield Finding("error", f"{deepspeed}: no such DeepSpeed configuration", recipe.at("deepspeed"), fix)
    for key in ("datasets", "test_datasets"):
        for number, entry in enumerate(settings.get(key) or ()):
            path = str(entry.get("path"))
            here = DATA_FILE.search(path) or path.startswith(("/", ".")) or "\\" in path
            if here and not run_folder.found(path).exists() and (key, number) != ("datasets", 0):
                yield Finding("error", f"{path}: no such data", recipe.at(key, number, "path"), "correct the path")
    if len(settings.get("datasets") or ()) > 1:
        what, fix = "only the first of the data sets is looked at here", "`make check DATA=...` looks at another one"
        yield Finding("advice", what, recipe.at("datasets", 1), fix)


def rates(recipe: Recipe, model: Model | None) -> Iterator[Finding]:
    """A learning rate outside of what is advised for the method; where the tier has its own, far outside."""
    method = catalog.methods()[method_of(recipe.settings)]
    low, high = method.advised
    rate = float(recipe.settings.get("learning_rate") or 0)
    own = None if method.rl else recipe.tier.changes.get("learning_rate")
    advised = f"{low:g} to {high:g}"
    if own is not None:
        low, high = min(low / limits()["far"], own), max(high * limits()["far"], own)
    if not low <= rate <= high:
        where = "above" if rate > high else "below"
        if own is not None:
            where = f"more than {limits()['far']:g} times {where}"
        fix = f"learning_rate: {own or (method.rate(model) if model else high):g}"
        what = f"learning_rate {rate:g} is {where} {advised}, advised for {method.title}"
        yield Finding("warning", what, recipe.at("learning_rate"), fix)


def scale(recipe: Recipe) -> Iterator[Finding]:
    """An adapter that counts for little: its result is multiplied by lora_alpha / lora_r."""
    settings = recipe.settings
    if not (settings.get("adapter") and settings.get("lora_r") and settings.get("lora_alpha")):
        return
    rank, alpha = int(settings["lora_r"]), int(settings["lora_alpha"])
    by = alpha / (math.sqrt(rank) if settings.get("peft_use_rslora") else rank)
    if by < limits()["least_scale"]:
        what = f"lora_alpha {alpha} with lora_r {rank} multiplies the adapter by {by:.3g}: it hardly learns"
        yield Finding("warning", what, recipe.at("lora_alpha"), f"lora_alpha: {2 * rank}")


def half_precision(recipe: Recipe) -> Iterator[Finding]:
    """Full tuning in fp16: Axolotl 0.19 loads the weights in fp16 (utils/config, resolve_dtype).

    torch's GradScaler refuses their gradients ("Attempting to unscale FP16 gradients"); DeepSpeed keeps weights in fp32
    beside them, but fp16 ends at 65,504.
    """
    settings = recipe.settings
    bf16 = settings.get("bf16") not in (None, False, "auto") or settings.get("bfloat16")
    key = next((each for each in ("fp16", "float16") if settings.get(each)), None)
    if settings.get("adapter") or bf16 or not key:
        return
    fix = "bf16: true and fp16: false, or on a GPU without bf16 an adapter"
    if settings.get("deepspeed"):
        yield Finding("warning", "full tuning in fp16 overflows where bf16 does not", recipe.at(key), fix)
    else:
        what = "full tuning in fp16 stops at its first update: Attempting to unscale FP16 gradients"
        yield Finding("error", what, recipe.at(key), fix)


def unfrozen(recipe: Recipe) -> Iterator[Finding]:
    """unfrozen_parameters beside an adapter: Axolotl 0.19 freezes all else, the adapter too (train.py)."""
    if recipe.settings.get("adapter") and recipe.settings.get("unfrozen_parameters"):
        what = "unfrozen_parameters freezes all else, the adapter too, and what it trains is not in the adapter"
        fix = "remove it (lora_modules_to_save trains whole modules beside an adapter), or remove adapter:"
        yield Finding("error", what, recipe.at("unfrozen_parameters"), fix)


def grouped(recipe: Recipe) -> Iterator[Finding]:
    """group_by_length beside packing, in random order: Axolotl 0.19, core/trainers/base.py, _get_train_sampler."""
    if recipe.settings.get("group_by_length") and recipe.settings.get("sample_packing"):
        what = "group_by_length does nothing beside sample_packing: rows are packed in random order"
        yield Finding("warning", what, recipe.at("group_by_length"), "remove it, or sample_packing: false")


def validation(recipe: Recipe) -> Iterator[Finding]:
    """Validations that never happen, and a best checkpoint that is never loaded, by Axolotl 0.19's own rules.

    It makes steps of saves_per_epoch and evals_per_epoch (utils/config, normalize_config), and drops
    load_best_model_at_end without a word (core/builders/causal.py) unless the one divides by the other.
    """
    settings = recipe.settings
    held = settings.get("val_set_size") not in (None, 0, "0") or settings.get("test_datasets")
    saves, evals = steps(settings, "save"), steps(settings, "eval")
    validates = evals or settings.get("eval_strategy") not in (None, False, "no")
    if held and not validates:
        asked = settings.get("evals_per_epoch")
        what = "no validation at all: evals_per_epoch x num_epochs must be more than 1" if asked else "no validation"
        where = recipe.at("evals_per_epoch" if asked else "val_set_size")
        what += "; what is kept for it is not trained"
        yield Finding("error" if asked else "warning", what, where, "evals_per_epoch: 2, or val_set_size: 0")
    if settings.get("load_best_model_at_end") is not True:
        return
    why = ""
    if not held:
        why = "no validation part says which one"
    elif not saves or not evals:
        why = "it needs saves and evals by steps, or more than one of each in the whole run"
    elif saves % evals:
        why = "not every save has a validation"
    if why:
        fix = "as many evals_per_epoch as saves_per_epoch and a val_set_size, or load_best_model_at_end: false"
        what = f"the best checkpoint would not be loaded, the last one kept: {why}"
        yield Finding("error", what, recipe.at("load_best_model_at_end"), fix)


def steps(settings: Mapping[str, object], what: str) -> float:
    """Updates between two saves or evals, or their share of the run, as Axolotl 0.19 has it; 0 for none."""
    epochs, each = number(settings.get("num_epochs")) or 1, number(settings.get(f"{what}s_per_epoch"))
    share = 1 / (each * epochs) if each else 1
    return share if share < 1 else number(settings.get(f"{what}_steps"))


def number(value: object) -> float:
    """A value of YAML as a number; 0 for none. Axolotl has refused by now what is no number."""
    return float(value) if isinstance(value, int | float | str) and value else 0


def sharding(recipe: Recipe) -> Iterator[Finding]:
    """FSDP2 whose checkpoints hold a part of the adapter: accelerate 1.13 asks peft for it, which gathers nothing.

    The first process saves its shard (accelerate/utils/fsdp_utils.py, `_get_model_state_dict` with adapter_only), the
    others load nothing, and no one says so: two processes that resume go on with half an adapter.
    """
    way = recipe.settings.get("fsdp_config") or {}
    if (
        recipe.settings.get("adapter")
        and recipe.settings.get("fsdp_version") == 2
        and way.get("state_dict_type") == "FULL_STATE_DICT"
    ):
        yield Finding(
            "error",
            "checkpoints would hold the first process's part of the adapter alone; resumed, the rest begins anew",
            recipe.at("fsdp_config", "state_dict_type"),
            "state_dict_type: SHARDED_STATE_DICT, and final_state_dict_type: FULL_STATE_DICT",
        )


def quantised_zero3(recipe: Recipe) -> Iterator[Finding]:
    """ZeRO-3 over a base in 4 or 8 bits, which transformers does not shard as it loads (`get_init_context`).

    Each process holds all of it first, so the memory that ZeRO-3 is there for is needed all the same.
    """
    settings = recipe.settings
    if (settings.get("load_in_4bit") or settings.get("load_in_8bit")) and zero_stage(recipe) == 3:
        what = "ZeRO-3 does not shard a quantised base as it loads: each process takes all of it"
        fix = "remove deepspeed: on one GPU; on several, FSDP2 as in recipes/4x24gb/qwen32b-qlora.yaml"
        yield Finding("warning", what, recipe.at("deepspeed"), fix)


def learning(recipe: Recipe) -> Iterator[Finding]:
    """What stops a training by `rl`, or that it does not do as the recipe says.

    The LoRA kernels ask for an adapter on the model, which TRL adds later (Axolotl 0.19, monkeypatch/lora_kernels.py,
    apply_lora_kernel_patches). `lora_model_dir` is not read beside `rl: dpo` (loaders/model.py, _load_adapters). Over a
    quantised base TRL 1.9 casts the adapter to bf16 (DPOTrainer.__init__, and GRPOTrainer's), and torch's scaler for
    fp16 refuses that.
    """
    way = recipe.settings.get("rl")
    if way not in ("dpo", "grpo"):
        return
    bits = next((key for key in ("load_in_4bit", "load_in_8bit") if recipe.settings.get(key)), "")
    if bits and recipe.settings.get("fp16"):
        what = (
            f"{bits} with rl: {way} and fp16 stops at its first update: the adapter has bf16, which the scaler refuses"
        )
        yield Finding("error", what, recipe.at(bits), f"{bits}: false, a smaller model, or a GPU with bf16")
    if way == "grpo":
        return
    for key in catalog.training().lora_kernels:
        if recipe.settings.get(key):
            what = f"{key}: with rl: dpo the training stops: Model must be a PeftModelForCausalLM"
            yield Finding("error", what, recipe.at(key), f"{key}: false")
    if recipe.settings.get("lora_model_dir"):
        what = "lora_model_dir: with rl: dpo that adapter is not loaded, and a new one is trained over base_model"
        fix = "make merge of that adapter, and base_model: the merged folder"
        yield Finding("error", what, recipe.at("lora_model_dir"), fix)


def zero_stage(recipe: Recipe) -> int:
    """The stage of ZeRO that a recipe's DeepSpeed configuration has; 0 for none, or one that cannot be read."""
    path = run_folder.found(str(recipe.settings.get("deepspeed") or ""))
    try:
        read = orjson.loads(Path(path).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return 0
    way = read.get("zero_optimization") if isinstance(read, dict) else None
    stage = way.get("stage") if isinstance(way, dict) else None
    return stage if isinstance(stage, int) else 0
