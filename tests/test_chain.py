"""What the stages after training know of an adapter; tests/chain runs them for real."""

from pathlib import Path

import orjson
import pytest

from tools import BadInput, chain, run


def test_anothers_adapter_gets_a_run_of_its_own(others: tuple[Path, Path]) -> None:
    source, adapter = others
    model = chain.tuned("", str(source), str(adapter))
    assert model.run.folder == run.outputs() / "adapters" / "their-adapter"
    assert (model.name, model.base, model.sequence_len) == ("their-adapter", source, 1024)
    assert model.metadata["react_recipes.adapter_sha256"] == run.sha256(adapter)
    assert model.metadata["react_recipes.base_model"] == str(source)
    assert "react_recipes.data_sha256" not in model.metadata


def test_anothers_adapter_names_its_base_or_a_person_does(others: tuple[Path, Path]) -> None:
    source, adapter = others
    with pytest.raises(BadInput, match=r"adapter_config\.json names no base; --base"):
        chain.tuned("", "", str(adapter))
    named = orjson.dumps({"peft_type": "LORA", "base_model_name_or_path": str(source)})
    (adapter / "adapter_config.json").write_bytes(named)
    assert chain.tuned("", "", str(adapter)).base == source
    with pytest.raises(BadInput, match="not an adapter"):
        chain.tuned("", "", str(source))
