"""What a training left: an adapter and its base, ours or another's."""

import os
import re
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tools import BadInput
from tools.core import catalog, chat_template, files, hf_folder, preference, progress, quote, run_folder
from tools.core.run_folder import Run
from tools.gguf import adapter_config, base, find_base, tuned_folder
from tools.recipes.recipe import Recipe, open_recipe, read_recipe

# Names that folders of many trainings have: the folder's above it is added to them.
COMMON_NAME = re.compile(r"checkpoint-\d+|adapter|default|final|last|merged|model")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Tuned:
    """A tuned model, ours or another's: all that the stages after training need to know of it.

    `name`: the recipe's, or that of the folder with its hash. `served`: its name in Ollama, where NAME= says nothing
    else. `adapter`: None where training left whole weights, or the adapter is merged already. `base`: the folder of
    weights that the adapter is added to; without an adapter those of the tuned model itself. `before`: the base as it
    was before training, to compare with; None where it is not known. `base_name`: as the recipe or a person wrote it.
    `hashes`: SHA-256 of what training left ("adapter") and of what it was made from (recipe, data, base: what is known
    of them). `system`: the system prompt of its data. `num_ctx`: tokens that a person wants it served with (NUM_CTX=),
    0 to have them chosen.
    """

    run: Run
    name: str
    served: str
    adapter: Path | None
    base: Path
    before: Path | None
    base_name: str
    hashes: dict[str, str]
    system: str | None = None
    num_ctx: int = 0

    @cached_property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer and chat template of training: the adapter's, where it has them.

        Where a chat template was not saved beside the adapter's tokenizer, a folder of the run has both, with the
        base's template; that is said on stderr. Raises BadInput for templates none of which is the default.
        """
        if not self.adapter or not base.has_tokenizer(self.adapter):
            return self.base
        if chat_template.default_text(self.adapter) or not chat_template.default_text(self.base):
            return self.adapter
        print(f"{self.adapter}: no chat template beside its tokenizer; the base's is taken", file=sys.stderr)
        both = self.run.folder / "tokenizer"
        files.remove(both)
        with files.atomic(both) as partial:
            partial.mkdir()
            tuned_folder.copy_tokenizer_files(self.base, self.adapter, partial)
            if (self.adapter / "generation_config.json").is_file():
                shutil.copy2(self.adapter / "generation_config.json", partial)
        return both

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
        episodes = preference.conversations(read_recipe(self.run.recipe).data)
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


def tuned(name: str, other: str = "", folder: str = "", tier: str = "", num_ctx: int = 0) -> Tuned:
    """What a recipe trained, or any `folder` of an adapter (ADAPTER=) or a whole tuned model (MODEL=).

    `other`: the base (BASE=), where it is not the recipe's or the one that the folder names. `tier`: of the recipe; by
    default this machine's. `num_ctx`: see Tuned. Raises BadInput when there is none, Failed when its base cannot be
    had.
    """
    check_one(name, folder, tier)
    if folder:
        return of_folder(located(folder), other, num_ctx)
    recipe = open_recipe(name, tier, other)
    this = recipe.run
    if not this.adapter.exists():
        raise BadInput(f"{this.adapter}: no adapter; make train RECIPE={name} makes it")
    trained = this.provenance()["train"]["inputs"]
    hashes = {key: trained[key] for key in ("recipe", "data", "base")} | {"adapter": files.sha256(this.adapter)}
    first = next(preference.conversations(read_recipe(this.recipe).data))["messages"][0]
    words = str(first["content"]) if first["role"] == "system" else None
    source, served = find_base.resolve(recipe.base), name_of(recipe)
    adapter, weights = (None, this.adapter) if whole(this.adapter) else (this.adapter, source)
    return Tuned(this, recipe.name, served, adapter, weights, source, recipe.base, hashes, words, num_ctx)


def whole(folder: Path) -> bool:
    """Whether a folder holds a whole model, and no adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def located(name: str) -> Path:
    """The folder of the adapter or whole model that a person names: a folder, one of its checkpoints, or a hub's id.

    Which one was taken is said on stderr. Raises BadInput where there is none, Failed where the hub cannot give it.
    """
    folder = Path(name)
    if not folder.is_dir():
        if not base.HUB_NAME.fullmatch(name):
            raise BadInput(f"{quote.visible(name)}: no such folder, and no model hub's org/name")
        return base.from_hub(name)
    if whole(folder) or (folder / "adapter_config.json").is_file():
        return folder
    found = [each for each in sorted(folder.iterdir()) if whole(each) or (each / "adapter_config.json").is_file()]
    steps = {int(match[1]): each for each in found if (match := CHECKPOINT.fullmatch(each.name))}
    if steps:
        taken, why = steps[max(steps)], "the newest checkpoint"
    elif len(found) == 1:
        taken, why = found[0], "what is in it"
    elif found:
        raise BadInput(f"{folder}: it holds {', '.join(each.name for each in found)}; name one of them")
    else:
        return folder  # What it lacks is said where it is read.
    print(f"{folder}: taken is {why}, {taken}", file=sys.stderr)
    return taken


