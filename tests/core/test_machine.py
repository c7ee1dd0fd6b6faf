"""What this machine has and lacks."""

import os
import platform
import time
from pathlib import Path

import pytest
from rich.console import Console

from tools import BadInput
from tools.core import machine


def found(name: str, findings: list[machine.Requirement]) -> machine.Requirement:
    return next(finding for finding in findings if finding.name == name)


def test_examine_takes_less_than_a_second() -> None:
    start = time.monotonic()
    programs = {"llama-server": Path("there/llama-server"), "llama-quantize": None, "ollama": None}
    findings = machine.examine(programs, None)
    assert time.monotonic() - start < 1
    assert found("Python", findings).found
    assert found("Axolotl", findings).found
    assert found("llama-server", findings).found == "there/llama-server"
    assert found("llama-quantize", findings) == machine.Requirement("llama-quantize", None, True, "make setup")
    assert not found("Ollama", findings).needed
    assert found("C++ compiler", findings).needed and found("CMake", findings).needed
    assert all(finding.fix for finding in findings if not finding.found)


def test_where_ollama_brings_llama_cpp_no_compiler_is_needed() -> None:
    findings = machine.examine({"llama-imatrix": None, "llama-perplexity": None}, "Ollama's own")
    assert found("llama.cpp", findings).found == "Ollama's own"
    lacking = ("C++ compiler", "CMake", "llama-imatrix", "llama-perplexity")
    assert not any(found(name, findings).needed for name in lacking)


def test_what_is_not_on_path_is_missing_and_has_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    findings = machine.examine({}, None)
    for name, program in (("CMake", "cmake"), ("C++ compiler", "c++")):
        assert found(name, findings).found is None
        assert program in found(name, findings).fix or "xcode" in found(name, findings).fix
    console = Console(record=True, width=200, file=(tmp_path / "screen").open("w"))
    console.print(machine.table(findings))
    lines = console.export_text().splitlines()
    assert any("missing" in line and "CMake" in line and "cmake" in line for line in lines)
    assert any("none" in line and "Ninja" in line for line in lines)


def test_a_program_that_does_not_run_has_no_version(tmp_path: Path) -> None:
    broken = tmp_path / "cmake"
    broken.write_text("not a program")
    assert machine.version(str(broken)) is None
    assert machine.version(None) is None


@pytest.mark.parametrize(("free", "there"), [(8.0, True), (7.9, False)])
def test_too_little_of_something_says_how_much(free: float, there: bool) -> None:
    finding = machine.at_least("memory", free, 8, "close other programs")
    assert bool(finding.found) is there
    assert f"{free:.1f} GiB free" in finding.fix


def test_install_names_packages_as_the_manager_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    manager = tmp_path / "dnf"
    manager.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.install("cmake", "c++").removeprefix("sudo ") == "dnf install -y cmake gcc-c++"
    assert machine.install("cmake").startswith("sudo ") is (os.geteuid() != 0)
    manager.unlink()
    assert machine.install("cmake") == "install cmake with your system's package manager"


def test_bf16_is_read_from_the_processors_flags() -> None:
    path = Path("/proc/cpuinfo")
    words = path.read_text().split() if path.exists() else []
    assert machine.cpu_bf16() == bool({"avx512_bf16", "amx_bf16", "bf16"} & set(words))
    assert machine.cores() >= 1


@pytest.mark.skipif(platform.machine() != "x86_64", reason="what the features of x86 processors are called")
def test_a_processors_name_tells_what_is_compiled_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(*features: str) -> str:
        monkeypatch.setattr(machine, "features", lambda: frozenset(features))
        return machine.processor()

    assert named("sse2", "avx2", "fma") != named("sse2", "avx2", "fma", "avx512f")
    # Another kernel, the same processor.
    assert named("sse2", "avx2", "fma") == named("fma", "sse2", "avx2", "md_clear", "hypervisor", "constant_tsc")


@pytest.mark.parametrize(
    ("name", "gib", "bf16", "count", "tier"),
    [
        ("NVIDIA GeForce GTX 1660 Ti", 5.8, False, 1, "6gb"),
        ("NVIDIA GeForce RTX 3060", 12.0, True, 1, "12gb"),
        ("Tesla T4", 15.0, False, 1, "16gb-turing"),
        ("NVIDIA GeForce RTX 2080 Ti", 11.0, False, 1, "6gb"),
        ("NVIDIA GeForce RTX 4090", 24.0, True, 1, "24gb"),
        ("NVIDIA GeForce RTX 4090", 24.0, True, 3, "2x24gb"),
        ("NVIDIA A100-SXM4-40GB", 40.0, True, 1, "32gb"),
        ("NVIDIA H100 80GB HBM3", 80.0, True, 8, "8x80gb"),
    ],
)
def test_a_machine_has_the_largest_tier_that_it_can_hold(
    name: str, gib: float, bf16: bool, count: int, tier: str
) -> None:
    assert machine.tier([machine.Device(name, gib, bf16)] * count) == tier
    assert machine.tier([]) == "cpu"


def test_a_gpu_smaller_than_any_tier_is_told() -> None:
    with pytest.raises(BadInput, match="TIER=cpu"):
        machine.tier([machine.Device("NVIDIA GeForce GTX 1650", 4.0, False)])
