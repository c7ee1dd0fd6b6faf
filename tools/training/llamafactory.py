"""A recipe written out for LLaMA-Factory: its training, prediction and export files, the data and what tells of them.

It is LLaMA-Factory's own way of doing the same training; an adapter that comes of it goes into Ollama as ours does.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import yaml

from tools.core import catalog, files, run_folder, templates, trajectory
from tools.data import convert
from tools.data.formats.worker import Task
from tools.recipes.recipe import Recipe
from tools.training import trainers
from tools.training.trainers import Words

NAME = "llamafactory"
# Its name for our episodes, and for those that no training sees.
EPISODES, HELD_OUT = "react_training", "react_testing"
# Where it writes what it trained.
SAVED = "saves"
# Tokens that an answer of predict.yaml may have.
ANSWER_TOKENS = 512


class Facts(Words):
    """catalog/llamafactory.yaml, which says what each figure is."""

    templates: Mapping[str, str]
    begins: Mapping[str, str]


@cache
def words() -> Facts:
    """catalog/llamafactory.yaml. Raises BadInput, with file:line, where it breaks its schema."""
    return catalog.content(NAME, Facts)


def write(
    recipe: Recipe, folder: Path | None = None, changes: Mapping[str, object] | None = None
) -> tuple[Path, list[str]]:
    """Write a recipe into `folder`, by default export/llamafactory of its run; it and the commands to run there.

    `changes`: of train.yaml. Raises BadInput for a recipe that LLaMA-Factory cannot train as it says.
    """
    folder = folder or recipe.run.folder / "export" / NAME
    train = arguments(recipe) | dict(changes or {})
    with files.atomic(folder) as partial:
        partial.mkdir(parents=True)
        write_data_set(recipe, train["template"], partial)
        if train.get("deepspeed"):
            files.write(partial / "deepspeed.json", run_folder.found(str(train["deepspeed"])).read_bytes())
            train["deepspeed"] = "deepspeed.json"
        written = {"train": train, "predict": predicting(train), "export": exporting(train)}
        if not has_held_out(recipe):
            del written["predict"]
        for name, values in written.items():
            text = templates.template("export/llamafactory.yaml.j2").render(
                what=name,
                recipe=recipe.name,
                version=words().version,
                report=train["report_to"],
                values=yaml.safe_dump(values, sort_keys=False, width=1000),
            )
            files.write(partial / f"{name}.yaml", text.encode())
    start = f"FORCE_TORCHRUN=1 NPROC_PER_NODE={recipe.tier.devices} " if recipe.tier.devices > 1 else ""
    programs = {"train": f"{start}llamafactory-cli train", "predict": "llamafactory-cli train"}
    programs["export"] = "llamafactory-cli export"
    return folder, [f"{programs[name]} {name}.yaml" for name in written]


def has_held_out(recipe: Recipe) -> bool:
    """Whether episodes that no training sees belong to a recipe's: they do to the shipped ones."""
    return recipe.data.resolve() == trajectory.TRAIN_DATA


def write_data_set(recipe: Recipe, template: str, folder: Path) -> None:
    """Write a recipe's episodes, those that no training sees, and the dataset_info.json of both, into `folder`.

    `template`: LLaMA-Factory's name of the chat template. Raises BadInput as `write_data`.
    """
    parts = {EPISODES: recipe.data} | ({HELD_OUT: trajectory.TEST_DATA} if has_held_out(recipe) else {})
    for name, data in parts.items():
        write_data(data, folder / f"{name}.json", words().begins.get(template, ""))
    known = orjson.loads(convert.render("dataset_info.json.j2", str(folder)))
    told = {name: known[f"{name}_sharegpt"] | {"file_name": f"{name}.json"} for name in parts}
    files.write_json(folder / "dataset_info.json", told)


def write_data(data: Path, out: Path, begins: str) -> None:
    """Write episodes as ShareGPT, `begins` before the text of each system turn.

    Raises BadInput, with file:line, for episodes that LLaMA-Factory cannot train as they say.
    """
    source = data
    if begins:
        source = out.with_suffix(".jsonl")
        with source.open("wb") as file:
            for episode in trajectory.read(data):
                turns = episode["messages"]
                own = turns[0]["content"] if turns[0]["role"] == "system" else ""
                rest = turns[1:] if turns[0]["role"] == "system" else turns
                system = {"role": "system", "content": begins + own.strip()}
                file.write(orjson.dumps({**episode, "messages": [system, *rest]}) + b"\n")
    convert.convert_files([str(source)], str(out), Task("sharegpt", untrained=False))
    if begins:
        source.unlink()


