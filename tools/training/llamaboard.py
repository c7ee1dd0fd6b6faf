"""LLaMA-Factory's web page (LLaMA Board), opened with a recipe and its data filled in.

The values go into its own saved configuration, which its button "Load arguments" reads too: a value for each field of
the page by the field's name, and what the page has no field for in its extra arguments.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml

from tools import Failed
from tools.core import catalog, files, run_folder
from tools.core.process import Program
from tools.gguf import find_base, llamacpp
from tools.recipes.recipe import Recipe
from tools.training import environments, llamafactory

# It starts the page; LLaMA-Factory's own Python runs it.
PAGE = Path(__file__).with_name("llamaboard_page.py")
# The page's name for a model that is told by its path. For a model of its own list it adds arguments of its own.
CUSTOM = "Custom"
# The page's fields by LLaMA-Factory's arguments, for those that take the value as it is.
FIELDS = {
    "template": "top.template",
    "finetuning_type": "top.finetuning_type",
    "dataset_dir": "train.dataset_dir",
    "cutoff_len": "train.cutoff_len",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "lr_scheduler_type": "train.lr_scheduler_type",
    "logging_steps": "train.logging_steps",
    "report_to": "train.report_to",
    "packing": "train.packing",
    "neat_packing": "train.neat_packing",
    "lora_rank": "train.lora_rank",
    "lora_alpha": "train.lora_alpha",
    "lora_dropout": "train.lora_dropout",
    "lora_target": "train.lora_target",
    "use_rslora": "train.use_rslora",
    "use_dora": "train.use_dora",
    "loraplus_lr_ratio": "train.loraplus_lr_ratio",
    "additional_target": "train.additional_target",
}
# Those whose fields hold text.
TEXTS = {
    "learning_rate": "train.learning_rate",
    "num_train_epochs": "train.num_train_epochs",
    "max_grad_norm": "train.max_grad_norm",
}
# What the page says without a field for it, as the recipe does, and where it finds the model and saves the result.
ITS_OWN = {"stage", "do_train", "plot_loss", "output_dir", "overwrite_output_dir", "model_name_or_path"}
# What it adds to every training; null in the extra arguments takes it away.
ADDED = (
    *("preprocessing_num_workers", "max_samples", "save_steps", "warmup_steps", "ddp_timeout"),
    "include_num_input_tokens_seen",
)


def open_page(recipe: Recipe, port: int) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C; nothing of it goes to anyone else.

    What it trains is saved in the folder llamaboard of the recipe's run. Raises BadInput for a recipe that
    LLaMA-Factory cannot train as it says and for a port that is taken, Failed when the page ends by itself.
    """
    llamacpp.free_port(port)
    bin_folder = environments.programs(llamafactory.NAME)
    folder = recipe.run.folder / "llamaboard"
    config = write_configuration(recipe, folder)
    environment = {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",  # it starts its own llamafactory-cli
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SHARE": "0",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    print(f"http://127.0.0.1:{port}: LLaMA-Factory's page with {recipe.name}, in a minute; Ctrl-C ends it")
    print(f"what it trains: {folder / llamafactory.SAVED}; then make ollama ADAPTER=that folder BASE={recipe.base}")
    # -P: beside the page lie modules of ours.
    command = [str(bin_folder / "python"), "-P", str(PAGE), str(config.relative_to(folder))]
    with Program(command, cwd=folder, env=os.environ | environment) as page:
        page.wait()
    raise Failed(f"LLaMA-Factory's page ended with status {page.returncode}; see what it said above")


def write_configuration(recipe: Recipe, folder: Path) -> Path:
    """Write the data of a recipe and the page's configuration into `folder`; the configuration's path.

    What is saved there stays. Raises BadInput for a recipe that LLaMA-Factory cannot train as it says.
    """
    train = llamafactory.arguments(recipe) | {"dataset_dir": "data"}
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic(folder / "data") as data:
        data.mkdir()
        llamafactory.write_data_set(recipe, train["template"], data)
        if train.get("deepspeed"):
            files.write(data / "deepspeed.json", run_folder.found(str(train["deepspeed"])).read_bytes())
            train["deepspeed"] = "data/deepspeed.json"
    settings = folder / "llamaboard_cache" / "user_config.yaml"
    before = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    known = catalog.model_of(recipe.base)
    here = find_base.resolve(recipe.base) if known and known.package else find_base.here(recipe.base)
    model = str(here or recipe.base)
    # In this file it keeps the language and the path of the model.
    told = {"lang": "en", "hub_name": None, "cache_dir": None} | (before or {})
    told |= {"last_model": CUSTOM, "path_dict": {CUSTOM: model}}
    config = folder / "llamaboard_config" / f"{recipe.name}.yaml"
    for path, values in ((settings, told), (config, configuration(train))):
        path.parent.mkdir(exist_ok=True)
        files.write(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
    return config


def configuration(train: Mapping[str, Any]) -> dict[str, Any]:
    """The page's saved configuration for the arguments of a training: its fields' names and values."""
    bits = train.get("quantization_bit")
    made: dict[str, Any] = {"top.model_name": CUSTOM, "top.booster": "auto", "train.dataset": [train["dataset"]]}
    made["top.quantization_bit"] = str(bits or "none")
    made |= {field: train[name] for name, field in FIELDS.items() if name in train}
    made |= {field: str(train[name]) for name, field in TEXTS.items() if name in train}
    made["train.compute_type"] = "bf16" if train.get("bf16") else "fp16" if train.get("fp16") else "fp32"
    said = {*FIELDS, *TEXTS, *ITS_OWN, "dataset", "bf16", "fp16", "quantization_bit", "quantization_method"}
    # With a share for validation the page validates whenever it saves, with the batch of training.
    batch = train["per_device_train_batch_size"]
    same = {"eval_strategy": "steps", "eval_steps": train.get("save_steps"), "per_device_eval_batch_size": batch}
    if not train.get("val_size") or all(train.get(name, batch) == value for name, value in same.items()):
        made["train.val_size"] = train.get("val_size") or 0
        said |= {*same, "val_size"}
    extra = dict.fromkeys(ADDED) | {name: value for name, value in train.items() if name not in said}
    return made | {"train.extra_args": orjson.dumps(extra).decode()}
