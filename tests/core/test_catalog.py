"""The facts of catalog/ load, hold together, and give each model's published count of parameters."""

import re
from pathlib import Path

import pytest

from tools import BadInput
from tools.core import catalog, run_folder


def test_entries_have_names_that_recipes_and_hubs_use() -> None:
    models = catalog.models()
    assert len({model.hub for model in models.values()}) == len(models)
    for key, model in models.items():
        assert model.key == key
        assert re.fullmatch(r"[a-z0-9.-]+", key)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.hub)
        assert model.licence and model.eos and model.family


def test_the_models_that_the_project_is_for_are_there() -> None:
    sizes = {"qwen": "0.5b 1.5b 3b 7b 14b 32b 72b", "qwen3-": "0.6b 1.7b 4b 8b 14b 32b", "gemma3-": "1b 4b 12b 27b"}
    sizes |= {
        "llama3.2-": "1b 3b",
        "llama3.1-": "8b",
        "llama3.3-": "70b",
        "mistral-": "7b",
        "smollm2-": "135m 360m 1.7b",
    }
    wanted = {f"{family}{size}" for family, each in sizes.items() for size in each.split()} | {"phi4", "phi4-mini"}
    assert wanted <= set(catalog.models())


@pytest.mark.parametrize("key", catalog.models())
def test_sizes_give_the_published_count(key: str) -> None:
    model = catalog.models()[key]
    assert model.text_parameters + model.tower + model.stored_twice == model.parameters


@pytest.mark.parametrize("key", catalog.models())
def test_transformers_own_class_has_as_many_parameters(key: str) -> None:
    """Made on the meta device: shapes without memory."""
    import torch
    import transformers

    model = catalog.models()[key]
    sizes = model.sizes
    config = transformers.AutoConfig.for_model(
        model.shape.model_type,
        hidden_size=sizes.hidden,
        num_hidden_layers=2,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.intermediate,
        vocab_size=sizes.vocab,
        tie_word_embeddings=sizes.tied,
        pad_token_id=0,
    )
    with torch.device("meta"):
        made = transformers.AutoModelForCausalLM.from_config(config)
    # Layers are alike: two of them, made, and the rest of them, counted.
    layers = [sum(each.numel() for each in layer.parameters()) for layer in made.model.layers]
    assert layers[0] == layers[1] == model.layer_linear + model.layer_rest
    whole = sum(each.numel() for each in made.parameters()) + (sizes.layers - 2) * layers[0]
    assert whole == model.text_parameters
    linears = {name.split(".")[-1]: each for name, each in made.model.layers[0].named_modules() if "_proj" in name}
    assert {name: (each.in_features, each.out_features) for name, each in linears.items()} == model.linears
    assert type(made.model.layers[0]).__name__ == model.shape.layer


