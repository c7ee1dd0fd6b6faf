"""How many tokens a served model remembers: by episodes, model and memory, and as a person asks."""

from dataclasses import replace
from pathlib import Path

import pytest

from tools import BadInput
from tools.core import catalog
from tools.pipeline import context
from tools.pipeline.context import Limits, choose
from tools.pipeline.trained import tuned
from tools.recipes import memory

QWEN7B = catalog.models()["qwen7b"]
ROOMY = Limits(longest=939, own=QWEN7B.context, sizes=QWEN7B, room=100.0, conversations=5)


def test_the_cache_is_of_keys_and_values_of_each_layer() -> None:
    # 2 x 28 layers x 4 heads x 128 x 2 bytes: 56 KiB a token.
    assert memory.kv_cache(QWEN7B, 8192) == pytest.approx(8192 * 56 * 1024 / 2**30)
    assert memory.kv_cache(QWEN7B, 16384) == 2 * memory.kv_cache(QWEN7B, 8192)


def test_layers_that_look_back_a_window_keep_little_more() -> None:
    gemma = catalog.models()["gemma3-4b"]  # 5 of 34 layers attend to all
    whole = gemma.model_copy(update={"window": None})
    assert memory.kv_cache(gemma, 1024) == memory.kv_cache(whole, 1024)
    grown = memory.kv_cache(gemma, 65536) - memory.kv_cache(gemma, 32768)
    assert grown / (memory.kv_cache(whole, 65536) - memory.kv_cache(whole, 32768)) == pytest.approx(5 / 34)


def test_a_model_remembers_twice_the_longest_episode_and_no_less_than_8192() -> None:
    few, many = choose(ROOMY), choose(replace(ROOMY, longest=6000))
    assert (few.tokens, few.why) == (8192, "at least 8192; KV cache 0.44 GiB a conversation")
    assert many.tokens == 12000 and "2 x the longest episode's 6000" in many.why


def test_a_model_remembers_no_more_than_its_own_context() -> None:
    found = choose(replace(ROOMY, longest=30000))
    assert found.tokens == 32768 and "the model's own" in found.why
    assert choose(replace(ROOMY, own=2048)).tokens == 2048


def test_the_cache_of_all_conversations_fits_the_memory() -> None:
    tight = replace(ROOMY, longest=20000, room=4.0)
    found = choose(tight)
    assert 4096 < found.tokens < 32768 and "4.0 GiB hold for 5 conversations" in found.why
    assert 5 * memory.kv_cache(QWEN7B, found.tokens) <= 4.0 < 5 * memory.kv_cache(QWEN7B, found.tokens + 256)
    assert "less than the longest episode's 20000" in found.why
    elsewhere = choose(replace(ROOMY, room=-1.0))
    assert elsewhere.tokens == 8192 and "the weights alone take more than this machine's memory" in elsewhere.why


def test_a_model_of_unknown_sizes_is_not_held_against_the_memory() -> None:
    found = choose(replace(ROOMY, sizes=None, room=0.1))
    assert (found.tokens, found.why) == (8192, "at least 8192")


def test_a_person_has_the_last_word_up_to_the_models_own() -> None:
    assert choose(ROOMY, 4096).tokens == 4096
    assert "as asked, less than the longest episode's 939" in choose(ROOMY, 512).why
    with pytest.raises(BadInput, match="NUM_CTX=65536 .*the model's own context is 32768 tokens"):
        choose(ROOMY, 65536)


def test_limits_are_those_of_the_bases_files(others: tuple[Path, Path], tmp_path: Path) -> None:
    source, adapter = others
    found = context.limits_of(tuned("", str(source), str(adapter)), tmp_path / "not-there.gguf")
    assert (found.longest, found.own, found.sizes) == (0, 1024, None)
    (source / "config.json").write_text('{"max_position_embeddings": "many"}')
    with pytest.raises(BadInput, match="max_position_embeddings is 'many' and must be a number of tokens"):
        context.limits_of(tuned("", str(source), str(adapter)), tmp_path / "not-there.gguf")
