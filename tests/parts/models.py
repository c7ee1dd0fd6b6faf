"""Small random models of every architecture, with true vocabularies and chat templates: a hub's folder, in seconds.

llama.cpp's source holds vocabularies (as GGUF, without the rest of a tokenizer) and chat templates; mistral_common
holds Mistral's, and litellm tiktoken's, which are Phi 4's; what else makes text of tokens (the pre-tokenizer's pattern,
a normaliser) is written here as in the model's own tokenizer.json. llama.cpp's converter knows true vocabularies by a
hash of what they make of a long text: one that was not the model's would be refused.
"""

import json
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.core import files, run_folder
from tools.gguf import llamacpp, unpack

# As the models' tokenizer.json have them: how text is split before byte-level BPE. The digits are what differs.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Phi 4 mini's, and the two vocabularies by their files in litellm: Phi 4's has SPLIT with digits in threes.
SPLIT_BY_CASE = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TIKTOKEN = {
    "cl100k": ("9b5ad71b2ce5302211f9c61530b329a4922fc6a4", SPLIT.replace("DIGITS", "{1,3}")),
    "o200k": ("fb374d419588a4632f3f557e76b4b70aebbca790", SPLIT_BY_CASE),
}
# Phi 4's tokens beyond tiktoken's: https://huggingface.co/microsoft/phi-4, and Phi-4-mini-instruct.
PHI4_WORDS = {100257: "<|endoftext|>", 100258: "<|fim_prefix|>", 100259: "<|fim_middle|>", 100260: "<|fim_suffix|>"}
PHI4_WORDS |= {100264: "<|im_start|>", 100265: "<|im_end|>", 100266: "<|im_sep|>", 100276: "<|endofprompt|>"}
for number, free in enumerate(sorted(set(range(100256, 100352)) - set(PHI4_WORDS))):
    PHI4_WORDS[free] = f"<|dummy_{number}|>"
PHI4_MINI_NAMES = "endofprompt assistant end user system tool /tool tool_call /tool_call tool_response tag"
PHI4_MINI_WORDS = {199999: "<|endoftext|>"}
PHI4_MINI_WORDS |= {200018 + number: f"<|{name}|>" for number, name in enumerate(PHI4_MINI_NAMES.split())}
PHI4 = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}"
    "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}"
    "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
PHI4_MINI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not "
    "none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + "
    "'<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
# What Qwen3's vocabulary has beyond Qwen2's; they are no control tokens (its tokenizer_config.json).
QWEN3_WORDS = {151657: "<tool_call>", 151658: "</tool_call>", 151665: "<tool_response>", 151666: "</tool_response>"}
QWEN3_WORDS |= {151667: "<think>", 151668: "</think>"}
# Gemma 4 has Gemma 2's and 3's vocabulary but for the names of its turns.
GEMMA_TURNS = {105: "<start_of_turn>", 106: "<end_of_turn>"}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}