def of_folder(folder: Path, other: str, num_ctx: int = 0) -> Tuned:
    """An adapter or a whole model that no recipe of ours trained, in outputs/adapters/. Raises as `tuned`."""
    from tools.training import run_axolotl

    hashes = {"adapter": files.sha256(folder)}
    this, served = named_by_folder(folder, hashes["adapter"])
    if whole(folder):
        before = find_base.resolve(other) if other else None
        own = hf_folder.settings(folder / "config.json").get("_name_or_path")
        called = other or (own if isinstance(own, str) else "")
        hashes |= {"base": run_axolotl.folder_hash(before)} if before else {}
        return Tuned(this, this.folder.name, served, None, folder, before, called, hashes, num_ctx=num_ctx)
    own = str(adapter_config.check_adapter(folder).get("base_model_name_or_path") or "")
    source, called = base_of(folder, own, other), other or own
    hashes |= {"base": run_axolotl.folder_hash(source)}
    return Tuned(this, this.folder.name, served, folder, source, source, called, hashes, num_ctx=num_ctx)


def base_of(folder: Path, own: str, other: str) -> Path:
    """The base of an adapter in `folder`: `other` (BASE=), else its `own`, which adapter_config.json names.

    Says so on stderr where they have two names. Raises BadInput where there is none, or the two have other weights.
    """
    path = folder / "adapter_config.json"
    if not other and not own:
        raise BadInput(f"{folder}: adapter_config.json names no base; --base (BASE=) says which")
    if not other and not os.path.isdir(own) and not base.HUB_NAME.fullmatch(own) and own not in catalog.models():
        raise BadInput(f"{path}: base_model_name_or_path is {quote.visible(own)}, which is not here; BASE= says where")
    source = find_base.resolve(other or own)
    if other and own and not find_base.same(other, own):
        print(f"{folder}: trained over {quote.visible(own)} by its own words, and added to {other}", file=sys.stderr)
        there = find_base.here(own)
        if there and not find_base.alike(there, source):
            raise BadInput(f"{other}: its weights are not those of {there}, which {path} names; BASE={own}")
    return source


def named_by_folder(folder: Path, sha256: str) -> tuple[Run, str]:
    """The run of an adapter or a whole model of this folder, kept apart from others by its hash; its name in Ollama."""
    from tools.serving import ollama

    where = folder.resolve()
    called = f"{where.parent.name}-{where.name}" if COMMON_NAME.fullmatch(where.name) else where.name
    called = quote.plain_name(called, "an adapter")
    this = Run(run_folder.outputs() / "adapters" / f"{called}-{sha256[:8]}")
    return this, ollama.PREFIX + re.sub(r"[^\w.-]", "-", called)


def run_and_name(name: str, folder: str = "", tier: str = "") -> tuple[Run, str]:
    """The run of a recipe or of a folder, and its model's name in Ollama; the base is not looked for.

    Raises BadInput for a recipe or a folder that there is not.
    """
    check_one(name, folder, tier)
    if folder:
        where = located(folder)
        return named_by_folder(where, files.sha256(where))
    recipe = open_recipe(name, tier)
    return recipe.run, name_of(recipe)


def check_one(name: str, folder: str, tier: str) -> None:
    """Raise BadInput unless one of a recipe and a folder is named."""
    if folder and (name or tier):
        raise BadInput(f"a folder or a recipe, not both: {folder} and {name or tier}; leave one out")
    if not folder and not name:
        raise BadInput(
            "no model named: give a recipe (RECIPE=qwen7b-qlora), an adapter's folder (ADAPTER=my-lora) or a whole "
            "model's (MODEL=my-model)"
        )


def name_of(recipe: Recipe) -> str:
    """A recipe's model in Ollama, where NAME= says nothing else: react-smollm2 for smollm2-135m-lora."""
    from tools.serving import ollama

    return f"{ollama.PREFIX}{recipe.name.split('-')[0]}"
