"""Folders for servers other than Ollama, each with its exact command, and one to upload, with a model card."""

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from tools import BadInput
from tools.core import catalog, files, templates
from tools.core.run_folder import Run
from tools.gguf import llamacpp
from tools.recipes.recipe import read_recipe
from tools.serving import ollama

# Where a server that we write a command for listens: nobody but this machine reaches it.
HERE = "127.0.0.1"
# Of a recipe's keys, those that a reader of the model card wants to know.
SETTINGS = {
    "adapter": "method",
    "lora_r": "rank",
    "lora_alpha": "alpha",
    "learning_rate": "learning rate",
    "num_epochs": "epochs",
    "sequence_len": "sequence length",
}
# What each server calls a sampling parameter of Ollama's.
VLLM = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
}
LLAMA_SERVER = {
    "temperature": "--temp",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
}


@dataclass(frozen=True)
class Model:
    """A finished run to be exported: its folder, the model's name, and what a server must be told of it.

    `merged`: base and adapter as a Hugging Face folder. `gguf`, `quant`: the quantised one. `sampling`: as Ollama names
    the parameters. `stop`: the token that ends an answer. `base_hub`: the base model's id on the hub.
    """

    this: Run
    name: str
    merged: Path
    gguf: Path
    quant: str
    base_hub: str
    context: int
    sampling: Mapping[str, float]
    system: str
    stop: str


def vllm(model: Model, out: Path) -> str:
    """Write serve.sh for vLLM on the merged model; the command."""
    sampling = {VLLM[key]: value for key, value in model.sampling.items()}
    command = ["vllm", "serve", str(model.merged.resolve()), "--served-model-name", model.name]
    command += ["--max-model-len", str(model.context), "--host", HERE, "--port", "8000"]
    command += ["--override-generation-config", json.dumps(sampling)]
    return server(model, out, "vLLM", command, 8000)


def llama_server(model: Model, out: Path) -> str:
    """Write serve.sh for llama-server on the quantised model; the command."""
    program = llamacpp.find("llama-server") or "llama-server"
    command = [str(program), "--model", str(model.gguf.resolve()), "--alias", model.name]
    command += ["--ctx-size", str(model.context), "--jinja", "--host", HERE, "--port", "8080"]
    for key, value in model.sampling.items():
        command += [LLAMA_SERVER[key], str(value)]
    return server(model, out, "llama-server", command, 8080)


def server(model: Model, out: Path, title: str, command: list[str], port: int) -> str:
    """Write one server's script and the system message of training; the command that starts it."""
    facts = {"name": model.name, "recipe": provenance_name(model), "server": title, "port": port}
    script(out / "serve.sh", "serve.sh.j2", facts | {"command": shlex.join(command)})
    (out / "system.txt").write_text(model.system, encoding="utf-8")
    return shlex.join(command)


def lmstudio(model: Model, out: Path) -> str:
    """Lay the quantised model out as LM Studio's models folder is, publisher/model/file.gguf; the importing command.

    Its layout and `lms import`: https://lmstudio.ai/docs/app/basics/import-model.
    """
    publisher = "react-recipes"
    file = out / publisher / model.name / f"{model.name}-{model.quant}.gguf"
    link(model.gguf, file)
    final = model.this.folder.resolve() / "export" / "lmstudio" / file.relative_to(out)
    command = shlex.join(["lms", "import", "--yes", "--copy", "--user-repo", f"{publisher}/{model.name}", str(final)])
    facts = {"name": model.name, "publisher": publisher, "context": model.context, "command": command}
    script(out / "import.sh", "import.sh.j2", facts)
    (out / "system.txt").write_text(model.system, encoding="utf-8")
    return command


def huggingface(model: Model, out: Path) -> str:
    """A folder to upload: merged weights, GGUF, the base's licence, a model card; the command that uploads it."""
    for path in sorted(model.merged.rglob("*")):
        if path.is_file() and path.name != files.MARK:
            link(path, out / path.relative_to(model.merged))
    link(model.gguf, out / f"{model.name}-{model.quant}.gguf")
    (out / "README.md").write_text(card(model), encoding="utf-8")
    final = str(model.this.folder.resolve() / "export" / "huggingface")
    return shlex.join(["hf", "upload", model.name, final, ".", "--exclude", files.MARK])


WRITERS: Mapping[str, Callable[[Model, Path], str]] = {
    "lmstudio": lmstudio,
    "vllm": vllm,
    "llama-server": llama_server,
    "huggingface": huggingface,
}
# Those that need the merged model; the others serve the GGUF.
MERGED = ("vllm", "huggingface")


