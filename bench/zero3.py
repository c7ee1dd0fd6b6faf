"""What ZeRO-3 holds of gathered weights between forward and backward pass, counted on the CPU in 2 processes.

torchrun --standalone --nproc_per_node 2 bench/zero3.py

A line for each case: with and without recomputed layers, with and without DeepSpeed's memory_efficient_linear, which it
puts in place of torch.nn.functional.linear where the model is loaded under its own zero.Init, as Axolotl loads it.
Counted are the bytes of gathered weights whose storage is alive after the third forward pass. Parameters are kept for
one layer at most, as our files keep 200 million elements of models whose layers have about as many.
"""

import os
from typing import Any

import orjson
import torch

from tools.core import run_folder

HIDDEN, LAYERS = 256, 8
FILE = run_folder.ROOT / "recipes" / "deepspeed" / "zero3.json"


def held(recomputed: bool, efficient: bool) -> tuple[int, int]:
    """Bytes of gathered weights alive after a forward pass, and of all weights, of a Llama of 8 layers in bf16."""
    import deepspeed
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
    from torch.multiprocessing.reductions import StorageWeakRef
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.integrations import HfDeepSpeedConfig

    shape: Any = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=1000, use_cache=False,
    )  # fmt: skip
    layer = 9 * HIDDEN * HIDDEN
    config: dict[str, Any] = orjson.loads(FILE.read_bytes())
    config |= {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 2, "gradient_accumulation_steps": 1}
    config |= {"gradient_clipping": 1.0, "zero_allow_untested_optimizer": True}
    config["zero_optimization"] |= {
        # As transformers fills what is "auto": integrations/deepspeed.py, trainer_config_finalize.
        "reduce_bucket_size": HIDDEN**2,
        "stage3_prefetch_bucket_size": int(0.9 * HIDDEN**2),
        "stage3_param_persistence_threshold": 10 * HIDDEN,
        "stage3_max_live_parameters": layer,
        "stage3_max_reuse_distance": layer,
        "memory_efficient_linear": efficient,
    }
    kept = HfDeepSpeedConfig(config)  # transformers looks for it while it lives
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = AutoModelForCausalLM.from_config(shape)
    del kept
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
    gathered: dict[int, tuple[Any, int]] = {}
    fetch = PartitionedParameterCoordinator.fetch_sub_module

    def counted(self: Any, module: torch.nn.Module, forward: bool) -> None:
        fetch(self, module, forward)
        each: Any
        for each in module.parameters(recurse=False):
            if not each.ds_persist and each.numel():
                storage = each.data.untyped_storage()
                gathered[storage._cdata] = StorageWeakRef(storage), storage.nbytes()

    PartitionedParameterCoordinator.fetch_sub_module = counted
    ids = torch.randint(0, 1000, (1, 64))
    for _ in range(3):  # In its first pass DeepSpeed learns the order of the layers.
        loss = engine(input_ids=ids, labels=ids).loss
        alive = sum(size for storage, size in gathered.values() if not storage.expired())
        engine.backward(loss)
        engine.step()
    PartitionedParameterCoordinator.fetch_sub_module = fetch
    return alive, 2 * sum(each.ds_numel for each in model.parameters())


def main() -> None:
    """Count every case; the first process prints."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # needs no compiler
    deepspeed.init_distributed("gloo")
    linear = torch.nn.functional.linear
    for efficient in (True, False):
        for recomputed in (False, True):
            torch.nn.functional.linear = linear
            alive, weights = held(recomputed, efficient)
            if torch.distributed.get_rank() == 0:
                how = f"memory_efficient_linear {efficient}, recomputed {recomputed}"
                print(f"{how}: {alive / 2**20:.2f} of {weights / 2**20:.2f} MiB held after forward", flush=True)


if __name__ == "__main__":
    main()
