"""The measurements for a GPU run on the CPU with small models, so that the one command works where a GPU is."""

import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from bench import gpu
from tools.core import preference, run_folder, trajectory
from tools.gguf import find_base

CASES = ("0.5b-full-packed", "0.5b-dpo")


@pytest.mark.slow
def test_episodes_and_pairs_are_measured_beside_what_is_predicted(tmp_path: Path) -> None:
    asked = ["--tiny", "--only", ",".join(CASES), "--out", str(tmp_path), "--work", str(tmp_path)]
    subprocess.run([sys.executable, "bench/gpu.py", *asked], cwd=run_folder.ROOT, check=True)
    found = orjson.loads((tmp_path / "gpu.json").read_bytes())
    assert [row["case"] for row in found["rows"]] == list(CASES)
    for row in found["rows"]:
        assert "failed" not in row and row["predicted_gib"] > 0 and row["tokens_per_second"] > 0
    left = set(re.split(r"[,.:]\s+", found["notes"]))
    assert {each.name for each in gpu.cases()} & left == {each.name for each in gpu.cases()} - set(CASES)


@pytest.mark.heavy
def test_pairs_fill_their_rows() -> None:
    base, length = find_base.resolve("smollm2-135m"), 1024
    made = list(gpu.pairs(list(trajectory.read(trajectory.TRAIN_DATA))[:12], base, length))
    assert len(made) > 3 and not any(map(preference.fault, made))
    tokenizer = find_base.tokenizer(str(base))
    for pair in made:
        tokens = len(tokenizer.apply_chat_template([*pair["prompt"], *pair["chosen"]], return_dict=False))
        assert 0.8 * length < tokens <= length
