"""The tensors in an adapter's file, under the names that peft itself saves them by."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tools import BadInput

if TYPE_CHECKING:
    import torch

# What torch.compile, FSDP, activation checkpointing and DDP put between the names of modules.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^module\.")
# peft's parts of a module, which in memory are followed by the adapter's name; peft leaves that out when it saves.
PARTS = r"(lora_(?:embedding_)?[AB]|lora_magnitude_vector|modules_to_save|trainable_tokens_delta)"
NAMED = re.compile(rf"\.{PARTS}\.(?!weight$|bias$)([^.]+)(?=\.|$)")
PREFIX = "base_model.model."
SHARED = re.compile(r"base_model\.\w+")  # a tensor that all layers of an adapter share, as VeRA and RandLoRA have


@dataclass(frozen=True)
class AdapterTensors:
    """An adapter's file: the shape of each tensor, and the name that it has there, by peft's name."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, str]

    @cached_property
    def read(self) -> "Callable[[str], torch.Tensor]":
        """Reads one tensor by peft's name; the file is opened once."""
        from safetensors import safe_open

        file = safe_open(self.path, framework="pt")
        return lambda name: file.get_tensor(self.stored[name])

    def load(self) -> "dict[str, torch.Tensor]":
        """All tensors by peft's names."""
        return {name: self.read(name) for name in self.stored}


def of_adapter(folder: Path) -> AdapterTensors:
    """The tensors of an adapter's folder. Raises BadInput where two of them have the same name to peft."""
    from safetensors import safe_open

    path = folder / "adapter_model.safetensors"
    with safe_open(path, framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    stored: dict[str, str] = {}
    for theirs in shapes:
        name = plain_name(theirs)
        if name in stored:
            raise BadInput(f"{path}: {stored[name]} and {theirs} are both {name}; save the adapter again with peft")
        stored[name] = theirs
    return AdapterTensors(path, {name: shapes[theirs] for name, theirs in stored.items()}, stored)


def plain_name(name: str) -> str:
    """A tensor's name as peft saves it: without the wrappers of a training and the adapter's name, with its prefix."""
    name = NAMED.sub(r".\1", WRAPPERS.sub("", name))
    return name if name.startswith(PREFIX) or SHARED.fullmatch(name) else PREFIX + name.removeprefix("base_model.")