def chosen(names: list[str]) -> list[str]:
    """The names of what to export to, all where none is given. Raises BadInput for one that there is not."""
    for name in names:
        if name not in WRITERS:
            raise BadInput(f"{name}: no such place to export to; there is {', '.join(WRITERS)}")
    return names or list(WRITERS)


def export_folder(model: Model, to: str) -> str:
    """Write export/<to>/ in the run's folder; the command that goes with it.

    Raises BadInput for a model's name that Ollama would not get from us either.
    """
    ollama.ours(model.name)
    with files.atomic(model.this.folder / "export" / to) as partial:
        partial.mkdir()
        return WRITERS[to](model, partial)


def card(model: Model) -> str:
    """The model card: what it is made from, how it did, how to use it; its head as the hub reads it.

    Metrics are those of parity.json, eval-*.json and quality.json, so far as they are there.
    """
    found = model.this.provenance()["train"]["inputs"]
    settings = read_recipe(model.this.recipe).settings
    known = catalog.model_of(model.base_hub)
    played = [orjson.loads(path.read_bytes()) for path in model.this.usual_evaluations()]
    facts = {
        "front_matter": front_matter(model, known, played),
        "name": model.name,
        "title": known.title if known else model.base_hub,
        "hub": model.base_hub,
        "licence": known.licence if known else "see there",
        "recipe": provenance_name(model),
        "recipe_hash": found["recipe"],
        "data": Path(settings["datasets"][0]["path"]).name,
        "data_hash": found["data"],
        "settings": {title: settings[key] for key, title in SETTINGS.items() if key in settings},
        "parity": json_or_none(model.this.parity),
        "played": played,
        "models": (json_or_none(model.this.folder / "quality.json") or {}).get("models"),
        "stop": model.stop,
        "system": model.system,
        "servers": hub_commands(model),
        "sampling": ", ".join(f"{key} {value}" for key, value in model.sampling.items()),
    }
    return templates.template("export/README.md.j2").render(facts)


def hub_commands(model: Model) -> str:
    """The commands that serve the model from the hub, a line each."""
    file = f"{model.name}-{model.quant}.gguf"
    commands = [
        ["vllm", "serve", model.name, "--max-model-len", str(model.context)],
        ["llama-server", "--hf-repo", model.name, "--hf-file", file, "--ctx-size", str(model.context), "--jinja"],
    ]
    return "\n".join(shlex.join([*command, "--host", HERE]) for command in commands)


def front_matter(model: Model, known: catalog.Model | None, played: Sequence[Mapping[str, Any]]) -> str:
    """The card's head in YAML, of what the hub's own library checked. `played`: what eval-*.json hold."""
    from huggingface_hub import EvalResult, ModelCardData

    licence = known.licence if known else "the base model's own"
    named = catalog.licences().get(licence)
    legal: dict[str, Any] = {"license": named.hub if named else "other"}
    if named is None:
        legal |= {"license_name": "-".join(licence.lower().split())}
        legal |= {"license_link": f"https://huggingface.co/{model.base_hub}/blob/main/LICENSE"}
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="household-rooms",
            dataset_name=f"unseen household rooms, {each['quant']}",
            metric_type="success_rate",
            metric_name="rooms won",
            metric_value=round(each["summary"]["rate"], 4),
        )
        for each in played
        if each["player"] == "tuned"
    ]
    data = ModelCardData(
        base_model=model.base_hub,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["react", "agent", "thought-action-observation", "axolotl", "gguf"],
        model_name=model.name if results else None,
        eval_results=results or None,
        **legal,
    )
    # The library's own to_yaml leaves some letters (U+0085) as they are, which no reader of YAML takes for themselves.
    return yaml.safe_dump(data.to_dict(), sort_keys=False).strip()


def provenance_name(model: Model) -> str:
    """The recipe's name with its tier, as the run's folder has it."""
    return f"{model.this.folder.parent.name}/{model.this.folder.name}"


def json_or_none(path: Path) -> dict[str, Any] | None:
    """What a JSON file of ours holds, None where there is none."""
    return orjson.loads(path.read_bytes()) if path.exists() else None


def link(source: Path, to: Path) -> None:
    """The file under a second name, without a second copy where the disk can."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.link(source, to)
        return
    shutil.copy2(source, to)


def script(path: Path, template: str, facts: Mapping[str, object]) -> None:
    """Write a script that can be run."""
    path.write_text(templates.template(f"export/{template}").render(facts), encoding="utf-8")
    path.chmod(0o755)
