"""What is chosen for a tier: it fits, keeps the tokens of an update, the classic rows hold, advice wins memory."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from tools.core import catalog
from tools.recipes import plan, recipe, render
from tools.recipes.plan import Plan


def chosen(model: str, method: str, tier: str) -> Plan:
    """The plan of the catalog's model, method and tier, which there is."""
    found = plan.choose(catalog.models()[model], catalog.methods()[method], catalog.tiers()[tier])
    assert found
    return found


@pytest.mark.parametrize(
    ("model", "method", "tier"),
    [
        ("qwen0.5b", "lora", "6gb"),
        ("qwen3b", "lora", "12gb"),
        ("qwen7b", "lora", "16gb"),
        ("qwen7b", "qlora", "12gb"),
        ("qwen14b", "qlora", "24gb"),
    ],
)
def test_the_classic_rows_hold(model: str, method: str, tier: str) -> None:
    found = chosen(model, method, tier)
    assert found.fits and found.settings.sequence_len >= 1024
    assert (recipe.RECIPES / tier / f"{model}-{method}.yaml").exists()


def test_where_the_hard_row_does_not_fit_the_recipe_gives_what_must_give() -> None:
    """7B LoRA in 16 GB: 14.2 GiB of weights in 16 bits leave nothing; the recipe has an 8-bit base and says so."""
    found = chosen("qwen7b", "lora", "16gb")
    assert found.settings.bits == 8
    whole = plan.of(found.model, found.tier, replace(found.settings, bits=16, micro_batch=1, accumulation=16))
    assert not whole.fits
    assert "a base in 8 bits" in [each.words for each in plan.advice(whole) if each.plan.fits]
    written = recipe.read_recipe(recipe.RECIPES / "16gb" / "qwen7b-lora.yaml").settings
    assert written["load_in_8bit"] is True and written["lora_mlp_kernel"] is False


def test_every_plan_fits_and_keeps_the_tokens_of_an_update() -> None:
    tokens = []
    for tier, _, method, found in render.planned():
        s = found.settings
        assert found.fits and 1024 <= s.sequence_len <= 2048
        assert found.total <= 0.92 * tier.usable_gib
        if tier.gpu:
            assert method.update_tokens <= found.update_tokens
            tokens.append(found.update_tokens)
    assert max(tokens) <= 1.5 * min(tokens)


