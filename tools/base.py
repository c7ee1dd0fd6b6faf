"""A base model's folder: from the hub, a path, or a package that holds its GGUF; its tokenizer proven."""

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tools import BadInput, Failed, catalog, files, gguf_header, hf_folder, progress, run
from tools.hf_folder import check_safetensors

# The names of a llama model's tensors in a GGUF and in a Hugging Face folder.
LLAMA_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Type of a special token in a GGUF (gguf.TokenType.CONTROL).
CONTROL = 3
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")
# As huggingface_hub's validate_repo_id has it, with an organisation.
HUB_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
HUB_NAME = re.compile(rf"(?=.{{1,96}}\Z)(?!.*(?:--|\.\.)){HUB_PART}/{HUB_PART}")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*"]
# The special tokens, as tokenizer_config.json and as a GGUF name them.
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
# All that decides how text becomes tokens, in a GGUF.
TOKENIZER_KEYS = (
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.chat_template",
)


def resolve(name: str, convert: Callable[[Path, Path], None]) -> Path:
    """The folder of the base model that a recipe's `base_model` or BASE= names.

    A folder is checked and used. The hub id (or key) of a model in the catalog that has a package is made from that
    package, without a model hub: see `packaged`, which says what `convert` is. Any other org/name comes from the hub.
    Raises BadInput for anything else and for a folder that cannot be used, Failed when the hub cannot give it.
    """
    if os.path.isdir(name):
        return check(Path(name))
    for model in catalog.models().values():
        if model.package and name in {model.hub, model.key}:
            return packaged(model, convert)
    return check(from_hub(hub_name(name)))


def hub_name(name: str) -> str:
    """A name on the hub, org/name, as it is. Raises BadInput for what cannot be one: the hub is not asked for it."""
    if not HUB_NAME.fullmatch(name):
        raise BadInput(f"{name[:100]!r}: neither a folder nor a model hub's org/name")
    return name


def tokenizer_folder(name: str) -> Path:
    """The folder with the tokenizer and chat template of a base model (a folder or a hub id), weights or not.

    Raises BadInput for anything else and for a folder that cannot be used, Failed when the hub cannot give it.
    """
    if os.path.isdir(name):
        folder = Path(name)
    else:
        folder = from_hub(hub_name(name), [pattern for pattern in HUB_PATTERNS if pattern != "*.safetensors"])
    refuse_code(folder)
    need_tokenizer(folder)
    return folder


def from_hub(name: str, patterns: Sequence[str] = HUB_PATTERNS) -> Path:
    """Download a model from the Hugging Face hub (only what is not there yet): weights as safetensors, never pickle.

    Returns its folder in the hub's own cache. Raises Failed in one line when it cannot be had.
    """
    import httpx
    import huggingface_hub

    try:
        with progress.bar(f"{name}: downloading from the model hub", unit="bytes") as shown:
            counts = counting(shown)
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), tqdm_class=counts))
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Failed(f"{name} cannot be had from the model hub: {first}; give a folder with BASE=path") from error
    model = next((each for each in catalog.models().values() if each.hub == name), None)
    return without_auto_map(folder, model.title) if model and model.auto_map else folder