def test_peft_makes_an_adapter_of_the_computed_size() -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    model = catalog.models()["qwen0.5b"]
    config = transformers.AutoConfig.for_model(
        "qwen2", hidden_size=896, num_hidden_layers=3, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=4864, vocab_size=1000, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        made = transformers.AutoModelForCausalLM.from_config(config)
        adapted = get_peft_model(made, LoraConfig(r=16, target_modules="all-linear"))
    trained = sum(each.numel() for each in adapted.parameters() if each.requires_grad)
    assert trained == model.adapter_parameters(16, layers=3)


def test_gpus_reach_from_6_gb_to_the_data_centre() -> None:
    gpus = catalog.gpus()
    assert len(gpus) >= 30
    wanted = "gtx1660ti rtx2060 rtx3060 rtx4060ti-16gb rtx4090 rtx5090 t4 a10g l4 a6000 l40s a100-40gb h200 b200"
    assert set(wanted.split()) <= set(gpus)
    for gpu in gpus.values():
        assert 0.88 * gpu.memory_gb < gpu.usable <= gpu.memory_gb, gpu.key
        assert gpu.source.startswith("https://") and gpu.names
        assert gpu.modern == (gpu.architecture not in ("volta", "turing"))


def test_a_tier_is_no_larger_than_the_gpu_it_is_planned_for() -> None:
    for tier in catalog.tiers().values():
        if tier.gpu:
            gpu = catalog.gpus()[tier.gpu]
            assert tier.usable_gib <= gpu.usable and tier.memory_gb == gpu.memory_gb
            assert (tier.precision == "bf16") == gpu.modern


def test_methods_say_what_the_design_says() -> None:
    methods = catalog.methods()
    seven, fourteen = catalog.models()["qwen7b"], catalog.models()["qwen14b"]
    assert methods["lora"].rate(seven) == 1e-4 and methods["qlora"].rate(seven) == 2e-4
    assert methods["full"].rate(seven) == 1e-5 and methods["full"].rate(fourteen) == 5e-6
    assert (methods["lora"].rank, methods["lora"].alpha, methods["lora"].dropout) == (16, 32, 0.05)
    calm = methods["lora-regularised"]
    assert (calm.dropout, calm.weight_decay, calm.epochs) == (0.1, 0.01, 2)
    for method in methods.values():
        assert method.advised[0] <= method.rate(seven) <= method.advised[1]


def test_every_family_has_its_sampling_or_a_source_that_names_none() -> None:
    assert set(catalog.sampling().families) == {model.family for model in catalog.models().values()}
    for each in catalog.sampling().families.values():
        assert each.source.startswith("https://huggingface.co/")


def test_every_package_is_pinned_with_its_hash() -> None:
    pins = (run_folder.ROOT / "downloads.lock").read_text()
    for model in catalog.models().values():
        if model.package:
            assert re.search(
                rf"^{re.escape(model.package.project)}==\S+ --hash=sha256:[0-9a-f]{{64}}$", pins, re.MULTILINE
            )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("# facts\n8gb:\n  nodes: 1\n  device: 1\n", "4: 8gb.device: no such key"),
        ("8gb: {nodes: 1}\n", "1: 8gb.devices: Field required"),
        ("8gb:\n  nodes: 1\n  devices: one\n", "3: 8gb.devices: Input should be"),
        ("8gb: 8\n", "1: 8gb: "),
        ("", "1: "),
        ("8gb:\n\tnodes: 1\n", "2: not YAML: "),
    ],
)
def test_what_breaks_the_schema_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    (tmp_path / "tiers.yaml").write_text(text)
    monkeypatch.setattr(catalog, "CATALOG", tmp_path)
    with pytest.raises(BadInput, match=rf"tiers.yaml:{why}"):
        catalog.entries("tiers", catalog.Tier)


def test_an_unknown_key_is_told_the_nearest() -> None:
    with pytest.raises(BadInput, match="qwen7: no such model; nearest: .*qwen7b"):
        catalog.pick("model", "qwen7", catalog.models())


def test_a_model_is_known_by_hub_id_and_by_its_folders_name() -> None:
    for name in ("Qwen/Qwen2.5-7B-Instruct", "models/Qwen2.5-7B-Instruct/"):
        found = catalog.model_of(name)
        assert found and found.key == "qwen7b"
    assert catalog.model_of("someone/else") is None


def test_a_config_describes_a_model() -> None:
    config = {
        "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    made = catalog.described(config, "mine", "me/Mine")
    assert made.parameters == catalog.models()["qwen0.5b"].parameters and made.architecture == "qwen2"
    with pytest.raises(BadInput, match="of type 'mamba'"):
        catalog.described(config | {"model_type": "mamba"}, "mine", "me/Mine")
    with pytest.raises(BadInput, match="lacks a size"):
        catalog.described({"model_type": "qwen2"}, "mine", "me/Mine")


@pytest.mark.parametrize("name", ["rtx4090", "RTX 4090", "GeForce RTX 4090", "NVIDIA GeForce RTX 4090", "rtx-4090"])
def test_a_gpu_is_known_by_every_name_that_people_have_for_it(name: str) -> None:
    assert catalog.gpu_of(name).key == "rtx4090"


def test_an_unknown_or_ambiguous_gpu_is_told_with_near_ones() -> None:
    with pytest.raises(BadInput, match=r"rtx4091: no such GPU; nearest: rtx4090"):
        catalog.gpu_of("RTX 4091")
    with pytest.raises(BadInput, match=r"h100: no such GPU; nearest: h100-"):
        catalog.gpu_of("h100")
    assert all(catalog.gpu_of(each.title) == each for each in catalog.gpus().values())
