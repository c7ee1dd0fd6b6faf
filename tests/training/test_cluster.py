"""A training for another place: the command and files are whole, and those who read them take them."""

import subprocess
from pathlib import Path

import pytest

from tools.core import catalog
from tools.recipes import recipe, schema
from tools.training import cluster
from tools.training.run_axolotl import Launch


@pytest.mark.parametrize(
    ("name", "tier", "launch", "says"),
    [
        ("qwen7b-qlora", "24gb", Launch(), ["axolotl train", "--launcher python"]),
        ("qwen32b-qlora", "4x24gb", Launch(), ["accelerate launch --config_file", "4x24gb.yaml --num_processes 4"]),
        ("qwen72b-full", "8x80gb", Launch(), ["accelerate launch", "--num_processes 8", "axolotl.cli.train"]),
        (
            "qwen72b-full", "2x8x80gb", Launch(nodes=2, rank=1, master="10.0.0.1"),
            ["torchrun --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29500 --nproc_per_node 8"],
        ),
    ],
)  # fmt: skip
def test_a_dry_run_prints_the_command_and_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tier: str, launch: Launch, says: list[str]
) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    printed = cluster.dry_run(recipe.open_recipe(name, tier, "Qwen/X"), launch)
    for each in [*says, "OMP_NUM_THREADS=", "AXOLOTL_DO_NOT_TRACK=1"]:
        assert each in printed
    composed = recipe.read_recipe(tmp_path / tier / name / "dry-run.yaml").settings
    assert "tools.training.progress_plugin.WatchPlugin" in composed["plugins"]
    assert "tools.training.cpu_plugin.CpuPlugin" not in composed["plugins"]


def test_a_slurm_job_is_a_script_that_bash_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    file = cluster.slurm(recipe.open_recipe("qwen72b-full", "2x8x80gb", "Qwen/X"), Launch(nodes=2))
    text = file.read_text()
    for each in ("#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8", "#SBATCH --requeue", "#SBATCH --signal=TERM@120"):
        assert each in text
    assert "--nnodes 2 --node_rank $SLURM_NODEID --master_addr $MASTER_ADDR" in text
    subprocess.run(["bash", "-n", file], check=True)


def test_ray_gets_axolotls_own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path))
    tier = catalog.tiers()["8x80gb"]
    printed = cluster.ray(recipe.open_recipe("qwen72b-full", tier.key, "Qwen/X"), Launch())
    assert printed.startswith("ray job submit ")
    file = tmp_path / tier.key / "qwen72b-full" / "ray.yaml"
    written = recipe.read_recipe(file, tier)
    made = written.settings
    assert made["use_ray"] is True and made["ray_num_workers"] == 8
    assert schema.validate(written) == []
