"""A model of a person's choice: described by its config.json and its tokenizer, and said before it is written."""

import shutil
from pathlib import Path

import orjson
import pytest

from tests.parts import models
from tools import BadInput
from tools.core import catalog
from tools.recipes import new_model, plan, render


@pytest.mark.parametrize(
    ("written", "ends", "eos"),
    [
        ("<s>user x<end>assistant x<end>", ["</s>", "<end>"], "<end>"),
        ("<s>user x assistant x</s>", ["</s>"], "</s>"),
        ("<s>", ["</s>", "<end>"], "</s>"),  # no chat template
        ("", [], ""),
    ],
)
def test_the_end_token_is_the_one_that_ends_a_turn(written: str, ends: list[str], eos: str) -> None:
    assert new_model.end_of_turn(written, ends) == eos


def test_a_model_is_added_with_what_its_tokenizer_strips(tmp_path: Path) -> None:
    for kind, model in (("phi4", "phi4"), ("phi4-mini", "phi4-mini")):
        models.make_tokenizer(kind, tmp_path / kind)
        known = catalog.models()[model]
        found = new_model.tokens_of(tmp_path / kind)
        assert (found["eos"], set(found["strips"])) == (known.eos, {*known.strips}), kind
    with pytest.raises(BadInput, match="holds no tokenizer"):
        new_model.tokens_of(tmp_path)


def test_a_model_is_added_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(catalog.CATALOG, tmp_path / "catalog")
    shutil.copytree(render.RECIPES / "deepspeed", tmp_path / "recipes" / "deepspeed")
    monkeypatch.setattr(catalog, "CATALOG", tmp_path / "catalog")
    monkeypatch.setattr(render, "RECIPES", tmp_path / "recipes")
    catalog.models.cache_clear()
    folder = tmp_path / "Tiny-Qwen-Instruct"
    models.make_tokenizer("qwen2", folder)
    config = {
        "model_type": "qwen2", "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16,
        "num_key_value_heads": 4, "intermediate_size": 2816, "vocab_size": 32000, "max_position_embeddings": 8192,
    }  # fmt: skip
    (folder / "config.json").write_bytes(orjson.dumps(config))
    try:
        before = (tmp_path / "catalog" / "models.yaml").read_bytes()
        new_model.add_model(str(folder), dry_run=True)
        told = capsys.readouterr().out
        assert "tiny-qwen:" in told and "tiny-qwen-lora: " in told and "24gb" in told
        assert (tmp_path / "catalog" / "models.yaml").read_bytes() == before
        assert not (tmp_path / "recipes" / "24gb").exists()
        new_model.add_model(str(folder))
        assert capsys.readouterr().out.startswith(told.splitlines()[0])
        assert catalog.models()["tiny-qwen"].sizes.hidden == 1024
        assert (catalog.models()["tiny-qwen"].eos, catalog.models()["tiny-qwen"].strips) == ("<|im_end|>", ())
        assert (tmp_path / "recipes" / "24gb" / "tiny-qwen-lora.yaml").exists()
        with pytest.raises(BadInput, match="in the catalog already, as tiny-qwen"):
            new_model.add_model(str(folder))
        with pytest.raises(BadInput, match="has no config.json"):
            new_model.add_model(str(tmp_path / "recipes"), "other")
    finally:
        monkeypatch.undo()
        catalog.models.cache_clear()
        plan.chosen.cache_clear()
