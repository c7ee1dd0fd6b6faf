"""The Axolotl plugin that trains without a GPU, in one process or several. Named under `plugins:` of the recipe as run.

Several processes are started by torchrun; gloo joins them, and the recipe says how they share the work: by DDP, by
DeepSpeed ZeRO (`deepspeed`) or by FSDP2 (`fsdp_config`), as it does on GPUs.
"""

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeGuard, cast, runtime_checkable

import torch
from accelerate import DistributedType, ParallelismConfig, PartialState
from axolotl.integrations.base import BasePlugin
from axolotl.loaders.model import ModelLoader
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from tools.training import cpu_ops
from tools.training.tokens import IGNORED

if TYPE_CHECKING:
    from axolotl.utils.dict import DictDefault
    from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments
    from transformers.modeling_outputs import CausalLMOutputWithPast

P = ParamSpec("P")


@runtime_checkable
class ZeroEngine(Protocol):
    """A model as DeepSpeed wraps it."""

    def zero_optimization_stage(self) -> int:
        """Its ZeRO stage, 0 to 3."""


class Work(Protocol):
    """What torch.distributed returns of an operation that may go on."""

    def wait(self) -> object:
        """Return when it has finished."""


class CpuPlugin(BasePlugin):
    """Lets Axolotl train on the CPU, and computes logits only where there is a loss."""

    def register(self, cfg: "DictDefault") -> None:
        """Prepare for several processes before Axolotl looks for the GPUs to join them by."""
        if joined(cfg):
            join_by_gloo(cfg)

    def load_datasets(self, cfg: "DictDefault", preprocess: bool = False) -> None:
        """Load nothing: this is the one hook between Axolotl's choice of a GPU for each process and its use."""
        if joined(cfg):
            cfg.device_map = {"": "cpu"}

    def get_training_args(self, cfg: "DictDefault") -> dict[str, bool]:
        """Without `use_cpu`, transformers refuses bf16 autocast on a machine that has no GPU."""
        return {"use_cpu": True}

    def post_model_load(self, cfg: "DictDefault", model: "PreTrainedModel | PeftModel") -> None:
        """Have the model compute the same loss and gradients in less time."""
        causal = cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)
        if not cfg.rl:
            causal.forward = loss_on_trained_tokens(causal)
        if not cfg.gradient_checkpointing:
            # Axolotl asks for the gradient of the embeddings' output, which checkpoints need. Without it, the backward
            # pass ends at the lowest layer with an adapter: with the padding that is skipped, 1.4 times the speed for
            # 20 of 30 layers.
            causal.disable_input_require_grads()
        # DeepSpeed and FSDP gather a layer's weights when its own forward is called. For preference pairs the reference
        # is the model with its adapter switched off, which peft's own layers know.
        if not (cfg.deepspeed or cfg.fsdp_config or cfg.rl):
            cpu_ops.replace_lora(model)

    def add_callbacks_post_trainer(self, cfg: "DictDefault", trainer: "Trainer") -> list[TrainerCallback]:
        """Say at the first step how the work is shared, and stop where it is not as the recipe asks."""
        return [Sharing(asked(cfg), trainer)]


class Sharing(TrainerCallback):
    """Proves at train begin that what runs is what the recipe asks for: a fallback to DDP has the same losses."""

    def __init__(self, wanted: str, trainer: "Trainer") -> None:
        self.wanted, self.trainer = wanted, trainer

    def on_train_begin(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **rest: object
    ) -> None:
        """Print one line from the first process. Raises RuntimeError where the recipe asks for something else."""
        found = running(self.trainer.model_wrapped)
        if found != self.wanted:
            raise RuntimeError(f"the recipe asks for {self.wanted}; what would run is {found}")
        if state.is_world_process_zero:
            print(f"react-recipes: {found}", flush=True)


def processes() -> int:
    """The number of processes in this run, as torchrun tells it to each of them; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def joined(cfg: "DictDefault") -> bool:
    """Whether this run's processes are joined: several, or one under DeepSpeed, which asks for a group of its own."""
    return processes() > 1 or bool(cfg.get("deepspeed"))


def asked(cfg: "DictDefault") -> str:
    """How the recipe, normalised by Axolotl, wants the work to be shared, in the words of `running`."""
    if processes() == 1 and not cfg.get("deepspeed") and not cfg.get("fsdp_config"):
        return "1 process on the CPU"
    if cfg.get("deepspeed"):
        # Without this key DeepSpeed shards nothing, which it calls stage 0.
        way = f"DeepSpeed ZeRO-{cfg['deepspeed'].get('zero_optimization', {}).get('stage', 0)}"
    else:
        way = "FSDP2" if cfg.get("fsdp_config") else "DDP"
    return f"{counted(processes())} on the CPU (gloo), {way}"


def running(model: object) -> str:
    """How the work on `model`, as the trainer wrapped it, is shared: read off the wrapper and its process group."""
    if isinstance(model, ZeroEngine):
        way = f"DeepSpeed ZeRO-{model.zero_optimization_stage()}"
    elif isinstance(model, FSDPModule):
        way = "FSDP2"
    elif isinstance(model, DistributedDataParallel):
        way = "DDP"
    else:
        return "1 process on the CPU"
    return f"{counted(torch.distributed.get_world_size())} on the CPU ({torch.distributed.get_backend()}), {way}"


