"""Base + adapter -> one Hugging Face folder, on a random model of two layers with a real tokenizer."""

import json
import shutil
from pathlib import Path

from tools.gguf import merge


def test_large_models_come_in_several_files_that_load_as_one(
    small_base: Path, small_adapter: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    merge.merge_to_folder(small_base, small_adapter, tmp_path / "one")
    merge.merge_to_folder(small_base, small_adapter, tmp_path / "several", shard="2MB")
    index = json.loads((tmp_path / "several" / "model.safetensors.index.json").read_bytes())
    assert len(set(index["weight_map"].values())) == len(list((tmp_path / "several").glob("*.safetensors"))) > 1
    one, several = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "several"))
    assert one.keys() == several.keys() and all((one[name] == several[name]).all() for name in one)


def test_the_bases_licence_goes_with_it(small_base: Path, small_adapter: Path, tmp_path: Path) -> None:
    licensed = tmp_path / "base"
    shutil.copytree(small_base, licensed)
    (licensed / "LICENSE").write_text("Apache License 2.0")
    merge.merge_to_folder(licensed, small_adapter, tmp_path / "merged")
    assert (tmp_path / "merged" / "LICENSE").read_text() == "Apache License 2.0"
