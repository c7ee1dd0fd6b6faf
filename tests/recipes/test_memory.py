"""The parts of a training's memory: each grows with what it is made of, and shrinks with what shares it."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.core import catalog, files, run_folder
from tools.recipes import memory, plan, recipe
from tools.recipes.memory import GIB, Settings

SEVEN = catalog.models()["qwen7b"]
LORA = Settings(rank=16, bits=16, sequence_len=2048, micro_batch=1, kernels=True, liger=True)


def total(s: Settings, world: int = 1) -> float:
    """GiB in all for the 7B model."""
    return sum(memory.device(SEVEN, s, world).values())


def test_weights_are_what_their_bits_say() -> None:
    linear, rest = SEVEN.linear_parameters, SEVEN.text_parameters - SEVEN.linear_parameters
    assert memory.weight_bytes(SEVEN, LORA) == 2 * SEVEN.text_parameters
    four = memory.weight_bytes(SEVEN, replace(LORA, bits=4))
    # The QLoRA paper: 0.127 bits a weight for the scales.
    assert four == pytest.approx(linear * 4.127 / 8 + 2 * rest)
    assert memory.weight_bytes(SEVEN, replace(LORA, bits=32)) == 4 * SEVEN.text_parameters


def test_a_full_training_takes_the_bytes_of_the_zero_paper() -> None:
    """16 bytes a parameter under DeepSpeed: 2 weights, 2 gradients, 12 master and states."""
    s = replace(LORA, rank=0, sharding="zero1", kernels=False)
    parts = memory.device(SEVEN, s, 1)
    each = sum(parts[name] for name in ("weights", "gradients", "optimizer")) * GIB / SEVEN.text_parameters
    assert each == pytest.approx(16)


def test_zero_stages_share_more_and_more() -> None:
    stages = [memory.device(SEVEN, replace(LORA, rank=0, sharding=stage), 8) for stage in ("zero1", "zero2", "zero3")]  # type: ignore[arg-type]
    states = 12 * SEVEN.text_parameters / 8 / GIB
    for parts in stages:
        assert parts["optimizer"] == pytest.approx(states)
    assert stages[0]["gradients"] == pytest.approx(8 * stages[1]["gradients"])
    assert stages[1]["weights"] == pytest.approx(8 * stages[2]["weights"])


def test_what_is_offloaded_is_in_the_machine_and_not_on_the_device() -> None:
    s = replace(LORA, rank=0, sharding="zero3", offload="parameters", kernels=False)
    parts, host = memory.device(SEVEN, s, 2), memory.host(SEVEN, s, devices=2, world=2)
    assert "weights" not in parts and "optimizer" not in parts
    assert host["optimizer"] * GIB == pytest.approx(16 * SEVEN.text_parameters)
    assert host["weights"] * GIB == pytest.approx(2 * SEVEN.text_parameters)


def test_recomputing_layers_keeps_one_input_a_layer() -> None:
    with_it, without = memory.device(SEVEN, LORA, 1), memory.device(SEVEN, replace(LORA, checkpointing=False), 1)
    assert with_it["saved activations"] * GIB == 2 * SEVEN.sizes.hidden * (SEVEN.sizes.layers + 1) * 2048
    assert without["saved activations"] > 5 * with_it["saved activations"]


def test_offloaded_inputs_of_layers_wait_in_the_machine() -> None:
    s = replace(LORA, sequence_len=8192, activation_offloading=True)
    each = 2 * SEVEN.sizes.hidden * 8192
    there = memory.device(SEVEN, s, 1)["saved activations"] * GIB
    assert there == 3 * each
    here = memory.host(SEVEN, s, 1, 1)["activations"] * GIB
    assert SEVEN.sizes.layers * each <= here < 2 * SEVEN.sizes.layers * each  # pinned in powers of two


def test_devices_that_share_a_row_each_hold_their_part_of_its_activations() -> None:
    s = replace(LORA, rank=16, sequence_len=8192, sharding="ddp", packed=True, evaluation=None)
    whole, shared = memory.device(SEVEN, s, 4), memory.device(SEVEN, replace(s, context_parallel=4), 4)
    for part in ("saved activations", "recomputed layer"):
        assert shared[part] == whole[part] / 4
    assert shared["weights"] == whole["weights"]
    assert shared["logits"] < whole["logits"] and shared["communication"] > whole["communication"]


def test_dropout_beside_the_lora_kernels_keeps_a_copy_and_a_mask_of_each_input() -> None:
    s, z = replace(LORA, checkpointing=False), SEVEN.sizes
    more = memory.saved(SEVEN, replace(s, dropout=0.05)) - memory.saved(SEVEN, s)
    inputs = 2 * z.hidden + z.heads * z.head_dim  # of queries to values, of the MLP, of the output
    assert more == (2 + 1) * inputs


def test_steps_that_were_measured_on_a_gpu_are_foreseen_within_a_tenth() -> None:
    rows = files.read_object(run_folder.ROOT / "bench" / "results" / "gpu.json")["rows"]
    full = [
        row
        for row in rows
        if "allocated_gib" in row and "predicted_gib" in row and row["changes"].get("sample_packing")
    ]
    assert len(full) >= 3
    for row in full:
        changes = row["changes"] | {"micro_batch_size": row["micro_batch"], "attn_implementation": row["attention"]}
        asked = recipe.read_recipe(recipe.find(row["recipe"]), changes=changes | {"val_set_size": 0})
        settings = plan.from_recipe(asked.settings, catalog.tiers()["80gb"])
        model = catalog.model_of(asked.settings["base_model"])
        assert model
        predicted = sum(memory.device(model, settings, 1).values())
        assert predicted == pytest.approx(row["driver_gib"], rel=0.1), row["case"]


def test_eager_attention_is_foreseen_as_a_t4_had_it() -> None:
    """fitcheck-llm 0.3.1, data/measurements/t4-sweep-2026-09-15.json: TinyLlama, 2 x 2048 tokens, rank 32, fp16."""
    config = {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 32000,
    }
    tiny = catalog.described(config, "tiny", "TinyLlama")
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    s = Settings(rank=32, bits=16, sequence_len=2048, micro_batch=2, attention="eager", loss="plain", targets=targets)
    s = replace(s, optimizer="adamw_torch", evaluation=0)
    for attention, measured in (("eager", 6616.1), ("sdpa", 4354.1)):
        parts = memory.device(tiny, replace(s, attention=attention), 1)  # type: ignore[arg-type]
        allocated = sum(parts.values()) - parts["fragmentation"] - parts["CUDA context"]
        held = 2 * s.tokens * tiny.sizes.vocab / GIB  # that script keeps the logits beside the loss, a trainer does not
        assert allocated + held == pytest.approx(measured / 1024, rel=0.05), attention


def test_a_cuda_context_is_as_large_as_it_was_measured_on_that_gpu() -> None:
    model, lora = catalog.models()["qwen1.5b"], catalog.methods()["lora"]
    for tier, context in (("16gb-turing", 0.14), ("16gb", memory.CONTEXT_GIB)):
        found = plan.choose(model, lora, catalog.tiers()[tier])
        assert found and found.parts["CUDA context"] == context


def test_the_upper_layers_alone_keep_less() -> None:
    s = replace(LORA, checkpointing=False)
    half = replace(s, trained_layers=14)
    assert memory.trainable(SEVEN, half) * 2 == memory.trainable(SEVEN, s)
    assert total(half) < total(s)


def test_validation_holds_all_logits_whatever_the_loss() -> None:
    quiet = replace(LORA, evaluation=0)
    assert total(replace(LORA, evaluation=4)) > total(quiet) + 5


settings = st.builds(
    Settings,
    rank=st.sampled_from([0, 8, 16, 64]),
    bits=st.sampled_from([4, 8, 16]),
    sequence_len=st.sampled_from([512, 1024, 4096]),
    micro_batch=st.integers(1, 8),
    dropout=st.sampled_from([0.0, 0.1]),
    checkpointing=st.booleans(),
    attention=st.sampled_from(["flash", "sdpa", "eager"]),
    loss=st.sampled_from(["plain", "chunked", "fused", "cut"]),
    kernels=st.booleans(),
    liger=st.booleans(),
    optimizer=st.sampled_from(["adamw_torch", "adamw_8bit", "paged_adamw_8bit"]),
    sharding=st.sampled_from(["none", "ddp", "zero1", "zero2", "zero3", "fsdp2"]),
)


@given(s=settings, key=st.sampled_from(sorted(catalog.models())), world=st.sampled_from([1, 2, 8]))
def test_parts_are_there_or_left_out_and_grow_with_tokens(s: Settings, key: str, world: int) -> None:
    model = catalog.models()[key]
    parts = memory.device(model, s, world)
    assert all(value > 0 for value in parts.values())
    quiet = replace(s, evaluation=0)
    more = memory.device(model, replace(quiet, micro_batch=s.micro_batch + 1), world)
    assert sum(more.values()) > sum(memory.device(model, quiet, world).values())
    assert sum(memory.device(model, s, world * 2).values()) <= sum(parts.values()) + memory.NCCL_GIB + 1e-9
    assert all(value >= 0 for value in memory.host(model, s, 1, world).values())
    assert all(value > 0 for value in memory.disk(model, s, checkpoints=2).values())


@pytest.mark.heavy
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("games", [True, False])
def test_the_loss_of_a_pair_or_a_game_takes_at_its_peak_what_is_planned(half: bool, games: bool) -> None:
    """TRL's log-probabilities, forward with a pair's reference or a game's entropy, and back.

    `half`: logits made in 16 bits, read in 32.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    sizes = dict[int, int]()
    peak = 0

    class Bytes(TorchDispatchMode):
        """Counts the bytes of all tensors that are alive."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            made = function(*args, **(kwargs or {}))
            for each in made if isinstance(made, (tuple, list)) else [made]:
                if isinstance(each, torch.Tensor) and (storage := each.untyped_storage())._cdata not in sizes:
                    sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, sizes.pop, storage._cdata, None)
                    peak = max(peak, sum(sizes.values()))
            return made

    rows, tokens, vocabulary, hidden = 4, 256, 8192, 8
    head = torch.randn(vocabulary, hidden, dtype=torch.bfloat16 if half else torch.float32)
    ids = torch.randint(0, vocabulary, (rows, tokens))

    def drawn(states: torch.Tensor) -> torch.Tensor:
        logits = (states @ head.T).float()[:, :-1]
        made = selective_log_softmax(logits, ids[:, 1:])
        with torch.no_grad():
            entropy_from_logits(logits) if games else None
        return made

    with Bytes():
        states = torch.randn(rows, tokens, hidden, dtype=head.dtype, requires_grad=True)
        policy = drawn(states)
        with torch.no_grad():
            reference = policy.detach() if games else drawn(states)
        forward, peak = peak, sum(sizes.values())
        torch.nn.functional.logsigmoid((policy - reference).sum()).backward()
    logits = rows * tokens * vocabulary
    assert peak / logits == pytest.approx(memory.RL_LOGITS, rel=0.05)
    assert forward < peak