def test_what_packs_is_faster_in_tokens_of_the_data_than_what_pads() -> None:
    packed = [found for tier, _, _, found in render.planned() if found.settings.packed]
    assert len(packed) > 1100
    for found in packed:
        s = found.settings
        for size in (1, 2, 4, 8, 16):
            share = 16 // found.tier.world
            if share % size == 0:
                padded = replace(s, packed=False, evaluation=1, micro_batch=size, accumulation=share // size)
                other = plan.of(found.model, found.tier, padded)
                assert not other.fits or other.tokens_per_second <= found.tokens_per_second


def test_no_pass_is_faster_than_the_processor_launches_it() -> None:
    """A small model's updates take as long on any large GPU; a large model's take what the GPU takes."""
    for model, same in (("smollm2-135m", True), ("qwen7b", False)):
        settings = chosen(model, "lora", "80gb").settings
        tiers = (plan.for_gpu(catalog.gpus()[gpu]) for gpu in ("h100-sxm", "b200"))
        one, other = (plan.seconds(catalog.models()[model], tier, settings) for tier in tiers)
        assert (one < 1.01 * other) == same


def test_packed_rows_validate_as_many_rows_as_they_train() -> None:
    found = chosen("qwen1.5b", "lora", "80gb").settings
    assert found.packed and found.micro_batch > 1 and found.validated == found.tokens
    assert replace(found, packed=False, evaluation=1).validated == found.sequence_len


def test_another_length_keeps_the_tokens_of_a_packed_update() -> None:
    found = chosen("qwen7b", "qlora", "24gb").settings
    assert found.packed and found.micro_batch * found.accumulation == 6
    for length, rows in ((1024, 12), (1536, 8), (4096, 3), (8192, 2), (32768, 1)):
        other = plan.at_length(found, length)
        assert (other.sequence_len, other.micro_batch * other.accumulation) == (length, rows)
    assert plan.at_length(replace(found, packed=False), 4096) == replace(found, packed=False, sequence_len=4096)


def test_a_long_sequence_is_made_to_fit_by_what_it_needs_and_by_no_more() -> None:
    seven = catalog.models()["qwen7b"]

    def ways(method: str, tier: str, length: int) -> tuple[bool, int, bool]:
        found = plan.search(seven, catalog.methods()[method], catalog.tiers()[tier], (length,))
        assert found and found.fits and found.settings.checkpointing
        s = found.settings
        return s.activation_offloading, s.context_parallel, s.evaluation != 0

    assert ways("qlora", "24gb", 8192) == (False, 1, True)
    assert ways("qlora", "24gb", 16384) == (False, 1, False)
    assert ways("qlora", "24gb", 32768) == (True, 1, False)
    assert ways("qlora", "2x24gb", 16384) == (False, 2, True)
    assert ways("qlora", "4x24gb", 16384) == (False, 4, True)
    for _, _, _, found in render.planned():
        s = found.settings
        assert not s.activation_offloading and s.context_parallel == 1


def test_rows_are_split_only_where_axolotl_can() -> None:
    seven, four, tiers = catalog.models()["qwen7b"], chosen("qwen7b", "qlora", "4x24gb"), catalog.tiers()
    s = replace(four.settings, sequence_len=8192, packed=True)
    assert s.sharding == "fsdp2"
    assert plan.splits(seven, s, tiers["4x24gb"]) == [2]
    assert plan.splits(seven, s, tiers["8x80gb"]) == [2, 4]
    assert plan.splits(seven, s, tiers["2x8x80gb"]) == [2, 4, 8]
    whole = replace(s, sharding="ddp")
    assert plan.splits(seven, whole, tiers["4x24gb"]) == [4]
    assert plan.splits(seven, whole, tiers["2x8x80gb"]) == []
    windowed = next(each for each in catalog.models().values() if each.window)
    unlike = [replace(whole, packed=False), replace(whole, attention="sdpa"), replace(whole, sharding="zero3")]
    assert [plan.splits(seven, each, tiers["4x24gb"]) for each in unlike] == [[], [], []]
    assert plan.splits(windowed, whole, tiers["4x24gb"]) == []


def test_split_rows_keep_the_tokens_of_an_update() -> None:
    found = chosen("qwen7b", "qlora", "4x24gb")
    shared = plan.of(found.model, found.tier, plan.split(found.settings, 8192, 4))
    assert (shared.rows, shared.settings.micro_batch) == (found.rows // 4, 1)
    assert (
        0
        < shared.tokens_per_second
        < 4
        * plan.of(
            found.model, catalog.tiers()["24gb"], replace(shared.settings, context_parallel=1, sharding="none")
        ).tokens_per_second
    )


def test_devices_that_would_make_an_update_too_large_have_no_plan() -> None:
    method, tier = catalog.methods()["lora"], catalog.tiers()["24gb"]
    assert all(plan.possible(method, tier.model_copy(update={"devices": count})) for count in (1, 3, 7, 16, 24))
    assert not plan.possible(method, tier.model_copy(update={"devices": 25}))


def test_a_recipe_is_left_out_only_when_its_least_settings_do_not_fit() -> None:
    """Brute force over micro batch 1, recomputed layers, 1024 tokens and every spread, against what is planned."""
    there = {(tier.key, model.key, method.key) for tier, model, method, _ in render.planned()}
    for tier in catalog.tiers().values():
        if not tier.gpu:
            continue
        assert tier.precision == "bf16" or not any(tier.key == each and way == "full" for each, _, way in there)
        for model in catalog.models().values():
            for method in catalog.methods().values():
                if not plan.possible(method, tier) or not method.written(model):
                    continue
                first = replace(plan.base_settings(model, method, tier), sequence_len=1024)
                eight = method.adapter == "lora" and plan.quantisable(first, tier)
                widths: tuple[Any, ...] = (8, first.bits) if eight else (first.bits,)
                least = [
                    plan.of(model, tier, spread)
                    for bits in widths
                    for offload in plan.OFFLOADS
                    for way in plan.packings(replace(first, bits=bits, offload=offload, kernels=False), method, tier)
                    for spread in plan.spreads(way, tier)
                ]
                fits = any(each.fits for each in least)
                assert fits == ((tier.key, model.key, method.key) in there), (tier.key, model.key, method.key)


def test_turing_gets_nothing_that_it_has_not() -> None:
    for tier, _, method, found in render.planned():
        s = found.settings
        if tier.precision == "fp16":
            assert (s.attention, s.loss, s.kernels, s.liger) == ("sdpa", "plain", False, False)
        if tier.precision == "bf16":
            assert s.attention == "flash" and s.loss == ("plain" if method.rl else "fused")


def test_pairs_and_games_take_what_axolotl_and_trl_have_for_them() -> None:
    """No packing, no fused loss, no LoRA kernels, no shard; each begins where another recipe of its tier ends."""
    all_of_them = list(render.planned())
    there = {(tier.key, model.key, method.key) for tier, model, method, _ in all_of_them}
    further = [each for each in all_of_them if each[2].rl]
    for tier, model, method, found in further:
        s = found.settings
        assert tier.precision != "fp16" or s.bits == 16
        assert not (s.packed or s.kernels or s.sharded or s.dropout) and s.loss == "plain"
        assert (s.pairs, s.group) == ((True, 0) if method.rl == "dpo" else (False, 8))
        assert (tier.key, model.key, method.after) in there
    assert {model.family for _, model, _, _ in further} == {"qwen2.5", "smollm2"}


def test_a_pair_costs_two_sequences_and_a_pass_more() -> None:
    one = chosen("qwen3b", "lora", "24gb")
    unlike = {"packed": False, "loss": "plain", "kernels": False, "evaluation": 1}
    alone = replace(one.settings, **unlike, micro_batch=2, accumulation=1)  # type: ignore[arg-type]
    pair = replace(alone, pairs=True, micro_batch=1)
    assert (pair.tokens, plan.row_tokens(pair)) == (alone.tokens, 2 * plan.row_tokens(alone))
    two, both = (plan.of(one.model, one.tier, each) for each in (alone, pair))
    assert both.parts["saved activations"] == two.parts["saved activations"]
    assert both.parts["logits"] > two.parts["logits"]
    assert both.seconds > two.seconds


def test_what_is_sharded_is_spread_by_what_can() -> None:
    for _, _, method, found in render.planned():
        s = found.settings
        if s.bits == 4:
            assert s.sharding in ("none", "ddp", "fsdp2")
        if s.sharded:
            assert not s.kernels
        if s.offload != "none":
            assert s.sharding in ("zero2", "zero3") and method.adapter is None


def test_more_tokens_take_more_and_advice_wins_what_it_says() -> None:
    found = chosen("qwen7b", "qlora", "24gb")
    longer = plan.of(found.model, found.tier, replace(found.settings, sequence_len=8192, micro_batch=1))
    assert longer.total > found.total and not longer.fits
    changes = plan.advice(longer)
    assert changes and changes[0].plan.fits
    for each in changes:
        assert each.won > 0 and each.plan.total == pytest.approx(longer.total - each.won)
    fitting = [each.slower for each in changes if each.plan.fits]
    assert fitting == sorted(fitting)


def test_advice_names_every_key_that_a_sharded_training_needs() -> None:
    lora = {each.words: each.keys for each in plan.advice(chosen("qwen7b", "lora", "4x24gb"))}
    assert lora["recompute layers"]["gradient_checkpointing_kwargs"] == {"use_reentrant": True}
    full = {each.words: each.keys for each in plan.advice(chosen("qwen1.5b", "full", "2x24gb"))}
    assert full["recompute layers"]["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    assert full["LoRA in place of full training"]["deepspeed"] is None


def test_a_recipe_read_back_gives_the_settings_it_was_made_of() -> None:
    for tier, model, method, found in render.planned():
        written = recipe.read_recipe(recipe.RECIPES / tier.key / f"{render.name(model, method)}.yaml").settings
        assert plan.from_recipe(written, tier) == found.settings, (tier.key, render.name(model, method))


def test_a_long_recipe_read_back_gives_the_settings_it_was_made_of() -> None:
    model = catalog.models()["qwen7b"]
    for method, tier, length in (("qlora", "2x24gb", 16384), ("lora", "4x24gb", 16384), ("full", "48gb", 32768)):
        way, on = catalog.methods()[method], catalog.tiers()[tier]
        found = plan.search(model, way, on, (length,))
        assert found
        written = yaml.safe_load(render.recipe_text(on, model, way, found))
        assert plan.from_recipe(written, on) == found.settings


def test_a_gpu_of_ones_own_is_a_tier() -> None:
    tier = plan.for_gpu(catalog.gpus()["rtx4090"], devices=2)
    assert (tier.world, tier.precision) == (2, "bf16") and tier.usable_gib < 24
    assert plan.for_gpu(catalog.gpus()["t4"]).precision == "fp16"


def test_json_has_parts_that_make_the_total() -> None:
    made = plan.as_json(chosen("qwen7b", "qlora", "24gb"))
    assert sum(made["parts_gib"].values()) == pytest.approx(made["total_gib"], abs=0.02)
    assert made["fits"] is True and made["tier"] == "24gb" and made["changes"]
