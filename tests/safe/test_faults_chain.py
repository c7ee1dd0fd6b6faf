"""The whole chain with secrets in its environment: none is in any file that it leaves, and nothing is left running."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tools.core import files, run_folder
from tools.gguf import llamacpp
from tools.serving import ollama

SECRETS = {
    "HF_TOKEN": "hf_CANARYcanary1",
    "WANDB_API_KEY": "CANARYcanary2CANARYcanary2CANARYcanary22",
    "OPENAI_API_KEY": "sk-CANARYcanary3",
    "HTTPS_PROXY": "http://me:CANARYcanary4@127.0.0.1:9",
    "AWS_SECRET_ACCESS_KEY": "CANARYcanary5",
}
MARK = "REACT_RECIPES_TEST_OF_SECRETS"


@pytest.mark.slow
def test_no_secret_is_in_what_the_chain_leaves_and_no_process_runs_on(tmp_path: Path, small_base: Path) -> None:
    if ollama.install() is None:
        pytest.skip("neither Ollama nor Go is installed")
    settings = yaml.safe_load((run_folder.ROOT / "recipes" / "cpu" / "smollm2-135m-lora.yaml").read_text())
    settings["datasets"][0]["path"] = str(tmp_path / "train.jsonl")
    shutil.copy2(run_folder.ROOT / "data" / "test.jsonl", tmp_path / "train.jsonl")
    settings |= {"peft_layers_to_transform": [0, 1], "max_steps": 2, "save_steps": 1}
    (tmp_path / "own").mkdir()
    recipe = tmp_path / "own" / "small.yaml"
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False))
    outputs = tmp_path / "outputs"
    environment = os.environ | SECRETS | {MARK: str(tmp_path), "REACT_RECIPES_OUTPUTS": str(outputs)}
    environment |= {"OLLAMA_HOST": f"127.0.0.1:{llamacpp.free_port()}", "WANDB_MODE": "offline"}
    small = [str(recipe), "--base", str(small_base)]
    for arguments in (
        ["train", *small, "--force"],
        ["gguf", *small, "--quant", "Q8_0"],
        ["ollama", *small, "--name", "react-small", "--force"],
        ["parity", *small, "--name", "react-small"],
        ["export", *small, "--name", "react-small"],
        ["submit", "slurm", str(recipe)],
        ["quality", *small, "--chunks", "2"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "tools", *arguments],
            cwd=run_folder.ROOT,
            env=environment,
            capture_output=True,
        )
        # Bytes: as text, a carriage return would be read as a line feed.
        assert done.returncode == 0, done.stderr
        assert not any(secret.encode() in done.stdout + done.stderr for secret in SECRETS.values())
        assert not any(letter in done.stdout + done.stderr for letter in b"\r\x1b"), done.stderr
    left = [each for each in files.below(outputs) if each.is_file()]
    for path in left:
        held = path.read_bytes()
        assert not any(secret.encode() in held for secret in SECRETS.values()), path
        assert b"CANARYcanary" not in held, path
        if path.suffix == ".log":
            assert path.stat().st_mode & 0o077 == 0, path
    assert {"serve.log", "train.log", "model-q8_0.log"} <= {path.name for path in left}
    running = []
    for each in psutil.process_iter():
        try:
            if each.environ().get(MARK) == str(tmp_path) and each.status() != psutil.STATUS_ZOMBIE:
                running.append(each.cmdline())
        except psutil.Error:
            continue
    assert running == []
