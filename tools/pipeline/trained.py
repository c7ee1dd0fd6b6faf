"""What a training left: an adapter and its base, ours or another's."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tools import BadInput
from tools.core import chat_template, files, progress, quote, run_folder, trajectory
from tools.core.run_folder import Run
from tools.gguf import base, find_base
from tools.recipes.recipe import Recipe, open_recipe, read_recipe


@dataclass(frozen=True)
class Tuned:
    """An adapter and its base, ours or another's: all that the stages after training need to know of them.

    `name`: the recipe's, or the adapter folder's. `served`: its name in Ollama, where NAME= says nothing else.
    `base_name`: as the recipe or a person wrote it. `hashes`: SHA-256 of the adapter and of what it was made from
    (recipe, data, base: what is known of them). `system`: the system prompt of its data. `num_ctx`: tokens that a
    person wants it served with (NUM_CTX=), 0 to have them chosen.
    """

    run: Run
    name: str
    served: str
    adapter: Path
    base: Path
    base_name: str
    hashes: dict[str, str]
    system: str | None = None
    num_ctx: int = 0

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer and chat template of training: the adapter's, where it has them."""
        return self.adapter if any((self.adapter / name).is_file() for name in base.TOKENIZER_FILES) else self.base

    @cached_property
    def longest(self) -> int:
        """Tokens of its longest training episode, as the check noted them, else counted; 0 for another's adapter.

        Raises BadInput for data that are no longer there.
        """
        if not self.run.recipe.exists():
            return 0
        stages = self.run.provenance()
        checked = stages.get("check", {"inputs": {}})
        same = all(checked["inputs"].get(key) == stages["train"]["inputs"][key] for key in ("data", "base"))
        if same and checked.get("longest"):
            return int(checked["longest"])
        tokenizer = chat_template.tokenizer(self.tokenizer)
        episodes = trajectory.read(read_recipe(self.run.recipe).data)
        with progress.step("counting the tokens of the training data"):
            return max(base.tokens(tokenizer, episode["messages"]) for episode in episodes)

    @property
    def metadata(self) -> dict[str, str]:
        """What a GGUF says of where it is from."""
        about = {
            "general.name": self.name,
            "react_recipes.recipe": self.name,
            "react_recipes.base_model": self.base_name,
        }
        return about | {f"react_recipes.{key}_sha256": value for key, value in self.hashes.items()}


def tuned(name: str, other: str = "", adapter: str = "", tier: str = "", num_ctx: int = 0) -> Tuned:
    """What a recipe trained, or any `adapter` folder (ADAPTER=) with its base, which is `other` where it is given.

    `tier`: of the recipe; by default this machine's. `num_ctx`: see Tuned. Raises BadInput when there is none, Failed
    when its base cannot be had.
    """
    check_one(name, adapter, tier)
    if adapter:
        return of_adapter(Path(adapter), other, num_ctx)
    recipe = open_recipe(name, tier, other)
    this = recipe.run
    if not this.adapter.exists():
        raise BadInput(f"{this.adapter}: no adapter; make train RECIPE={name} makes it")
    trained = this.provenance()["train"]["inputs"]
    hashes = {key: trained[key] for key in ("recipe", "data", "base")} | {"adapter": files.sha256(this.adapter)}
    words = trajectory.system_prompt(read_recipe(this.recipe).data)
    source, served = find_base.resolve(recipe.base), name_of(recipe)
    return Tuned(this, recipe.name, served, this.adapter, source, recipe.base, hashes, words, num_ctx)


def of_adapter(folder: Path, other: str, num_ctx: int = 0) -> Tuned:
    """An adapter that no recipe of ours trained, in outputs/adapters/<its folder's name>. Raises as `tuned`."""
    from tools.gguf import lora
    from tools.training import run_axolotl

    config = lora.check_adapter(folder)
    called = other or str(config.get("base_model_name_or_path") or "")
    if not called:
        raise BadInput(f"{folder}: adapter_config.json names no base; --base (BASE=) says which")
    source = find_base.resolve(called)
    hashes = {"adapter": files.sha256(folder), "base": run_axolotl.folder_hash(source)}
    this, served = run_and_name("", str(folder))
    return Tuned(this, this.folder.name, served, folder, source, called, hashes, num_ctx=num_ctx)


def run_and_name(name: str, adapter: str = "", tier: str = "") -> tuple[Run, str]:
    """The run of a recipe or of an adapter, and its model's name in Ollama; the base is not looked for.

    Raises BadInput for a recipe that there is not.
    """
    from tools.serving import ollama

    check_one(name, adapter, tier)
    if adapter:
        called = quote.plain_name(Path(adapter).resolve().name, "an adapter")
        return Run(run_folder.outputs() / "adapters" / called), ollama.PREFIX + re.sub(r"[^\w.-]", "-", called)
    recipe = open_recipe(name, tier)
    return recipe.run, name_of(recipe)


def check_one(name: str, adapter: str, tier: str) -> None:
    """Raise BadInput unless one of a recipe and an adapter is named."""
    if adapter and (name or tier):
        raise BadInput(f"an adapter or a recipe, not both: {adapter} (ADAPTER=) and {name or tier}; leave one out")
    if not adapter and not name:
        raise BadInput("no model named: give a recipe (RECIPE=qwen7b-qlora) or an adapter's folder (ADAPTER=my-lora)")


def name_of(recipe: Recipe) -> str:
    """A recipe's model in Ollama, where NAME= says nothing else: react-smollm2 for smollm2-135m-lora."""
    from tools.serving import ollama

    return f"{ollama.PREFIX}{recipe.name.split('-')[0]}"
