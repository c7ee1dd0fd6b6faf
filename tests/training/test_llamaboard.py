"""LLaMA-Factory's web page with a recipe filled in: its configuration, what is refused, and the page in a browser."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from playwright.sync_api import sync_playwright

from tests.parts import llamafactory_programs
from tests.parts.browser import chromium
from tests.parts.command import tools
from tests.training.test_llamafactory import every_recipe
from tools.core import run_folder
from tools.gguf import find_base, llamacpp
from tools.recipes import recipe
from tools.training import llamaboard, llamafactory

NAME = "smollm2-135m-lora"
CHANGES = ("max_steps=2", "sequence_len=1024")


def test_what_the_page_has_a_field_for_is_in_its_field() -> None:
    found = llamaboard.configuration(llamafactory.arguments(recipe.open_recipe("24gb/qwen7b-qlora")))
    wanted: dict[str, Any] = {
        "top.model_name": "Custom", "top.template": "qwen", "top.finetuning_type": "lora",
        "top.quantization_bit": "4", "train.dataset": ["react_training"], "train.learning_rate": "0.0002",
        "train.num_train_epochs": "3", "train.cutoff_len": 2048, "train.batch_size": 1,
        "train.gradient_accumulation_steps": 6, "train.lora_rank": 16, "train.lora_alpha": 32, "train.val_size": 0.1,
        "train.compute_type": "bf16", "train.packing": True, "train.neat_packing": True,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    extra = orjson.loads(found["train.extra_args"])
    assert extra["warmup_ratio"] == 0.1 and extra["save_steps"] == pytest.approx(1 / 6, abs=1e-5)
    assert extra["max_samples"] is None and "eval_steps" not in extra and "learning_rate" not in extra


def test_nothing_of_any_recipe_is_left_out() -> None:
    for each in every_recipe():
        train = llamafactory.arguments(each)
        found = llamaboard.configuration(train)
        extra = orjson.loads(found["train.extra_args"])
        fields = {**llamaboard.FIELDS, **llamaboard.TEXTS, "dataset": "train.dataset", "val_size": "train.val_size"}
        for name, value in train.items():
            if name in llamaboard.ITS_OWN or name.startswith(
                ("quantization", "bf16", "fp16", "eval_", "per_device_eval")
            ):
                continue
            if name in extra:
                assert extra[name] == value
            else:
                assert str(found[fields[name]]).strip("[]'") == str(value), (each.name, name)


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = tools("webui", NAME, "--port", port, REACT_RECIPES_OUTPUTS=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "") and not list(tmp_path.iterdir())
    assert done.stderr == f"react-recipes: port {port} is in use by another program; choose another one\n"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The page of SmolLM2's recipe, served as a person has it served; ended by Ctrl-C, it leaves nothing running."""
    llamafactory_programs.programs()
    port = llamacpp.free_port()
    command = [sys.executable, "-m", "tools", "webui", NAME, "--tier", "cpu", "--port", str(port)]
    command += [f"--set={each}" for each in CHANGES]
    told = os.environ | {"REACT_RECIPES_OUTPUTS": str(tmp_path / "outputs")}
    with subprocess.Popen(command, cwd=run_folder.ROOT, env=told, start_new_session=True) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert llamacpp.free_port(port) == port


@pytest.mark.slow
def test_the_page_opens_with_the_recipe_and_trains_it(address: str, tmp_path: Path) -> None:
    base = find_base.resolve("smollm2-135m")
    wanted = llamafactory.arguments(recipe.open_recipe(f"cpu/{NAME}", base=str(base), pairs=list(CHANGES)))
    program, environment = chromium()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"], env={**os.environ, **environment}
        )
        page = browser.new_page()
        page.set_default_timeout(120_000)
        asked: list[str] = []
        refused: list[str] = []
        page.on("request", lambda each: asked.append(each.url))
        page.on("requestfailed", lambda each: refused.append(each.url) if each.failure == "csp" else None)
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_function(
            "[...document.querySelectorAll('input[aria-label=\"number input for LoRA rank\"]')]"
            ".some(each => each.value === '16')"
        )

        def shown(label: str) -> str:
            return page.get_by_label(label, exact=True).first.input_value()

        texts = page.evaluate("[...document.querySelectorAll('input, textarea')].map(each => each.value)")
        assert shown("Chat template") == "smollm2" and shown("Finetuning method") == "lora"
        assert shown("number input for Cutoff length") == "1024" and shown("number input for Batch size") == "1"
        assert {str(base), "0.0007", "1", "data", str(wanted["lora_target"])} <= {*texts}
        assert page.get_by_text("react_training", exact=True).first.is_visible()

        page.get_by_role("button", name="Preview command").first.click()
        code = page.locator("code:has-text('llamafactory-cli train')").first
        code.wait_for()
        said = dict(line.strip(" \\")[2:].split(" ", 1) for line in code.inner_text().splitlines()[1:] if line.strip())
        assert said.pop("output_dir").startswith("saves/Custom/lora/") and said.pop("enable_thinking") == "True"
        own = {"dataset_dir": "data", "output_dir": None, "overwrite_output_dir": None}
        kept = {name: value for name, value in (wanted | own).items() if value or name in ("packing", "lora_dropout")}
        kept |= {"weight_decay": 0.0}
        assert {name: yaml.safe_load(value) for name, value in said.items()} == kept

        page.get_by_role("button", name="Start").first.click()
        (saves,) = tmp_path.glob("outputs/cpu/*/llamaboard/")
        deadline = time.monotonic() + 600
        while not list(saves.glob("saves/Custom/lora/*/train_results.json")):
            assert time.monotonic() < deadline, page.locator("body").inner_text()[-3000:]
            page.wait_for_timeout(1000)
        page.get_by_text("Finished.").first.wait_for()
        browser.close()
    assert list(saves.glob("saves/Custom/lora/*/adapter_model.safetensors"))
    (state,) = saves.glob("saves/Custom/lora/*/trainer_state.json")
    assert orjson.loads(state.read_bytes())["global_step"] == 2
    # What the page names elsewhere the browser refuses, as the page told it.
    assert {each for each in asked if not each.startswith((address, "data:", "blob:"))} == {*refused}
