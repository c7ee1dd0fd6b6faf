"""What a recipe makes of its data: updates, validation, lengths, new tokens, by Axolotl's own count."""

import codecs
from pathlib import Path

import orjson
import pytest

from tools import BadInput
from tools.core import run_folder
from tools.gguf import find_base
from tools.recipes import recipe
from tools.recipes.recipe import Recipe
from tools.training import data_checks, preflight

CPU = "cpu/smollm2-135m-lora"
QLORA = "24gb/qwen7b-qlora"
EPISODES = [orjson.loads(line) for line in (run_folder.ROOT / "data" / "test.jsonl").read_bytes().splitlines()[:4]]
pytestmark = pytest.mark.heavy


def asked(name: str, changes: dict[str, object]) -> Recipe:
    """A generated recipe with a few changes."""
    return recipe.read_recipe(recipe.find(name), changes=changes)


@pytest.mark.parametrize(
    ("name", "changes", "episodes", "level", "says"),
    [
        (QLORA, {}, 3, "warning", "in the whole run, of 2 episodes"),
        (
            QLORA,
            {"gradient_accumulation_steps": 32},
            200,
            "warning",
            "in the whole run, of 180 episodes",
        ),
        (
            CPU,
            {"warmup_ratio": None, "warmup_steps": 5000},
            240,
            "warning",
            "warm-up takes 5000 updates and the run 240",
        ),
        (CPU, {"warmup_ratio": 1.0}, 240, "warning", "warm-up takes 240 updates"),
        (CPU, {"max_steps": 8, "warmup_ratio": None, "warmup_steps": 10}, 240, "warning", "10 updates and the run 8"),
        (CPU, {"val_set_size": 60}, 50, "error", "val_set_size 60 of 50 episodes"),
        (CPU, {"val_set_size": 50}, 50, "error", "val_set_size 50 of 50 episodes"),
        (CPU, {"val_set_size": 1}, 50, "error", "val_set_size 1 of 50 episodes"),  # Axolotl reads it as a share: 1.0.
        (CPU, {"val_set_size": 0.1, "sample_packing": True}, 150, "", ""),
        (CPU, {"val_set_size": 2, "sample_packing": True}, 150, "warning", "(episodes: 2, tokens: 1280) is less than"),
        (
            CPU,
            {"val_set_size": 2, "sample_packing": True, "micro_batch_size": 4, "multipack_real_batches": True},
            150,
            "error",
            "4 x 2048 tokens, and none is validated",
        ),
        (CPU, {"val_set_size": 2, "sample_packing": True, "eval_sample_packing": False}, 150, "", ""),
        (QLORA, {}, 240, "", ""),
        (CPU, {"max_steps": 3}, 240, "", ""),
        (CPU, {"num_epochs": "3"}, 30, "", ""),
        (CPU, {"sequence_len": 512, "excess_length_strategy": "truncate"}, 40, "", ""),
    ],
)
def test_updates_and_validation(name: str, changes: dict[str, object], episodes: int, level: str, says: str) -> None:
    found = list(data_checks.updates(asked(name, changes), [640] * episodes))
    assert [each.level for each in found if says in each.what] == ([level] if level else [])
    assert all(each.fix and each.where.startswith(str(recipe.find(name))) for each in found)


@pytest.mark.parametrize(
    ("changes", "level", "says"),
    [
        ({"tokens": ["<tool>", "</tool>"]}, "error", "<tool>, </tool>: new to the tokenizer"),
        ({"special_tokens": {"eos_token": "<|done|>"}}, "error", "<|done|>: new"),
        ({"special_tokens": {"additional_special_tokens": ["<a>"]}}, "error", "<a>: new"),
        ({"tokens": ["<tool>"], "lora_modules_to_save": ["norm"]}, "error", "<tool>: new"),
        ({"special_tokens": {"pad_token": "<|pad|>"}}, "advice", "<|pad|>: new"),
        ({"tokens": ["<tool>"], "lora_modules_to_save": ["embed_tokens", "lm_head"]}, "", ""),
        ({"tokens": ["<tool>"], "lora_modules_to_save": ["embed_tokens"]}, "", ""),  # The head is the same matrix.
        ({"tokens": ["<tool>"], "adapter": None}, "", ""),
        ({"tokens": ["<|im_start|>"], "special_tokens": {"pad_token": "<|im_end|>"}}, "", ""),
    ],
)
def test_new_tokens_need_trained_embeddings(changes: dict[str, object], level: str, says: str) -> None:
    base = find_base.resolve("smollm2-135m")
    found = list(data_checks.new_tokens(asked(CPU, changes), base, find_base.tokenizer("smollm2-135m")))
    assert [each.level for each in found] == ([level] if level else [])
    assert all(says in each.what for each in found)


def test_an_end_token_that_no_turn_has_is_told() -> None:
    tokenizer = find_base.tokenizer("smollm2-135m")
    turn = tokenizer("Action: look<|im_end|>")["input_ids"]
    for tokens, count in ([], 0), (["<|im_end|>"], 0), (["<|im_end|>", "<|eot_id|>", "<|im_start|>"], 2):
        assert len(list(data_checks.end_tokens(asked(CPU, {"eot_tokens": tokens}), tokenizer, [(turn, turn)]))) == count


@pytest.mark.parametrize(
    ("strategy", "level", "says"),
    [
        ("drop", "error", "100% of the episodes are dropped"),
        ("truncate", "warning", "100% of the episodes are truncated: trained without their end, 50% of the"),
        ("raise", "error", "excess_length_strategy: raise stops there"),
        (None, "error", "are dropped"),
    ],
)
def test_too_long_is_told_as_what_happens_to_it(strategy: str | None, level: str, says: str) -> None:
    made = [([1] * 400, [-100] * 100 + [1] * 300)] * 3
    changes: dict[str, object] = {"sequence_len": 250, "excess_length_strategy": strategy}
    (found,) = data_checks.too_long(asked(CPU, changes), "my.jsonl", made, 250)
    assert found.level == level and says in found.what and "sequence_len: 512" in found.fix


def of_data(tmp_path: Path, content: bytes, **entry: object) -> Recipe:
    """The CPU's recipe with a data file of its own, and other keys in its entry."""
    (tmp_path / "data.jsonl").write_bytes(content)
    own = dict(recipe.open_recipe("smollm2-135m-lora", "cpu").dataset)
    return asked(CPU, {"datasets": [own | entry | {"path": str(tmp_path / "data.jsonl")}]})


LINES = b"".join(orjson.dumps(each) + b"\n" for each in EPISODES)


@pytest.mark.parametrize("content", [codecs.BOM_UTF8 + LINES, LINES.replace(b"\n", b"\r\n")])
def test_a_file_that_windows_wrote_is_read(tmp_path: Path, content: bytes) -> None:
    assert preflight.read(of_data(tmp_path, content)) == EPISODES


@pytest.mark.parametrize("kind", ["alpaca", "completion", "input_output", "alpaca_chat.load_qa"])
def test_messages_of_another_type_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    other = of_data(tmp_path, LINES, type=kind)
    with pytest.raises(BadInput, match=rf"type: {kind}: Axolotl makes no tokens .*type: chat_template") as error:
        preflight.tokens_of(other, find_base.resolve("smollm2-135m"), EPISODES)
    assert "\n" not in str(error.value)
