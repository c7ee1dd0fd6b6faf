"""Folders for other servers: what is in them loads, and their commands run as they stand."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import BadInput
from tools.core import files, run_folder
from tools.gguf import convert, llamacpp, merge
from tools.recipes import recipe
from tools.serving import export

pytestmark = pytest.mark.heavy

NAME = "smollm2-135m-lora"
SAMPLING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "repeat_penalty": 1.0}


@pytest.fixture(scope="module")
def model(small_base: Path, small_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> export.Model:
    """A finished run of a small model, with games and a quality table."""
    this = run_folder.Run(tmp_path_factory.mktemp("outputs") / "cpu" / NAME)
    merge.merge_to_folder(small_base, small_adapter, this.merged)
    convert.to_gguf(this.merged, this.gguf("F16"))
    convert.quantize_gguf(this.gguf("F16"), this.gguf("Q8_0"), "Q8_0")
    files.write(this.recipe, recipe.find(NAME, "cpu").read_bytes())
    trained = {"recipe": "ab" * 32, "data": "cd" * 32, "base": "ef" * 32}
    files.write_json(this.folder / "run.json", {"train": {"inputs": trained}})
    files.write_json(
        this.parity, {"equal": True, "conversations": 20, "tokens": 30000, "sides": ["llama-server", "Ollama"]}
    )
    summary = {"won": 36, "rooms": 48, "rate": 0.75, "wilson95": [0.61, 0.85]}
    for who in ("base", "tuned"):
        files.write_json(this.evaluation(f"{who}-q8_0"), {"player": who, "quant": "Q8_0", "summary": summary})
    scored: list[dict[str, Any]] = [{"quant": "F16", "bytes": 271_000_000, "imatrix": False, "perplexity": 1.5}]
    scored += [scored[0] | {"quant": "Q8_0", "mean_kld": 0.001, "kld_99_9": 0.02, "same_top_percent": 99.1}]
    files.write_json(this.quality, {"models": scored})
    return export.Model(
        this=this,
        name="react-smollm2",
        merged=this.merged,
        gguf=this.gguf("Q8_0"),
        quant="Q8_0",
        base_hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        context=512,
        sampling=SAMPLING,
        system="Solve the household task.",
        stop="<|im_end|>",
    )


def test_the_card_is_one_that_the_hub_reads(model: export.Model) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(export.card(model))
    data: Any = card.data
    assert (data.base_model, data.license, data.library_name) == (model.base_hub, "apache-2.0", "transformers")
    assert data.pipeline_tag == "text-generation" and "react" in data.tags
    result = data.eval_results[0]
    assert (result.metric_type, result.metric_value, result.dataset_name.endswith("Q8_0")) == (
        "success_rate",
        0.75,
        True,
    )
    for part in (
        "ab" * 32,
        "cd" * 32,
        "cpu/smollm2-135m-lora",
        "train.jsonl",
        "| tuned Q8_0 | 36 of 48 | 75 % | 61-85 |",
    ):
        assert part in card.text
    assert "| Q8_0 | 271 | 1.5000 | 0.00100 | 0.02000 | 99.10 % |" in card.text
    assert "yes: 20 conversations, 30000 tokens, llama-server and Ollama" in card.text
    assert "Solve the household task." in card.text and model.stop in card.text


def test_a_licence_that_the_hub_has_no_name_for_is_named_and_linked(model: export.Model) -> None:
    from dataclasses import replace

    from tools.core import catalog

    head = {}
    for hub in ("Qwen/Qwen2.5-3B-Instruct", "some/other", "meta-llama/Llama-3.1-8B-Instruct"):
        known = catalog.model_of(hub)
        head[hub] = yaml.safe_load(export.front_matter(replace(model, base_hub=hub), known, []))
    qwen = head["Qwen/Qwen2.5-3B-Instruct"]
    assert (qwen["license"], qwen["license_name"]) == ("other", "qwen-research-license")
    assert qwen["license_link"] == "https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE"
    assert head["some/other"]["license"] == "other"
    assert head["meta-llama/Llama-3.1-8B-Instruct"]["license"] == "llama3.1"


def test_the_upload_folder_is_whole_and_takes_no_second_copy(model: export.Model) -> None:
    command = export.export_folder(model, "huggingface")
    folder = model.this.folder / "export" / "huggingface"
    names = {item.name for item in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert "react-smollm2-Q8_0.gguf" in names and not [name for name in names if name.endswith((".bin", ".pt"))]
    assert (folder / "model.safetensors").samefile(model.merged / "model.safetensors")
    assert command == f"hf upload react-smollm2 {folder.resolve()} . --exclude {files.MARK}"
    # The program itself takes the command: it stops at what it cannot have here, the hub.
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    program = Path(sys.executable).with_name("hf")
    asked = subprocess.run([str(program), *command.split()[1:]], env=offline, capture_output=True, text=True)
    assert asked.returncode and "No such" not in asked.stderr and "ffline" in asked.stdout + asked.stderr


def test_vllms_folder_loads_and_ends_its_answer_with_trainings_token(model: export.Model) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    command = export.export_folder(model, "vllm")
    script = model.this.folder / "export" / "vllm" / "serve.sh"
    assert os.access(script, os.X_OK) and f"exec {command}" in script.read_text()
    words = subprocess.run(
        ["sh", "-c", f'printf "%s\\n" {command}'], capture_output=True, text=True
    ).stdout.splitlines()
    folder, options = words[2], dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--served-model-name"] == "react-smollm2" and options["--max-model-len"] == "512"
    wanted = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0}
    assert json.loads(options["--override-generation-config"]) == wanted
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids(model.stop)
    assert tokenizer.eos_token_id == end == loaded.generation_config.eos_token_id
    turns = [{"role": "user", "content": "Go."}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    # Made to answer with the end token next, it stops there, long before the limit.
    force: Any = lambda _, scores: torch.full_like(scores, -1e9).index_fill(1, torch.tensor([end]), 0)  # noqa: E731
    said: Any = loaded.generate(**prompt, max_new_tokens=50, do_sample=False, logits_processor=[force])
    assert said.shape[1] == prompt["input_ids"].shape[1] + 1 and said[0, -1] == end


def test_lm_studio_gets_publisher_model_file(model: export.Model) -> None:
    command = export.export_folder(model, "lmstudio")
    folder = model.this.folder / "export" / "lmstudio"
    file = folder / "react-recipes" / "react-smollm2" / "react-smollm2-Q8_0.gguf"
    assert file.samefile(model.gguf) and (folder / "system.txt").read_text() == model.system
    assert command.split()[-1] == str(file.resolve()) and "--user-repo react-recipes/react-smollm2" in command
    assert command in (folder / "import.sh").read_text()


def test_llama_servers_script_serves_the_model(model: export.Model) -> None:
    import httpx
    import psutil

    export.export_folder(model, "llama-server")
    script = model.this.folder / "export" / "llama-server" / "serve.sh"
    port = llamacpp.free_port()
    moved = script.with_name("serve-here.sh")
    moved.write_text(script.read_text().replace("--port 8080", f"--port {port}"))
    url = f"http://127.0.0.1:{port}"
    with llamacpp.started(["sh", str(moved)], f"{url}/health", script.with_name("log")):
        ours = [each.laddr for each in psutil.net_connections("tcp") if each.laddr and not each.raddr]
        assert {ip for ip, bound in ours if bound == port} == {"127.0.0.1"}
        props = httpx.get(f"{url}/props", trust_env=False).json()
        assert httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["id"] == "react-smollm2"
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert props["eos_token"] == model.stop and props["chat_template"].strip()


def test_what_is_exported_is_chosen_by_name() -> None:
    assert export.chosen([]) == ["lmstudio", "vllm", "llama-server", "huggingface"]
    assert export.chosen(["vllm"]) == ["vllm"]
    with pytest.raises(BadInput, match="jan: no such place to export to; there is lmstudio, vllm"):
        export.chosen(["jan"])
    assert set(export.MERGED) < set(export.WRITERS)
