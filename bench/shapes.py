"""The real shapes of the catalog's models, as transformers has them."""

from typing import Any

from tools.core.catalog import Model


def config(model: Model, **changes: Any) -> Any:
    """transformers' configuration of a model with its sizes from the catalog; `changes` are keys of it."""
    from transformers import AutoConfig

    z = model.sizes
    sizes: dict[str, Any] = {
        "hidden_size": z.hidden,
        "num_hidden_layers": z.layers,
        "num_attention_heads": z.heads,
        "num_key_value_heads": z.kv_heads,
        "head_dim": z.head_dim,
        "intermediate_size": z.intermediate,
        "vocab_size": z.vocab,
        "tie_word_embeddings": z.tied,
    }
    if model.shape.model_type == "mistral":
        sizes["sliding_window"] = None  # Mistral 7B has had none since v0.2; transformers' default is v0.1's.
    return AutoConfig.for_model(model.shape.model_type, **sizes | changes)