def arguments(recipe: Recipe) -> dict[str, Any]:
    """What train.yaml holds. Raises BadInput, with file:line, for what LLaMA-Factory cannot do as the recipe says."""
    settings = recipe.settings
    found: dict[str, Any] = {"stage": "sft", "do_train": True, "template": template(recipe)}
    found |= {"dataset": EPISODES, "dataset_dir": ".", "output_dir": SAVED, "overwrite_output_dir": True}
    found |= trainers.renamed(recipe, words())
    found |= method(recipe) | batches(recipe) | trainers.saving(recipe)
    found["enable_liger_kernel"] = trainers.liger(recipe)
    found["disable_gradient_checkpointing"] = not settings.get("gradient_checkpointing")
    if found["disable_gradient_checkpointing"] is False:
        found["use_reentrant_gc"] = (settings.get("gradient_checkpointing_kwargs") or {}).get("use_reentrant", True)
    if not recipe.tier.gpu:
        found["use_cpu"] = True
    return found | trainers.reporting(recipe) | {"plot_loss": True}


def template(recipe: Recipe) -> str:
    """LLaMA-Factory's name of the recipe's chat template. Raises BadInput where it has none."""
    model = catalog.model_of(str(recipe.settings["base_model"])) or catalog.model_of(recipe.base)
    if model is None or model.family not in words().templates:
        families = ", ".join(words().templates)
        why = f"has templates here for models of these families: {families}"
        raise trainers.cannot(recipe, "base_model", words(), why)
    trainers.check_data(recipe, words())
    return words().templates[model.family]


def method(recipe: Recipe) -> dict[str, Any]:
    """What is trained: every weight, or an adapter over a base in 16, 8 or 4 bits."""
    s = recipe.settings
    if not s.get("adapter"):
        return {"finetuning_type": "full"}  # The vision part of a model is frozen unless asked for.
    made: dict[str, Any] = {"finetuning_type": "lora", "lora_target": ",".join(trainers.target(recipe, words(), "all"))}
    if saved := s.get("lora_modules_to_save"):
        made["additional_target"] = ",".join(saved)
    if bits := 4 if s.get("load_in_4bit") else 8 if s.get("load_in_8bit") else 0:
        made |= {"quantization_method": "bnb", "quantization_bit": bits}
    return made


def batches(recipe: Recipe) -> dict[str, Any]:
    """Packing with the bounds of the episodes kept, as Axolotl packs (its name for it: neat packing)."""
    packed = bool(recipe.settings.get("sample_packing"))
    return {"packing": True, "neat_packing": True} if packed else {"packing": False}


def predicting(train: Mapping[str, Any]) -> dict[str, Any]:
    """predict.yaml: answers to the episodes that no training sees, each turn given the true ones before it."""
    kept = [
        *("model_name_or_path", "template", "finetuning_type", "dataset_dir", "cutoff_len", "trust_remote_code"),
        *("quantization_method", "quantization_bit", "bf16", "fp16", "flash_attn", "use_cpu"),
    ]
    made = {"stage": "sft", "do_predict": True, "predict_with_generate": True, "eval_dataset": HELD_OUT}
    made |= {key: train[key] for key in kept if key in train} | tuned(train)
    made |= {"per_device_eval_batch_size": 1, "max_new_tokens": ANSWER_TOKENS, "do_sample": False}
    return made | {"output_dir": "predictions", "report_to": "none"}


def exporting(train: Mapping[str, Any]) -> dict[str, Any]:
    """export.yaml: the adapter merged into its base in 16 bits."""
    kept = ("model_name_or_path", "template", "finetuning_type", "trust_remote_code")
    made = {key: train[key] for key in kept} | tuned(train)
    return made | {"export_dir": "merged", "export_size": 5, "export_device": "cpu", "export_legacy_format": False}


def tuned(train: Mapping[str, Any]) -> dict[str, Any]:
    """Where what was trained is: an adapter beside its base, or a whole model in its place."""
    key = "adapter_name_or_path" if train["finetuning_type"] == "lora" else "model_name_or_path"
    return {key: train["output_dir"]}