@dataclass(frozen=True)
class Kind:
    """One architecture: transformers' name of it, its vocabulary's and template's names, its special tokens.

    `template`: a file of llama.cpp's models/templates, or of Axolotl's chat templates, or a template's text. `own`:
    changes of SIZES. `strips`: the sides on which its special tokens take white space away. `sees`: the settings of the
    part that sees images, where it has one.
    """

    model_type: str
    vocabulary: str
    template: str
    eos: str
    bos: str | None = None
    pad: str | None = None
    words: dict[int, str] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    strips: tuple[str, ...] = ()
    sees: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "qwen2": Kind("qwen2", "qwen2", "Qwen-Qwen2.5-7B-Instruct", "<|im_end|>", pad="<|endoftext|>"),
    "qwen3": Kind(
        "qwen3", "qwen2", "Qwen-Qwen3-0.6B", "<|im_end|>", None, "<|endoftext|>", QWEN3_WORDS, {"head_dim": 32}
    ),
    "llama": Kind(
        "llama", "llama-bpe", "meta-llama-Llama-3.2-3B-Instruct", "<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>"
    ),
    "mistral": Kind("mistral", "mistral", "mistral_v2v3", "</s>", "<s>"),
    "gemma2": Kind(
        "gemma2", "gemma-4", "google-gemma-2-2b-it", "<end_of_turn>", "<bos>", "<pad>", GEMMA_TURNS, {"head_dim": 32}
    ),
    "gemma3": Kind(
        "gemma3_text", "gemma-4", "gemma3", "<end_of_turn>", "<bos>", "<pad>", GEMMA_TURNS, {"head_dim": 32}
    ),
    "phi3": Kind("phi3", "phi-3", "microsoft-Phi-3.5-mini-instruct", "<|end|>", "<s>", "<|endoftext|>"),
    "phi4": Kind(
        "phi3", "cl100k", PHI4, "<|im_end|>", "<|endoftext|>", "<|dummy_85|>", PHI4_WORDS, strips=("lstrip", "rstrip")
    ),
    "phi4-mini": Kind(
        "phi3", "o200k", PHI4_MINI, "<|end|>", "<|endoftext|>", "<|endoftext|>", PHI4_MINI_WORDS, strips=("rstrip",)
    ),
    "qwen2.5-vl": Kind(
        "qwen2_5_vl",
        "qwen2",
        "Qwen-Qwen2.5-7B-Instruct",
        "<|im_end|>",
        pad="<|endoftext|>",
        own={"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}},
        sees={"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "out_hidden_size": 64},
    ),
    "gemma3-vl": Kind(
        "gemma3",
        "gemma-4",
        "gemma3",
        "<end_of_turn>",
        "<bos>",
        "<pad>",
        GEMMA_TURNS,
        {"head_dim": 32},
        sees={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"image_size": 56, "patch_size": 14},
    ),
}


def make(name: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random model of KINDS in bfloat16, with its tokenizer and chat template, as `folder`.

    `changes` go into its configuration (tie_word_embeddings=True, num_hidden_layers=4 ...).
    """
    import torch
    from transformers import AutoConfig

    from tools.gguf import merge

    kind = KINDS[name]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(name, folder)
    torch.manual_seed(seed)
    ids = {f"{each}_token_id": getattr(tokenizer, f"{each}_token_id") for each in ("bos", "eos", "pad")}
    rows = -(-len(tokenizer) // 64) * 64  # as the models have it: rows beyond the last token
    text = {**SIZES, "vocab_size": rows, **ids, **kind.own, **changes}
    if kind.sees:
        tied = {key: value for key, value in text.items() if key == "tie_word_embeddings"}
        parts = {"text_config": text, "vision_config": kind.sees, **tied, **ids}
        config = AutoConfig.for_model(kind.model_type, **parts)
    else:
        config = AutoConfig.for_model(kind.model_type, **text)
    model: Any = merge.model_class(config).from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def make_tokenizer(name: str, folder: Path) -> Any:
    """Write the tokenizer and chat template of KINDS into `folder`; transformers' own reading of it.

    It is made once into the cache: llama.cpp's vocabularies are slow to read.
    """
    from transformers import AutoTokenizer

    made = run_folder.cache() / f"test-tokenizers-{files.sha256(Path(__file__))[:8]}" / name
    with files.locked(made):
        if not made.exists():
            with files.atomic(made) as partial:
                partial.mkdir()
                kind = KINDS[name]
                WRITERS.get(kind.vocabulary, sentence_piece)(kind, partial)
                settings = json.loads((partial / "tokenizer_config.json").read_text())
                tokenizer: Any = AutoTokenizer.from_pretrained(partial)
                tokenizer.chat_template = template(kind.template)
                tokenizer.save_pretrained(partial)
                if kind.vocabulary in TIKTOKEN:  # transformers 5 saves another class than the hub's files name
                    files.write_json(partial / "tokenizer_config.json", settings)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return AutoTokenizer.from_pretrained(folder)


def template(name: str) -> str:
    """The text of a chat template by its name at llama.cpp or at Axolotl; a text is taken as it is."""
    import axolotl

    if "{" in name:
        return name
    places = (llamacpp.source() / "models" / "templates", Path(axolotl.__path__[0]) / "utils/chat_templates/templates")
    return next(file for place in places if (file := place / f"{name}.jinja").exists()).read_text()


def vocabulary(kind: Kind) -> tuple[list[str], list[int], Any]:
    """Tokens, their types (gguf.TokenType) and the rest of a vocabulary in llama.cpp's source."""
    from gguf import GGUFReader

    reader = GGUFReader(llamacpp.source() / "models" / f"ggml-vocab-{kind.vocabulary}.gguf")
    tokens = list(unpack.value(reader, "tokenizer.ggml.tokens"))
    for number, word in kind.words.items():
        tokens[number] = word
    return tokens, list(unpack.value(reader, "tokenizer.ggml.token_type")), reader


def byte_level(kind: Kind, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE vocabulary (Qwen's, Llama 3's)."""
    tokens, types, reader = vocabulary(kind)
    qwen = kind.vocabulary == "qwen2"
    split: dict[str, Any] = {"type": "Split", "pattern": {"Regex": SPLIT.replace("DIGITS", "" if qwen else "{1,3}")}}
    split |= {"behavior": "Isolated", "invert": False}
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    added = [
        {"id": number, "content": token, "special": types[number] == unpack.CONTROL}
        | {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for number, token in enumerate(tokens)
        if types[number] == unpack.CONTROL or number in kind.words
    ]
    # Rows that no token has are filled up in the GGUF alone.
    used = {token: i for i, token in enumerate(tokens) if not token.startswith("[PAD")}
    merges = [merge.split(" ") for merge in unpack.value(reader, "tokenizer.ggml.merges")]
    parts: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if qwen else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_of]},
        "decoder": bytes_of,
        "model": {"type": "BPE", "vocab": used, "merges": merges, "ignore_merges": not qwen},
    }
    if kind.bos:
        begin = {"SpecialToken": {"id": kind.bos, "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        ids = {kind.bos: {"id": kind.bos, "ids": [used[kind.bos]], "tokens": [kind.bos]}}
        pair = [begin, text, {"Sequence": {"id": "B", "type_id": 1}}]
        parts["post_processor"] = {"type": "TemplateProcessing", "single": [begin, text], "pair": pair}
        parts["post_processor"]["special_tokens"] = ids
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    settings = {"tokenizer_class": "Qwen2Tokenizer" if qwen else "PreTrainedTokenizerFast"}
    write_settings(kind, folder, settings | {"clean_up_tokenization_spaces": False})


def tiktoken(kind: Kind, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a vocabulary that tiktoken has too (Phi 4's)."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    name, pattern = TIKTOKEN[kind.vocabulary]
    with tempfile.TemporaryDirectory() as temporary:
        wheel = zipfile.ZipFile(run_folder.download("litellm", Path(temporary)))
        ranks = wheel.extract(f"litellm/litellm_core_utils/tokenizers/{name}", temporary)
        parts = json.loads(TikTokenConverter(ranks, pattern).converted().to_str())
    parts["model"]["vocab"] |= {word: number for number, word in kind.words.items()}
    parts["added_tokens"] = [
        {"id": number, "content": word, "special": True, "single_word": False, "normalized": False}
        | {side: side in kind.strips for side in ("lstrip", "rstrip")}
        for number, word in sorted(kind.words.items())
    ]
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    # By which transformers 5 knows that the class in these models' files splits a text as GPT-2 did, and takes another.
    files.write_json(folder / "config.json", {"model_type": kind.model_type})
    write_settings(kind, folder, {"tokenizer_class": "GPT2Tokenizer", "clean_up_tokenization_spaces": False})


def sentence_piece(kind: Kind, folder: Path) -> None:
    """tokenizer.model and tokenizer_config.json of a SentencePiece vocabulary (Mistral's, Gemma's, Phi 3's)."""
    import mistral_common
    from transformers.convert_slow_tokenizer import import_protobuf

    settings: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
    if kind.vocabulary == "mistral":
        data = Path(mistral_common.__path__[0]) / "data" / "mistral_instruct_tokenizer_240323.model.v3"
        shutil.copy2(data, folder / "tokenizer.model")
        write_settings(kind, folder, settings | {"add_prefix_space": True})
        return
    tokens, types, _ = vocabulary(kind)
    model = import_protobuf().ModelProto()
    for number, (token, number_of_type) in enumerate(zip(tokens, types, strict=True)):
        # llama.cpp counts as SentencePiece does: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
        # Rows that no token has are "unknown" in the GGUF; a SentencePiece model has one such piece.
        as_type = 2 if token == "<unk>" else 5 if number_of_type == 2 else number_of_type
        model.pieces.add(piece=token, score=0.0 if as_type != 1 else -float(number), type=as_type)
    spec = model.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(tokens)
    spec.unk_piece, spec.bos_piece, spec.eos_piece = "<unk>", kind.bos or "", "<eos>" if "<eos>" in tokens else "</s>"
    spec.pad_piece = "<pad>" if "<pad>" in tokens else ""
    for each in ("unk", "bos", "eos", "pad"):
        piece = getattr(spec, f"{each}_piece")
        setattr(spec, f"{each}_id", tokens.index(piece) if piece else -1)
    gemma = kind.vocabulary.startswith("gemma")
    spaces = model.normalizer_spec
    spaces.name, spaces.add_dummy_prefix, spaces.remove_extra_whitespaces = "identity", not gemma, False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    if gemma:
        settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}
    else:
        settings["add_bos_token"] = False  # Phi-3.5's own: its template begins without one
    settings["added_tokens_decoder"] = {
        str(number): {"content": token, "special": True, "normalized": False, "single_word": False, "lstrip": False}
        | {"rstrip": not gemma and number > 32000}  # Phi's take the line feed that follows them
        for number, token in enumerate(tokens)
        if types[number] == unpack.CONTROL and token != "<unk>" and not token.startswith("<|image")
    }
    write_settings(kind, folder, settings)


# By vocabulary; the others are SentencePiece's.
WRITERS = {"qwen2": byte_level, "llama-bpe": byte_level, **dict.fromkeys(TIKTOKEN, tiktoken)}


def write_settings(kind: Kind, folder: Path, settings: dict[str, Any]) -> None:
    """tokenizer_config.json, with the kind's special tokens."""
    special = {f"{name}_token": getattr(kind, name) for name in ("bos", "eos", "pad") if getattr(kind, name)}
    files.write_json(folder / "tokenizer_config.json", settings | special | {"model_max_length": 32768})


def make_adapter(folder: Path, base: Path, resized: int = 0, **options: Any) -> Path:
    """A random adapter as peft saves it; see `make_peft`."""
    make_peft(base, resized, **options).save_pretrained(str(folder), save_embedding_layers=bool(resized) or "auto")
    return folder


def make_peft(base: Path, resized: int = 0, **options: Any) -> Any:
    """A base with a random adapter, as it is in training; `resized`: the tokens that were added before it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig

    from tools.gguf import merge

    torch.manual_seed(1)
    model: Any = merge.model_class(AutoConfig.from_pretrained(base)).from_pretrained(base, dtype=torch.float32)
    if resized:
        model.resize_token_embeddings(model.config.vocab_size + resized, mean_resizing=False)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    tuned: Any = get_peft_model(model, LoraConfig(**settings | options))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return tuned


def make_llama(folder: Path, tokenizer: Path, hidden: int = 64, layers: int = 2) -> Path:
    """A random llama with the tokenizer of another base."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(hidden)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy2(tokenizer / name, folder)
    return folder
