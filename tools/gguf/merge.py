"""Base + adapter -> one Hugging Face folder, by peft, with the tokenizer, end token and template of training."""

import contextlib
import math
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tools import BadInput, Failed
from tools.core import files, progress
from tools.gguf import adapter_config, adapter_tensors, lora
from tools.gguf.tuned_folder import copy_tokenizer

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

EMBEDDINGS = re.compile(r"\.(embed_tokens|lm_head)(\.token_adapter)?(\.base_layer|\.original_module)?\.weight$")
# How far logits may be apart before and after a merge, as a share of the largest: float32 sums in another order are
# some 1e-6 (measured with 12 kinds of adapters).
CLOSE = 1e-3
# The largest file of merged weights: small enough to be sent again when its sending breaks off.
SHARD = "4GB"


def merge_to_folder(base_model: Path, adapter: Path, out: Path, shard: str = SHARD) -> None:
    """Merge an adapter into its base with peft, in float32, rounded once to the base's type, as a folder `out`.

    The weights lie in safetensors of at most `shard` each. Tokenizer, end token and chat template are those of
    training, which lie beside the adapter; the base's only where there are none. Raises BadInput for an adapter that
    cannot be read or merged, Failed when it does not fit the base.
    """
    with progress.step("merging the adapter into its base") as shown, files.atomic(out) as partial:
        merged = merged_model(base_model, adapter)
        shown.update(title="writing the merged model")
        merged.save_pretrained(partial, max_shard_size=shard)
        copy_tokenizer(base_model, adapter, partial, embedding_rows(merged))
        for path in base_model.glob("LICENSE*"):
            shutil.copy2(path, partial)


def merged_model(base_model: Path, adapter: Path) -> "PreTrainedModel":
    """A base with its adapter merged by peft, in memory, in the base's type; see `merge_to_folder` for what it raises.

    What a person should know of the adapter is said on stderr.
    """
    import torch
    from transformers import AutoConfig

    tuned = with_adapter(base_model, adapter, torch.float32)
    merged = merged_by_peft(tuned, adapter)
    dtype = AutoConfig.from_pretrained(base_model, trust_remote_code=False).dtype or torch.bfloat16
    merged.to(dtype)  # type: ignore[arg-type, call-arg]
    for name, weight in merged.named_parameters():
        lora.check_values(name, weight, math.inf)
    return merged


def with_adapter(base_model: Path, adapter: Path, dtype: "torch.dtype | str") -> "PeftModel":
    """A base in `dtype` with its adapter beside it, as it was in training; raises and tells what `merged_model` does.

    `dtype`: "auto" for that of its file.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    adapter_config.check_patterns(adapter_config.check_adapter(adapter), lora.shapes(base_model), adapter)
    plan: lora.Plan = {}
    tensors = adapter_tensors.of_adapter(adapter)
    with contextlib.suppress(adapter_config.Unsupported):
        plan = fitted(base_model, adapter)
    for remark in lora.remarks(plan, tensors) if plan else ():
        print(f"{adapter}: {remark}", file=sys.stderr)
    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(base_model, trust_remote_code=False)
    model: PreTrainedModel = model_class(config).from_pretrained(
        base_model, dtype=dtype, use_safetensors=True, trust_remote_code=False
    )
    left = prepare_embeddings(model, tensors.load(), lora.HEAD in plan and lora.HEAD not in lora.shapes(base_model))
    return adapted(model, base_model, adapter, left)


def model_class(config: "PretrainedConfig") -> type["AutoModelForCausalLM"] | type["AutoModelForImageTextToText"]:
    """The automatic class of transformers for a model: of text alone, else of one that also sees images."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def fitted(base_model: Path, adapter: Path) -> lora.Plan:
    """What an adapter changes of a base, by the names of its tensors.

    Raises BadInput for an adapter that cannot be read or merged, Failed when it is another base's, Unsupported for one
    that peft must merge.
    """
    shapes = lora.shapes(base_model)
    plan, differences = lora.fit(lora.plan(adapter), shapes, adapter)
    if differences:
        raise Failed(misfit(adapter, base_model, differences))
    lora.rows_after(plan, shapes, adapter)
    return plan


