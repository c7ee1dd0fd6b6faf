"""Base + adapter -> one Hugging Face folder, by peft, with the tokenizer, end token and template of training."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tools import Failed
from tools.core import files, progress
from tools.gguf import lora
from tools.gguf.tuned_folder import copy_tokenizer

if TYPE_CHECKING:
    import torch
    from peft import PeftMixedModel, PeftModel
    from transformers import PreTrainedModel

EMBEDDINGS = re.compile(r"\.(embed_tokens|lm_head)(\.base_layer)?\.weight$")
# The largest file of merged weights: small enough to be sent again when its sending breaks off.
SHARD = "4GB"


def merge_to_folder(base_model: Path, adapter: Path, out: Path, shard: str = SHARD) -> None:
    """Merge an adapter into its base with peft, in float32, rounded once to the base's type, as a folder `out`.

    The weights lie in safetensors of at most `shard` each. Tokenizer, end token and chat template are those of
    training, which lie beside the adapter; the base's only where there are none. Raises BadInput for an adapter that
    cannot be read, Failed when it does not fit the base.
    """
    lora.check_patterns(lora.check_adapter(adapter), lora.shapes(base_model), adapter)
    with progress.step("merging the adapter into its base") as shown, files.atomic(out) as partial:
        import torch
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        dtype = AutoConfig.from_pretrained(base_model, trust_remote_code=False).dtype or torch.bfloat16
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            base_model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        tensors = load_file(adapter / "adapter_model.safetensors")
        rows = next((len(each) for name, each in tensors.items() if name.endswith("embed_tokens.weight")), 0)
        if rows and rows != embedding_rows(model):
            model.resize_token_embeddings(rows, mean_resizing=False)
        rows = embedding_rows(model)
        try:
            tuned = get_peft_model(model, PeftConfig.from_pretrained(str(adapter)))
        except ValueError as error:  # none of the modules that it names is in the base
            raise Failed(f"{adapter} does not fit {base_model}: {str(error).splitlines()[0]}") from error
        if differences := misfits(tuned, tensors):
            raise Failed(misfit(adapter, base_model, differences))
        set_peft_model_state_dict(tuned, tensors)
        merged = tuned.merge_and_unload().to(dtype)
        shown.update(title="writing the merged model")
        merged.save_pretrained(partial, max_shard_size=shard)
        copy_tokenizer(base_model, adapter, partial, rows)
        for path in base_model.glob("LICENSE*"):
            shutil.copy2(path, partial)


def embedding_rows(model: "PreTrainedModel") -> int:
    """How many tokens a model's embedding has."""
    return int(cast("torch.nn.Embedding", model.get_input_embeddings()).weight.shape[0])


def misfit(adapter: Path, base_model: Path, differences: list[str]) -> str:
    """One line on an adapter of another base, from a line for each tensor."""
    return f"{adapter} does not fit {base_model}: {differences[0]} ({len(differences)} such tensors)"


def misfits(tuned: "PeftModel | PeftMixedModel", tensors: "dict[str, torch.Tensor]") -> list[str]:
    """How an adapter's tensors differ, in name and shape, from those that its base would take; a line each."""
    from peft import get_peft_model_state_dict

    # Without False, peft asks the model hub whether the vocabulary was resized.
    wanted = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    # Embeddings are saved besides where the vocabulary was resized, or they were trained.
    alone = [name for name in sorted(tensors.keys() - wanted.keys()) if not EMBEDDINGS.search(name)]
    lines = [f"{name} is in the adapter alone" for name in alone]
    lines += [f"{name} is not in the adapter" for name in sorted(wanted.keys() - tensors.keys())]
    for name in sorted(tensors.keys() & wanted.keys()):
        mine, theirs = list(tensors[name].shape), list(wanted[name].shape)
        if mine != theirs:
            lines.append(f"{name} is {mine} in the adapter and {theirs} for this base")
    return lines
