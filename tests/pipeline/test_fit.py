"""A recipe for a person's own episodes; the tokenizer that counts them is SmolLM2's."""

from pathlib import Path

import orjson
import pytest

from tools import BadInput
from tools.core import catalog, run_folder
from tools.pipeline import fit
from tools.recipes import plan, recipe, schema

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
DATA = str(run_folder.ROOT / "data" / "train.jsonl")


def episodes(path: Path, lengths: list[int]) -> str:
    """A file of episodes of about so many tokens each."""
    lines = []
    for words in lengths:
        turns = [{"role": "user", "content": "room " * words}]
        turns.append({"role": "assistant", "content": "Thought: I look.\nAction: look"})
        lines.append(orjson.dumps({"messages": turns}))
    path.write_bytes(b"\n".join(lines))
    return str(path)


def test_the_sequence_holds_99_of_100_episodes() -> None:
    assert fit.sequence_for([300] * 99 + [5000], 32768) == 512
    assert fit.sequence_for([300] * 98 + [5000] * 2, 32768) == 5120
    assert fit.sequence_for([256], 32768) == 256
    assert fit.sequence_for([5000], 4096) == 4096


def test_few_episodes_are_seen_more_often_and_warm_up_has_an_end() -> None:
    lora, tier = catalog.methods()["lora"], catalog.tiers()["24gb"]
    few = fit.schedule(240, 16, lora, tier)
    assert (few.epochs, few.updates, few.warmup_ratio) == (8, 112, 0.1)
    assert fit.schedule(16, 16, lora, tier).epochs == fit.MOST_EPOCHS
    many = fit.schedule(100_000, 16, lora, tier)
    assert many.epochs == lora.epochs and round(many.warmup_ratio * many.updates) == fit.MOST_WARMUP
    assert fit.schedule(240, 1, lora, catalog.tiers()["cpu"]).updates == 240


def test_a_micro_batch_is_as_long_as_its_longest() -> None:
    assert fit.padded([100, 200, 300], 1) == pytest.approx(200)
    # Of four pairs, (100, 100) alone is 100 long.
    assert fit.padded([100, 200], 2) == pytest.approx(175)


@pytest.mark.heavy
def test_a_recipe_fits_the_data_and_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my own.yaml"
    fit.fit_recipe(DATA, "qwen7b", str(out), gpu="rtx3060", base_name=SMOLLM2)
    made = recipe.read_recipe(out)
    assert made.tier.key == "12gb" and made.settings["adapter"] == "qlora"
    assert made.settings["sequence_len"] == 1024 and made.settings["num_epochs"] == 8
    assert made.settings["base_model"] == "Qwen/Qwen2.5-7B-Instruct" and made.data == Path(DATA)
    assert f"RECIPE='{out}' TIER=12gb" in made.text
    assert schema.validate(made) == []
    found = plan.of(catalog.models()["qwen7b"], made.tier, plan.from_recipe(made.settings, made.tier))
    printed = capsys.readouterr().out
    assert found.fits and f"{found.total:.1f} of {made.tier.usable_gib} GiB" in printed
    for said in ("240 episodes", "939 at most", "holds all", "8 epochs = 112 updates", "time       about", "on less"):
        assert said in printed
    with pytest.raises(BadInput, match="is there already"):
        fit.fit_recipe(DATA, "qwen7b", str(out), gpu="rtx3060", base_name=SMOLLM2)


@pytest.mark.heavy
def test_what_is_cut_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = episodes(tmp_path / "my.jsonl", [200] * 199 + [9000]), str(tmp_path / "my.yaml")
    fit.fit_recipe(data, "qwen3b", out, tier="24gb", base_name=SMOLLM2)
    assert "256 tokens: 1 of 200 episodes (0.5%) are longer and dropped" in capsys.readouterr().out
    assert recipe.read_recipe(Path(out)).data == Path(data)
    fit.fit_recipe(data, "qwen3b", out, tier="24gb", base_name=SMOLLM2, seq=9216, force=True)
    assert "9216 tokens: holds all" in capsys.readouterr().out


@pytest.mark.heavy
def test_what_does_not_fit_names_what_would(tmp_path: Path) -> None:
    data, out = episodes(tmp_path / "my.jsonl", [200, 30000]), tmp_path / "my.yaml"
    says = r"qwen7b-qlora on 12gb: sequences of \d+ tokens do not fit; SEQ=(\d+) fits: 1 of 2 .*; TIER=\d+gb METHOD="
    with pytest.raises(BadInput, match=says) as refused:
        fit.fit_recipe(data, "qwen7b", str(out), tier="12gb", base_name=SMOLLM2)
    assert not out.exists()
    shorter = int(str(refused.value).partition("SEQ=")[2].split()[0])
    fit.fit_recipe(data, "qwen7b", str(out), tier="12gb", base_name=SMOLLM2, seq=shorter)
    assert recipe.read_recipe(out).settings["sequence_len"] == shorter
    with pytest.raises(BadInput, match="no episode has at most 8 tokens"):
        fit.fit_recipe(data, "qwen3b", str(out), tier="24gb", base_name=SMOLLM2, seq=8, force=True)
    with pytest.raises(BadInput, match="context of Qwen2.5-7B-Instruct ends at 32768 tokens"):
        fit.fit_recipe(data, "qwen7b", str(out), tier="80gb", base_name=SMOLLM2, seq=40000)


def test_a_tier_and_a_number_of_gpus_are_not_asked_together() -> None:
    with pytest.raises(BadInput, match="TIER=24gb .* has its own number of GPUs"):
        fit.tier_of("24gb", "", 2)
    with pytest.raises(BadInput, match="GPUS=2, and this machine has none"):
        fit.tier_of("", "", 2)
    assert fit.tier_of("", "rtx4090", 4).key == "4x24gb"
