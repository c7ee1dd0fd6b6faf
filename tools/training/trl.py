"""A recipe written out for `trl sft`: its YAML, and rows of tokens and labels.

The rows are tokens already. TRL makes a mask of messages only where the chat template marks answers ({% generation %}),
which few models' own do, and then trains every answer: it has no word for a turn that is not trained. Rows with
`labels` it takes as they are.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import yaml

from tools.core import catalog, files, run_folder, templates, trajectory
from tools.gguf import find_base
from tools.recipes.recipe import Recipe
from tools.training import trainers
from tools.training.tokens import Tokenised, tokenise
from tools.training.trainers import Words

NAME = "trl"
# Where it writes what it trained; where its rows are; the chat template that is saved with what it trained.
SAVED, DATA, TEMPLATE = "saves", "data", "chat_template.jinja"


@cache
def words() -> Words:
    """catalog/trl.yaml. Raises BadInput, with file:line, where it breaks its schema."""
    return catalog.content(NAME, Words)


def write(
    recipe: Recipe, folder: Path | None = None, changes: Mapping[str, object] | None = None
) -> tuple[Path, list[str]]:
    """Write a recipe for TRL into `folder`, by default export/trl of its run; it and the command that trains there.

    `changes`: of train.yaml. The base's tokenizer makes the tokens, so it must be here or on the hub. Raises BadInput
    for a recipe that `trl sft` cannot train as it says, Failed for a base that cannot be had.
    """
    folder = folder or recipe.run.folder / "export" / NAME
    train = arguments(recipe)
    parts = rows(recipe, find_base.resolve(recipe.base))
    with files.atomic(folder) as partial:
        (partial / DATA).mkdir(parents=True)
        for name, part in parts.items():
            lines = (orjson.dumps({"input_ids": list(ids), "labels": list(labels)}) + b"\n" for ids, labels in part)
            files.write(partial / DATA / f"{name}.jsonl", b"".join(lines))
        if own := recipe.settings.get("chat_template_jinja"):
            files.write(partial / TEMPLATE, own.encode())
        if train.get("deepspeed"):
            files.write(partial / "deepspeed.json", run_folder.found(str(train["deepspeed"])).read_bytes())
            train["deepspeed"] = "deepspeed.json"
        text = templates.template("export/trl.yaml.j2").render(
            recipe=recipe.name,
            version=words().version,
            command=command(recipe),
            values=yaml.safe_dump(train | dict(changes or {}), sort_keys=False, width=1000),
        )
        files.write(partial / "train.yaml", text.encode())
    return folder, [command(recipe)]


def command(recipe: Recipe) -> str:
    """The command that trains in that folder."""
    several = f" --num_processes {recipe.tier.devices}" if recipe.tier.devices > 1 else ""
    return f"trl sft --config train.yaml{several}"


def rows(recipe: Recipe, base: Path) -> dict[str, list[Tokenised]]:
    """The rows of training and of validation as Axolotl has them: shuffled, what is too long left out, then parted."""
    from datasets import Dataset

    longest, seed = int(recipe.settings["sequence_len"]), recipe.settings.get("seed")
    made = tokenise(base, recipe.dataset, list(trajectory.read(recipe.data)), longest, recipe.settings)
    order = Dataset.from_dict({"row": range(len(made))}).shuffle(seed=seed)["row"]
    fit = [made[row] for row in order if len(made[row][0]) <= longest]
    if len(fit) < len(made):
        left = f"{len(made) - len(fit)} of {len(made)} episodes"
        print(f"{recipe.data}: {left} are longer than {longest} tokens and left out")
    share = float(recipe.settings.get("val_set_size") or 0)
    if not share:
        return {"train": fit}
    parted = Dataset.from_dict({"row": range(len(fit))}).train_test_split(
        test_size=int(share) if share > 1 else share, shuffle=False
    )
    names = {"train": "train", "validation": "test"}
    return {name: [fit[row] for row in parted[theirs]["row"]] for name, theirs in names.items()}


def arguments(recipe: Recipe, known: Words | None = None) -> dict[str, Any]:
    """What train.yaml holds; `known`: of a trainer that goes through TRL.

    Raises BadInput, with file:line, for what it cannot do as the recipe says.
    """
    known, s = known or words(), recipe.settings
    trainers.check_data(recipe, known)
    if trainers.sees_images(recipe):
        raise trainers.cannot(recipe, "base_model", known, "does not leave a model's part for images as it is")
    found: dict[str, Any] = {"dataset_name": DATA, "output_dir": SAVED}
    theirs = words().model_copy(update={"title": known.title})
    found |= trainers.renamed(recipe, theirs, trainers.READ | {"val_set_size"})
    found |= dtype(recipe) | method(recipe, known) | packing(recipe, known)
    found |= trainers.saving(recipe)
    if s.get("val_set_size"):
        found["dataset_test_split"] = "validation"
    found["gradient_checkpointing"] = bool(s.get("gradient_checkpointing"))
    if s.get("gradient_checkpointing_kwargs"):
        found["gradient_checkpointing_kwargs"] = s["gradient_checkpointing_kwargs"]
    found["use_liger_kernel"] = trainers.liger(recipe)
    if end := (s.get("special_tokens") or {}).get("eos_token"):
        found["eos_token"] = end
    if s.get("chat_template_jinja"):
        found["chat_template_path"] = TEMPLATE
    if not recipe.tier.gpu:
        found |= {"use_cpu": True}
        found.pop("tf32", None)
    return found | trainers.reporting(recipe)


def dtype(recipe: Recipe) -> dict[str, str]:
    """The type that the base is loaded in: that of the training, as Axolotl does."""
    s = recipe.settings
    return {"dtype": "bfloat16" if s.get("bf16") else "float16" if s.get("fp16") else "float32"}


def method(recipe: Recipe, known: Words) -> dict[str, Any]:
    """What is trained: every weight, or an adapter over a base in 16, 8 or 4 bits."""
    s = recipe.settings
    if not s.get("adapter"):
        if s.get("unfrozen_parameters"):
            raise trainers.cannot(recipe, "unfrozen_parameters", known, "freezes no part of a model")
        return {}
    made: dict[str, Any] = {"use_peft": True, "lora_target_modules": trainers.target(recipe, known, "all-linear")}
    if s.get("lora_modules_to_save"):
        made["lora_modules_to_save"] = list(s["lora_modules_to_save"])
    if s.get("load_in_4bit"):  # Axolotl quantises the scales too.
        made |= {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
    elif s.get("load_in_8bit"):
        made["load_in_8bit"] = True
    return made


def packing(recipe: Recipe, known: Words) -> dict[str, Any]:
    """Rows of several episodes, none of which sees another: TRL leaves that to FlashAttention."""
    if not recipe.settings.get("sample_packing"):
        return {"packing": False}
    if "flash" not in str(recipe.settings.get("attn_implementation")):
        raise trainers.cannot(recipe, "sample_packing", known, "packs with FlashAttention alone")
    return {"packing": True, "packing_strategy": "bfd"}
