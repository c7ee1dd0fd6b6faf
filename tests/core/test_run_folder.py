"""A run's folder: what its stages were made from, and who has them."""

from pathlib import Path

import pytest

from tools import BadInput
from tools.core import run_folder


def test_a_stage_is_kept_with_time_and_memory_only_when_it_succeeds(tmp_path: Path) -> None:
    this = run_folder.Run(tmp_path)
    with this.stage("train", {"data": "abc"}) as notes:
        notes["tokens"] = 5
    kept = this.provenance()["train"]
    assert kept["tokens"] == 5 and kept["seconds"] >= 0 and kept["peak_gib"] > 0
    assert this.done("train", {"data": "abc"}) and not this.done("train", {"data": "abd"})
    with pytest.raises(BadInput), this.stage("gguf", {}):
        raise BadInput("no")
    assert "gguf" not in this.provenance()
