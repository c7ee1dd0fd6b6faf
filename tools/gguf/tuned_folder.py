"""A tuned model's folder, as Hugging Face has them: the base's weights, and all else as training had it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tools import Failed
from tools.core import chat_template, files, hf_folder
from tools.gguf import base, lora

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCE_PIECE = "tokenizer.model"
BACKEND = "TokenizersBackend"
# What makes text of a conversation and tokens of text, in a Hugging Face folder.
TOKENIZER_PARTS = (
    *base.TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)


def assemble(base_model: Path, adapter: Path, out: Path) -> None:
    """Make a Hugging Face folder of the base's weights (links) with all else as training had it.

    Raises BadInput or Failed when its parts do not go together.
    """
    out.mkdir(parents=True)
    for item in base_model.glob("model*.safetensors*"):
        (out / item.name).symlink_to(item.resolve())
    shapes = lora.shapes(base_model)
    rows = lora.rows_after(lora.fit(lora.plan(adapter), shapes, adapter)[0], shapes, adapter)
    copy_settings(base_model, adapter, out, rows)


def assemble_tokenizer(base_model: Path, adapter: Path, out: Path) -> None:
    """Make a Hugging Face folder without weights of a base, whose own are not needed, with all else as training had it.

    Raises BadInput or Failed when its parts do not go together.
    """
    out.mkdir(parents=True)
    config = hf_folder.text_settings(files.read_object(base_model / "config.json"))
    tokens = len(chat_template.tokenizer(adapter if base.has_tokenizer(adapter) else base_model))
    copy_settings(base_model, adapter, out, max(int(config["vocab_size"]), tokens))


def copy_settings(base_model: Path, adapter: Path, out: Path, rows: int) -> None:
    """Bring all of a tuned model but its weights into its folder; `rows`: of its embedding."""
    for name in ("config.json", "generation_config.json"):
        if (base_model / name).is_file():
            shutil.copy2(base_model / name, out)
    config = files.read_object(out / "config.json")
    hf_folder.text_settings(config)["vocab_size"] = rows
    files.write_json(out / "config.json", config)
    copy_tokenizer(base_model, adapter, out, rows)


def copy_tokenizer(base_model: Path, adapter: Path, out: Path, rows: int) -> None:
    """Bring tokenizer, chat template, end token and generation settings of training into a merged folder `out`.

    `rows`: of the model's embedding. Raises Failed when the tokenizer has more tokens than that.
    """
    source = copy_tokenizer_files(base_model, adapter, out)
    tokenizer = chat_template.tokenizer(out)
    if len(tokenizer) > rows:
        raise Failed(f"{source}: its tokenizer has {len(tokenizer)} tokens and the base an embedding of {rows}")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    ids = {name: number for name, number in ids.items() if number is not None}
    generation = adapter / "generation_config.json"
    if generation.is_file():
        shutil.copy2(generation, out)
    for path in [out / "config.json", *([] if generation.is_file() else [out / "generation_config.json"])]:
        settings = hf_folder.settings(path)
        ends = hf_folder.end_ids(path)
        several = isinstance(settings.get("eos_token_id"), list)
        settings |= ids
        if several:  # some models end a turn and a text with different tokens
            own = [number for name, number in ids.items() if name == "eos_token_id"]
            settings["eos_token_id"] = list(dict.fromkeys([*own, *ends]))
        files.write_json(path, settings)
    name_class(base_model, out)
    if (base_model / SENTENCE_PIECE).is_file() and "\u2581a" in tokenizer.get_vocab():
        for_converter(base_model, out, tokenizer)


def copy_tokenizer_files(base_model: Path, adapter: Path, out: Path) -> Path:
    """Copy the files of training's tokenizer, which lie beside the adapter or with the base, into `out`; from where.

    A chat template that was not saved with it is the base's. Raises BadInput for templates none of which is the
    default.
    """
    source = adapter if base.has_tokenizer(adapter) else base_model
    for name in TOKENIZER_PARTS:
        if (source / name).is_dir():
            shutil.copytree(source / name, out / name)
        elif (source / name).is_file():
            shutil.copy2(source / name, out / name)
    if chat_template.default_text(source) is None and (text := chat_template.default_text(base_model)):
        (out / "chat_template.jinja").write_text(text, encoding="utf-8")
    return source


def name_class(base_model: Path, out: Path) -> None:
    """Name the tokenizer's class in `out` as the base does, where transformers 5 saved the name of its own backend.

    transformers 4 does not know that name, and llama.cpp's converter (0.3.36, Phi3MiniModel) tells Phi 4 from Phi 3 by
    the base's. transformers 5 looks at the model's type too, and comes to the same tokenizer as training did.
    """
    settings, theirs = (hf_folder.settings(folder / "tokenizer_config.json") for folder in (out, base_model))
    if settings.get("tokenizer_class") == BACKEND and "tokenizer_class" in theirs:
        files.write_json(out / "tokenizer_config.json", settings | {"tokenizer_class": theirs["tokenizer_class"]})


def for_converter(base_model: Path, out: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Bring what llama.cpp's converter reads of a SentencePiece `tokenizer` into its folder `out`, or tokens differ.

    transformers 5 saves no tokenizer.model: without it the converter (0.3.36, LlamaHfVocab) gives each token the same
    score, and added tokens it knows by the key of transformers 4. Whether a text begins with the token for that is not
    saved either, and taken for granted. It takes add_prefix_space for a space after each control token; transformers
    means the beginning of a text alone, unless the tokenizer does otherwise.
    """
    settings = hf_folder.settings(out / "tokenizer_config.json")
    if not (out / SENTENCE_PIECE).is_file():
        shutil.copy2(base_model / SENTENCE_PIECE, out)
        added = tokenizer.added_tokens_decoder.items()
        settings["added_tokens_decoder"] = {str(number): token.__getstate__() for number, token in added}
    settings["add_bos_token"] = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    control = tokenizer.bos_token or tokenizer.eos_token
    if tokenizer.tokenize(f"{control}a")[-1] == "a":
        settings["add_prefix_space"] = False
    files.write_json(out / "tokenizer_config.json", settings)