def counted(number: int) -> str:
    """That many processes, in words."""
    return f"{number} process" if number == 1 else f"{number} processes"


def join_by_gloo(cfg: "DictDefault") -> None:
    """Make Axolotl, accelerate and DeepSpeed join this run's processes by gloo, on the CPU, as they do by NCCL."""
    # Axolotl asks this of the GPUs of every run of several processes; without a driver torch raises.
    torch.cuda.can_device_access_peer = lambda *_: False
    # To accelerate, FSDP is a thing of GPUs, while DDP must know that it is on a CPU; DeepSpeed comes before either.
    kind = DistributedType.MULTI_GPU if cfg.get("fsdp_config") else DistributedType.MULTI_CPU
    # The trainer makes this state anew, twice, so it is not enough to make it once here.
    PartialState._prepare_backend = lambda *_, **__: ("gloo", kind)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if cfg.get("fsdp_config"):
        # Axolotl makes a mesh of "cuda" before any state, and the mesh would join the processes by what it likes.
        PartialState()
        mesh = ParallelismConfig.build_device_mesh
        ParallelismConfig.build_device_mesh = lambda self, device_type: mesh(self, "cpu")
        ModelLoader._set_device_map_config = on_the_cpu(ModelLoader._set_device_map_config)
    if cfg.get("deepspeed"):
        import deepspeed.comm
        import deepspeed.ops

        # Its own exchange through shared memory has to be compiled first, for each environment anew.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.comm.all_gather_into_tensor = gathered_in_order(deepspeed.comm.all_gather_into_tensor)
        if processes() == 1:  # Axolotl 0.19 then joins it to itself, by NCCL (utils/trainer.py, setup_deepspeed_env).
            deepspeed.comm.init_distributed("gloo")


def on_the_cpu(set_device_map: Callable[[ModelLoader], None]) -> Callable[[ModelLoader], None]:
    """`set_device_map`, then the CPU in place of the GPU that it names.

    For FSDP with a 4-bit base Axolotl 0.19 names the GPU of this process's number, whatever the recipe's device_map is.
    """

    def set_cpu(loader: ModelLoader) -> None:
        set_device_map(loader)
        if "device_map" in loader.model_kwargs:
            loader.model_kwargs["device_map"] = {"": "cpu"}

    return set_cpu


def gathered_in_order(
    all_gather: Callable[P, Work | None],
) -> Callable[P, Work | None]:
    """`all_gather`, of torch's signature, finished when it returns and outside autograd, as DeepSpeed takes it to be.

    ZeRO-3 starts several gathers and waits for the last (deepspeed 0.18.9, `_allgather_params_coalesced`): right on a
    CUDA stream, but gloo works in two threads, and a gather that ends late overwrites weights just loaded. ZeRO-1 and
    ZeRO-2 gather into weights that require gradients; gloo splits such a tensor, which autograd forbids.
    """

    @functools.wraps(all_gather)
    def finished(*args: P.args, **kwargs: P.kwargs) -> Work | None:
        with torch.no_grad():
            work = all_gather(*args, **kwargs)
        # None where it was not asynchronous. Whoever waits again for finished work does not wait.
        if work is not None:
            work.wait()
        return work

    return finished


def loss_on_trained_tokens(causal: "PreTrainedModel") -> Callable[..., "CausalLMOutputWithPast"]:
    """A forward for a transformers causal model of micro batch 1 that skips padding, and logits without a label.

    In household episodes six tokens in ten carry no label, and the vocabulary's projection is a fifth of this model's
    arithmetic; Axolotl pads to whole 64 tokens, 5 % of an episode. `labels` is [1, tokens] with -100 where nothing is
    trained; the loss is transformers' own. While it trains, the output holds no logits.
    """
    forward = causal.forward

    # The trainer keeps those columns of the data that forward's signature names.
    @functools.wraps(forward)
    def trained_only(
        *args: object, labels: torch.Tensor | None = None, num_items_in_batch: int | None = None, **rest: object
    ) -> "CausalLMOutputWithPast":
        if labels is None or labels.shape[0] != 1:
            return forward(*args, labels=labels, num_items_in_batch=num_items_in_batch, **rest)
        if of_tokens(mask := rest.get("attention_mask"), labels):
            end = int(mask[0].nonzero().max()) + 1
            rest = {name: each[:, :end] if of_tokens(each, labels) else each for name, each in rest.items()}
            labels = labels[:, :end]
        # Position i predicts token i + 1.
        positions = (labels[0, 1:] != IGNORED).nonzero()[:, 0]
        output = forward(*args, logits_to_keep=positions, **rest)
        total = cpu_ops.CrossEntropy.apply(output.logits[0], labels[0, positions + 1])
        loss = total / (len(positions) if num_items_in_batch is None else num_items_in_batch)
        if causal.training:
            return type(output)(loss=loss)  # accelerate would copy the logits to 32 bits
        output.loss = loss
        return output

    return trained_only


def of_tokens(value: object, labels: torch.Tensor) -> TypeGuard[torch.Tensor]:
    """Whether `value` holds one row of something for each token that `labels` has."""
    return isinstance(value, torch.Tensor) and value.shape[:2] == labels.shape