def prepare_embeddings(
    model: "PreTrainedModel", tensors: "dict[str, torch.Tensor]", untie: bool
) -> "dict[str, torch.Tensor]":
    """Give a base the rows and the head that it had as the training began; the tensors that are left for peft.

    `untie`: the head gets weights of its own, the embedding's, since the training changed one of the two alone.
    """
    import torch

    twice = {name for name in tensors if lora.again(name, tensors)}
    if model.config.get_text_config().tie_word_embeddings and not untie:  # peft has the trained tokens once
        twice |= {name for name in tensors if ".lm_head.token_adapter." in name}
    originals = {name for name in tensors if lora.ORIGINAL.fullmatch(name)}
    rows = next((len(each) for name, each in tensors.items() if EMBEDDINGS.search(name)), 0)
    if rows and rows != embedding_rows(model):
        model.resize_token_embeddings(rows, mean_resizing=False)
    if untie:
        embedding = cast("torch.nn.Embedding", model.get_input_embeddings())
        for name in tensors:  # the one matrix of both, with its new rows
            if name.endswith(("embed_tokens.original_module.weight", ".base_layer.weight")) and EMBEDDINGS.search(name):
                embedding.weight.data.copy_(tensors[name])
        head = cast("torch.nn.Linear", model.get_output_embeddings())
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    return {name: each for name, each in tensors.items() if name not in twice and name not in originals}


def adapted(
    model: "PreTrainedModel", base_model: Path, adapter: Path, tensors: "dict[str, torch.Tensor]"
) -> "PeftModel":
    """A base with the adapter's tensors beside its weights. Raises Failed when they do not fit it, BadInput."""
    from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict

    try:
        tuned = get_peft_model(model, PeftConfig.from_pretrained(str(adapter)))
    except ValueError as error:  # none of the modules that it names is in the base
        raise Failed(f"{adapter} does not fit {base_model}: {str(error).splitlines()[0]}") from error
    if not isinstance(tuned, PeftModel) or not hasattr(tuned.base_model, "merge_and_unload"):
        why = "changes no weights of its base, so nothing can be merged; peft runs it"
        raise BadInput(f"{adapter}: an adapter of this kind {why}")
    tensors = by_pefts_names(tensors, tuned)
    if differences := misfits(tuned, tensors):
        raise Failed(misfit(adapter, base_model, differences))
    set_peft_model_state_dict(tuned, tensors)
    return tuned


def merged_by_peft(tuned: "PeftModel", adapter: Path) -> "PreTrainedModel":
    """The adapter merged into the weights of its base, in memory.

    Raises BadInput for a kind that peft does not merge, or merges into a model that computes something else than base
    and adapter side by side.
    """
    wanted, kind = trial_logits(tuned), f"{adapter}: an adapter of this kind"
    try:
        merged = cast("PreTrainedModel", tuned.merge_and_unload())
    except RuntimeError as error:
        raise BadInput(f"{kind} cannot be merged into its base: {error}") from error
    apart = float((trial_logits(merged) - wanted).abs().max() / wanted.abs().max())
    if not apart < CLOSE:
        raise BadInput(f"{kind} is not merged right by peft: logits differ by {apart:.2g} of the largest")
    return merged


def trial_logits(model: "PreTrainedModel | PeftModel") -> "torch.Tensor":
    """The logits of a model for some tokens, [tokens, vocabulary]."""
    import torch

    model.eval()
    with torch.no_grad():
        return cast("torch.Tensor", model(input_ids=torch.arange(1, 17)[None]).logits[0])


def by_pefts_names(tensors: "dict[str, torch.Tensor]", tuned: "PeftModel") -> "dict[str, torch.Tensor]":
    """An adapter's tensors by the names that they have in this base, where only modules before them differ."""
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    return {
        lora.name_in(wanted, name.removeprefix(adapter_tensors.PREFIX)) or name: each for name, each in tensors.items()
    }


def embedding_rows(model: "PreTrainedModel") -> int:
    """How many tokens a model's embedding has."""
    return int(cast("torch.nn.Embedding", model.get_input_embeddings()).weight.shape[0])


def misfit(adapter: Path, base_model: Path, differences: list[str]) -> str:
    """One line on an adapter of another base, from a line for each tensor."""
    return f"{adapter} does not fit {base_model}: {differences[0]} ({len(differences)} such tensors)"


def misfits(tuned: "PeftModel", tensors: "dict[str, torch.Tensor]") -> list[str]:
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
