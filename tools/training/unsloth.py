"""A recipe written out as an Unsloth script that a person can read and change, with the data it reads.

Nothing of Unsloth is imported here: it needs a GPU. What of the script needs none, its rows of tokens and labels, the
tests compare with Axolotl's.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from tools.core import catalog, files, templates, trajectory
from tools.recipes import plan
from tools.recipes.recipe import Recipe
from tools.training import trainers, trl
from tools.training.trainers import Words

NAME = "unsloth"
# Where the script writes what it trained.
SAVED = trl.SAVED
# What Unsloth does in its own way (the attention's kernels, recomputing layers), and what the script says itself.
OWN = {"attn_implementation", "use_liger_kernel", "gradient_checkpointing", "gradient_checkpointing_kwargs"}
OWN |= {"packing", "packing_strategy", "eval_packing", "activation_offloading", "eos_token", "chat_template_path"}
OWN |= {"dataset_name", "dataset_test_split", "gradient_accumulation_steps"}
# What from_pretrained and get_peft_model take; the rest are TRL's.
MODEL = {"model_name_or_path", "dtype", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"}
MODEL |= {"trust_remote_code", "max_length", "use_peft", "lora_target_modules"}
ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "lora_modules_to_save", "use_rslora", "use_dora")


@cache
def words() -> Words:
    """catalog/unsloth.yaml. Raises BadInput, with file:line, where it breaks its schema."""
    return catalog.content(NAME, Words)


def write(
    recipe: Recipe, folder: Path | None = None, changes: Mapping[str, object] | None = None
) -> tuple[Path, list[str]]:
    """Write train.py and its data into `folder`, by default export/unsloth of the run; it and the commands to run.

    `changes`: of what the trainer is told. Raises BadInput for a recipe that the script cannot train as it says.
    """
    folder = folder or recipe.run.folder / "export" / NAME
    values = arguments(recipe) | dict(changes or {})
    packages = [f"unsloth=={words().version}", *(f"{name}=={version(name)}" for name in ("trl", "transformers"))]
    if values["report_to"] != "none":
        packages.append(values["report_to"])
    install = f"pip install {' '.join(packages)}"
    with files.atomic(folder) as partial:
        partial.mkdir(parents=True)
        lines = (orjson.dumps(kept(episode)) + b"\n" for episode in trajectory.read(recipe.data))
        files.write(partial / "train.jsonl", b"".join(lines))
        if own := recipe.settings.get("chat_template_jinja"):
            files.write(partial / trl.TEMPLATE, own.encode())
        files.write(partial / "train.py", script(recipe, values, install).encode())
    return folder, [install, "python train.py"]


def kept(episode: Mapping[str, object]) -> dict[str, object]:
    """What of an episode is trained on: its messages, and the tools that they may use."""
    return {key: episode[key] for key in ("messages", "tools") if episode.get(key)}


def script(recipe: Recipe, values: Mapping[str, Any], install: str) -> str:
    """The text of train.py."""
    s = recipe.settings
    tokens = s.get("special_tokens") or {}
    training = {
        key: value for key, value in values.items() if key not in OWN | MODEL | set(ADAPTER) and value is not None
    }
    model = {
        "load_in_4bit": bool(values.get("load_in_4bit")),
        "full_finetuning": not values.get("use_peft"),
        "trust_remote_code": bool(values.get("trust_remote_code")),
    }
    return templates.template("export/unsloth.py.j2").render(
        recipe=recipe.name,
        install=install,
        base=values["model_name_or_path"],
        longest=int(s["sequence_len"]),
        end=tokens.get("eos_token"),
        unstripped=list(tokens.get("additional_special_tokens") or []),
        validation=s.get("val_set_size") or 0,
        seed=s.get("seed"),
        update_tokens=update_tokens(recipe) if s.get("sample_packing") else 0,
        accumulation=values["gradient_accumulation_steps"],
        batch=values["per_device_train_batch_size"],
        dtype=values["dtype"],
        recompute="unsloth" if values["gradient_checkpointing"] else False,
        model=model,
        adapter=adapter(recipe, values) if values.get("use_peft") else {},
        training=training,
        saved=values["output_dir"],
    )


def adapter(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """What get_peft_model is told: layers by number, modules by the last part of their names, or all linear ones."""
    names = {"lora_r": "r", "lora_modules_to_save": "modules_to_save"}
    told = {names.get(key, key): values[key] for key in ADAPTER if key in values}
    modules, layers = recipe.settings.get("lora_target_modules"), recipe.settings.get("peft_layers_to_transform")
    if layers is None:
        return told | {"target_modules": modules or "all-linear"}
    leaves = [each.rpartition(".")[2] for each in trainers.LINEAR]
    return told | {"target_modules": modules or leaves, "layers_to_transform": layers}


def update_tokens(recipe: Recipe) -> int:
    """Tokens of an update, padding aside: as planned, or for a model that the catalog has not, as many as fit."""
    s, model = recipe.settings, catalog.model_of(str(recipe.settings["base_model"]))
    if model:
        return round(plan.of(model, recipe.tier, plan.from_recipe(s, recipe.tier)).update_tokens)
    return int(s["micro_batch_size"]) * int(s["gradient_accumulation_steps"]) * int(s["sequence_len"])


def arguments(recipe: Recipe) -> dict[str, Any]:
    """What the script says, under TRL's names. Raises BadInput, with file:line, for what it cannot do."""
    known, s = words(), recipe.settings
    if not recipe.tier.gpu:
        raise trainers.cannot(recipe, "base_model", known, "trains on a GPU; TIER= names one")
    if recipe.tier.world > 1 or s.get("deepspeed") or s.get("fsdp_config"):
        key = next((key for key in ("fsdp_config", "deepspeed") if s.get(key)), "base_model")
        raise trainers.cannot(recipe, key, known, "trains on one GPU here, without FSDP and DeepSpeed")
    if s.get("load_in_8bit"):
        raise trainers.cannot(recipe, "load_in_8bit", known, "has the base in 4 or 16 bits here")
    plain = {"sample_packing": False, "sdpa_varlen": None}  # It packs nothing; see the script.
    return trl.arguments(replace(recipe, settings={**s, **plain}), known)