def counting(shown: progress.Work) -> Any:
    """A class in place of the hub's progress bars: it draws nothing and tells `shown` how many bytes have come."""
    from tqdm import tqdm

    class Counting(tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)  # huggingface_hub's own
            self.of_bytes = options.get("unit") == "B"
            super().__init__(*arguments, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            if self.of_bytes:
                shown.update(shown.last[1] + (n or 0), self.total)

    return Counting


def without_auto_map(snapshot: Path, title: str) -> Path:
    """A folder of our own in the cache with links to all of a hub's `snapshot`, its settings less their auto_map.

    For models of the catalog that transformers has had a class for since: nothing that is downloaded names code.
    """
    folder = run.cache() / "base" / f"{title.lower()}-{snapshot.name[:12]}"
    there = {path.name: path for path in snapshot.iterdir() if path.is_file()}
    with files.locked(folder):
        if folder.is_dir() and {path.name for path in folder.iterdir() if path.is_file()} - {files.MARK} == set(there):
            return folder
        with files.whole(folder) as partial:
            partial.mkdir()
            for name, path in there.items():
                if path.match("*config*.json"):
                    settings = hf_folder.settings(path)
                    settings.pop("auto_map", None)
                    files.write_json(partial / name, settings)
                else:
                    (partial / name).symlink_to(path.resolve())
    return folder


def check(folder: Path) -> Path:
    """`folder`, when it can be a base model: config.json, a tokenizer, and whole weights as safetensors; no code.

    Raises BadInput that says what is missing or wrong.
    """
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: not a base folder: it has no config.json")
    if (folder / "adapter_config.json").exists():
        raise BadInput(f"{folder}: not a base folder but an adapter (adapter_config.json); ADAPTER= takes it")
    weights = {item.name for item in folder.glob("*.safetensors")}
    if missing := sorted((hf_folder.shards(folder) or set()) - weights):
        raise BadInput(f"{folder}: a base folder without all its weights: {missing[0]} is missing")
    if not weights:
        pickled = hf_folder.pickles(folder)
        why = f"{pickled[0].name} is pickle, which can run code" if pickled else "it has no *.safetensors"
        raise BadInput(f"{folder}: a base folder without weights: {why}; save the model as safetensors")
    refuse_code(folder)
    hf_folder.check_sizes(folder / "config.json")
    need_tokenizer(folder)
    for item in sorted(weights):
        check_safetensors(folder / item)
    return folder


def refuse_code(folder: Path) -> None:
    """Raise BadInput where something in a base's folder is pickle or names code to run, or is too large to be read."""
    if pickled := hf_folder.pickles(folder):
        why = "is pickle, which can run code; remove it: weights are read from *.safetensors alone"
        raise BadInput(f"{folder}: a base folder where {pickled[0].name} {why}")
    hf_folder.check(folder)


def need_tokenizer(folder: Path) -> None:
    """Raise BadInput unless a tokenizer's file is in a base's folder."""
    if not any((folder / item).is_file() for item in TOKENIZER_FILES):
        raise BadInput(f"{folder}: a base folder without a tokenizer: none of {', '.join(TOKENIZER_FILES)}")


def tokenizer(name: str, convert: Callable[[Path, Path], None]) -> Any:
    """The tokenizer that a folder, a catalog model or a hub id names, or that of the catalog's packaged model for "".

    A folder needs no weights here. `convert`: see `packaged`. Raises BadInput for a folder that holds no tokenizer,
    Failed when the hub cannot give it.
    """
    from tools import chat_template

    models = [model for model in catalog.models().values() if model.package and name in {"", model.hub, model.key}]
    if os.path.isdir(name):
        where = Path(name)
        refuse_code(where)
    else:
        where = packaged(models[0], convert) if models else tokenizer_folder(name)
    return chat_template.tokenizer(where)


def tokens(tokenizer: Any, messages: list[dict[str, Any]]) -> int:
    """How many tokens a conversation is, in the tokenizer's chat template; without a template, its texts alone."""
    import jinja2

    if tokenizer.chat_template:
        with contextlib.suppress(jinja2.TemplateError):  # It refuses turns out of order.
            return len(tokenizer.apply_chat_template(messages, return_dict=False))
    return sum(len(tokenizer.encode(str(turn.get("content")), add_special_tokens=False)) for turn in messages)


def packaged(model: catalog.Model, convert: Callable[[Path, Path], None]) -> Path:
    """The Hugging Face folder of a catalog model that comes in a package, made once into the cache.

    `convert(folder, gguf)` makes an f16 GGUF of a Hugging Face folder with llama.cpp's converter: it proves the new
    tokenizer. Raises Failed when the package cannot be had, or when the proof finds a difference.
    """
    assert model.package
    folder = run.cache() / "base" / f"{model.title.lower()}-{pinned_version(model.package.project)}"
    if not folder.is_dir():
        with files.locked(folder):
            if not folder.is_dir():  # Else another process made it while this one waited.
                make(model, model.package, folder, convert)
    return folder


def make(model: catalog.Model, package: catalog.Package, folder: Path, convert: Callable[[Path, Path], None]) -> None:
    """Make the folder of a packaged model, whole and its tokenizer proven; see `packaged`. Raises Failed."""
    version = pinned_version(package.project)
    started = f"{model.title}: downloading {package.project} {version}"
    with progress.step(started) as shown, files.whole(folder) as partial:
        work = partial / "work"
        gguf = unpack(run.download(package.project, work), package.gguf, work)
        shown.update(title=f"{model.title}: making a Hugging Face folder of its GGUF")
        source = {"package": f"{package.project}=={version}", "gguf": gguf.name, "gguf_sha256": files.sha256(gguf)}
        unpack_gguf(gguf, partial, package.pre_tokenizer)
        for text in work.glob("*.dist-info/LICENSE"):
            text.rename(partial / "LICENSE")
        files.write_json(partial / "base.json", {"hub": model.hub, "licence": model.licence} | source)
        convert(partial, work / "proof.gguf")
        shown.update(title=f"{model.title}: comparing its tokenizer with the original")
        if differences := tokenizer_differences(gguf, work / "proof.gguf"):
            raise Failed(f"{model.title}: the tokenizer made from {gguf.name} is not its own: {'; '.join(differences)}")
        files.remove(work)


def end_texts(*folders: Path) -> list[str]:
    """The texts of all tokens that end an answer, as tokenizer and generation settings in the folders name them.

    A tokenizer names one, eos; generation_config.json may name more, such as the end of a turn beside that of a text.
    A folder that is not there, or holds neither, adds nothing. Raises BadInput for what cannot be such a name.
    """
    texts: list[str] = []
    for folder in folders:
        settings, ids = folder / "tokenizer_config.json", hf_folder.end_ids(folder / "generation_config.json")
        eos = hf_folder.settings(settings).get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if eos is not None and not isinstance(eos, str):
            raise hf_folder.wrong(settings, "eos_token", eos, "a text")
        tokens = added_tokens(folder / "tokenizer.json") if ids else {}
        texts += [each for each in (eos, *map(tokens.get, ids)) if each]
    return list(dict.fromkeys(texts))


def added_tokens(path: Path) -> dict[int, str]:
    """The added tokens of a tokenizer.json by their ids. Raises BadInput for what cannot be such."""
    found = hf_folder.settings(path).get("added_tokens") or []
    try:
        return {int(each["id"]): str(each["content"]) for each in found}
    except (TypeError, ValueError, KeyError) as error:
        raise hf_folder.wrong(path, "added_tokens", found, "a list of tokens, each with id and content") from error


def pinned_version(project: str) -> str:
    """The version of a package in downloads.lock."""
    lines = (run.ROOT / "downloads.lock").read_text().splitlines()
    return next(line.split()[0].partition("==")[2] for line in lines if line.startswith(f"{project}=="))


def unpack(wheel: Path, name: str, folder: Path) -> Path:
    """Unpack one file of a wheel, and its licence, into `folder`; the file's path.

    Raises Failed for a wheel without it, and for one with a name that leads out of the folder.
    """
    with zipfile.ZipFile(wheel) as archive:
        wanted = [item for item in archive.namelist() if item == name or item.endswith("/LICENSE")]
        if name not in wanted or any(Path(item).is_absolute() or ".." in Path(item).parts for item in wanted):
            raise Failed(f"{wheel.name}: {name} cannot be unpacked; it is another file than the one that was pinned")
        archive.extractall(folder, wanted)
    return folder / name


def unpack_gguf(gguf: Path, folder: Path, pre_tokenizer: dict[str, Any]) -> None:
    """Write what a llama GGUF holds as a Hugging Face folder: weights in bfloat16, configuration, tokenizer, template.

    `pre_tokenizer` is the part of tokenizer.json that a GGUF does not hold. Raises Failed for another architecture,
    BadInput for a file that is no GGUF.
    """
    gguf_header.read(gguf)
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(gguf)
    if (architecture := value(reader, "general.architecture")) != "llama":
        raise Failed(f"{gguf.name}: its architecture is {architecture}; only llama can be unpacked")
    save_file(dict(llama_weights(reader)), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library makes it for its owner alone
    write_config(reader, folder)
    write_tokenizer(reader, folder, pre_tokenizer)


def value(reader: Any, key: str) -> Any:
    """One value of a GGUF's metadata, None where it has none."""
    field = reader.get_field(key)
    return field.contents() if field else None


def llama_weights(reader: Any) -> Iterator[tuple[str, Any]]:
    """The tensors of a llama GGUF, dequantised to bfloat16, under their Hugging Face names."""
    import torch
    from gguf.quants import dequantize

    count = "llama.attention.head_count"
    heads = {"attn_q": value(reader, count), "attn_k": value(reader, f"{count}_kv")}
    for tensor in reader.tensors:
        *block, name, _ = tensor.name.split(".")  # blk.7.attn_q.weight
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type)).to(torch.bfloat16)
        if name in heads:
            # llama.cpp rotates neighbouring rows, transformers the halves of a head: the converter interleaves them.
            weight = weight.reshape(heads[name], -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
        layer = f"model.layers.{block[1]}." if block else ""
        yield f"{layer}{LLAMA_TENSORS[name]}.weight", weight.contiguous()


def write_config(reader: Any, folder: Path) -> None:
    """Write config.json and generation_config.json of a llama GGUF."""
    from transformers import LlamaConfig

    llama = {key.removeprefix("llama."): value(reader, key) for key in reader.fields if key.startswith("llama.")}
    special = {name: value(reader, f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items() if name != "unk"}
    ids = {f"{name}_token_id": number for name, number in special.items()}
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=llama["vocab_size"],
        hidden_size=llama["embedding_length"],
        intermediate_size=llama["feed_forward_length"],
        num_hidden_layers=llama["block_count"],
        num_attention_heads=llama["attention.head_count"],
        num_key_value_heads=llama["attention.head_count_kv"],
        max_position_embeddings=llama["context_length"],
        rope_parameters={"rope_type": "default", "rope_theta": llama["rope.freq_base"]},
        # A GGUF holds float32: 9.999999747378752e-06 is 1e-05.
        rms_norm_eps=float(f"{llama['attention.layer_norm_rms_epsilon']:.7g}"),
        tie_word_embeddings=not any(tensor.name == "output.weight" for tensor in reader.tensors),
        dtype="bfloat16",
        **ids,
    ).save_pretrained(folder)
    files.write_json(folder / "generation_config.json", ids)


def write_tokenizer(reader: Any, folder: Path, pre_tokenizer: dict[str, Any]) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja of a GGUF with a byte-level BPE vocabulary.

    From the GGUF's own tokens, token types and merges: transformers' GGUF loader makes control tokens ordinary text.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokens, types = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    control = [{"id": i, "content": token} | plain for i, token in enumerate(tokens) if types[i] == CONTROL]
    merges = [merge.split(" ") for merge in value(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    parts = {
        "version": "1.0",
        "added_tokens": control,
        "pre_tokenizer": pre_tokenizer,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    special = {name: value(reader, f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        add_prefix_space=value(reader, "tokenizer.ggml.add_space_prefix"),
        clean_up_tokenization_spaces=False,
        model_max_length=value(reader, "llama.context_length"),
        **{f"{name}_token": tokens[number] for name, number in special.items() if number is not None},
    )
    tokenizer.chat_template = value(reader, "tokenizer.chat_template")
    tokenizer.save_pretrained(folder)


def tokenizer_differences(a: Path, b: Path) -> list[str]:
    """How the tokenizers and chat templates of two GGUF files differ, a readable line each; empty when they do not."""
    from gguf import GGUFReader

    first, second = GGUFReader(a), GGUFReader(b)
    lines = []
    for key in TOKENIZER_KEYS:
        mine, theirs = value(first, key), value(second, key)
        if mine == theirs:
            continue
        if not isinstance(mine, list) or not isinstance(theirs, list):
            lines.append(f"{key}: {mine!r} and {theirs!r}")
        elif len(mine) != len(theirs):
            lines.append(f"{key}: {len(mine)} and {len(theirs)} entries")
        else:
            wrong = [i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]]
            i = wrong[0]
            lines.append(f"{key}: {len(wrong)} differ, the first is {i}: {mine[i]!r} and {theirs[i]!r}")
    return lines
