"""The base model that a recipe or a person names: a folder, a model of the hub, or one that comes in a package."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tools import BadInput, Failed
from tools.core import catalog, chat_template, files, progress, run_folder
from tools.gguf import adapter_config, base, convert, unpack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def resolve(name: str) -> Path:
    """The folder of the base model that a recipe's `base_model` or BASE= names.

    A folder is checked and used; one that a run merges is there only once it did. The hub id (or key) of a model in the
    catalog that has a package is made from that package, without a model hub. Any other org/name comes from the hub.
    Raises BadInput for anything else and for a folder that cannot be used, Failed when the hub cannot give it.
    """
    place = run_folder.placed(name)
    if os.path.isdir(place):
        return base.check_folder(Path(place))
    if run := re.fullmatch(r"outputs/([^/]+)/([^/]+)/merged/?", name):
        merge = f"make merge RECIPE={run[2]} TIER={run[1]}"
        raise BadInput(f"{name}: not merged yet; {merge} makes it of the tuned adapter")
    for model in catalog.models().values():
        if model.package and name in {model.hub, model.key}:
            return packaged(model)
    return base.check_folder(base.from_hub(base.hub_name(name)))


def same(one: str, other: str) -> bool:
    """Whether two names are of the same base: the same folder, or the same model of the catalog."""
    if os.path.isdir(one) and os.path.isdir(other):
        return os.path.samefile(one, other)
    made_of = {files.read_object(Path(each) / "base.json").get("hub") for each in (one, other) if is_packaged(each)}
    named = {model.hub if model else each for each in (one, other) for model in [catalog.model_of(each)]}
    return len(named) == 1 or bool(made_of & named)


def is_packaged(name: str) -> bool:
    """Whether a name is the folder of a base that was made of a package; its base.json says which model it is."""
    return os.path.isfile(os.path.join(name, "base.json"))


def here(name: str) -> Path | None:
    """The folder of a base that is on this machine already, by a folder's name or a hub id; None where it is not."""
    import huggingface_hub

    if os.path.isdir(name):
        return Path(name)
    if not base.HUB_NAME.fullmatch(name):
        return None
    config = huggingface_hub.try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def alike(one: Path, other: Path) -> bool:
    """Whether two bases can be the same weights, by what is quick to read: every norm and bias that both have.

    They are small, no quantisation changes them, and two trainings leave them different.
    """
    import torch
    from safetensors import safe_open

    def small(folder: Path) -> dict[str, torch.Tensor]:
        found = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if len(file.get_slice(name).get_shape()) == 1:
                        found[adapter_config.text_name(name)] = file.get_tensor(name).float()
        return found

    mine, theirs = small(one), small(other)
    both = [name for name in mine.keys() & theirs.keys() if mine[name].shape == theirs[name].shape]
    return all(torch.allclose(mine[name], theirs[name], rtol=1e-2, atol=1e-3) for name in both)


def tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer that a folder, a catalog model or a hub id names, or that of the catalog's packaged model for "".

    A folder needs no weights here. Raises BadInput for a folder that holds no tokenizer,
    Failed when the hub cannot give it.
    """
    models = [model for model in catalog.models().values() if model.package and name in {"", model.hub, model.key}]
    if os.path.isdir(name):
        where = Path(name)
        base.refuse_code(where)
    else:
        where = packaged(models[0]) if models else base.tokenizer_folder(name)
    return chat_template.tokenizer(where)


def packaged(model: catalog.Model) -> Path:
    """The Hugging Face folder of a catalog model that comes in a package, made once into the cache.

    llama.cpp's converter makes a GGUF of it again, whose tokenizer must be the package's own. Raises Failed when the
    package cannot be had, or when the proof finds a difference.
    """
    assert model.package
    folder = run_folder.cache() / "base" / f"{model.title.lower()}-{run_folder.pinned_version(model.package.project)}"
    if not folder.is_dir():
        with files.locked(folder):
            if not folder.is_dir():  # Else another process made it while this one waited.
                make(model, model.package, folder)
    return folder


def make(model: catalog.Model, package: catalog.Package, folder: Path) -> None:
    """Make the folder of a packaged model and prove its tokenizer; see `packaged`. Raises Failed."""
    version = run_folder.pinned_version(package.project)
    started = f"{model.title}: downloading {package.project} {version}"
    with progress.step(started) as shown, files.atomic(folder) as partial:
        work = partial / "work"
        packed = unpack.file_of_wheel(run_folder.download(package.project, work), package.gguf, work)
        shown.update(title=f"{model.title}: making a Hugging Face folder of its GGUF")
        source = {"package": f"{package.project}=={version}", "gguf": packed.name, "gguf_sha256": files.sha256(packed)}
        unpack.unpack_gguf(packed, partial, package.pre_tokenizer)
        for text in work.glob("*.dist-info/LICENSE"):
            text.rename(partial / "LICENSE")
        files.write_json(partial / "base.json", {"hub": model.hub, "licence": model.licence} | source)
        convert.to_gguf(partial, work / "proof.gguf")
        shown.update(title=f"{model.title}: comparing its tokenizer with the original")
        if differences := unpack.tokenizer_differences(packed, work / "proof.gguf"):
            raise Failed(
                f"{model.title}: the tokenizer made from {packed.name} is not its own: {'; '.join(differences)}"
            )
        files.remove(work)
