"""What this machine has and lacks, and the command that fixes it."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tools import BadInput
from tools.core import catalog, files, run_folder
from tools.core.process import cores as cores  # there, so that who needs no catalog need not load it

if TYPE_CHECKING:
    from rich.table import Table

# By package manager: how it installs, and its name for what is not called as the program is.
MANAGERS: dict[str, tuple[str, dict[str, str]]] = {
    "apt-get": ("apt-get install -y", {"c++": "g++", "ninja": "ninja-build", "go": "golang-go"}),
    "dnf": ("dnf install -y", {"c++": "gcc-c++", "ninja": "ninja-build", "go": "golang"}),
    "pacman": ("pacman -S --noconfirm", {"c++": "gcc"}),
    "zypper": ("zypper install -y", {"c++": "gcc-c++"}),
    "apk": ("apk add", {"c++": "g++"}),
    "brew": ("brew install", {"c++": "gcc"}),
}
# What the CPU demo takes at most: .venv 6.3 GB, llama.cpp and its build tree 1, the rest checkpoints and models.
DISK_GIB = 12
MEMORY_GIB = 8
# Features of x86 processors that compilers use by themselves; the rest of the list is the system's business.
INSTRUCTIONS = re.compile(r"s?sse|pni$|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|adx|aes|vaes|pclmul|vpclmul|gfni|sha_ni")


# Programs of llama.cpp that no Ollama brings.
MEASURING = ("llama-imatrix", "llama-perplexity")


@dataclass(frozen=True)
class Requirement:
    """One thing looked for: `found` is what there is, None where it lacks; `fix` is what to do about it then."""

    name: str
    found: str | None
    needed: bool
    fix: str


def examine(programs: dict[str, Path | None], llamacpp: str | None) -> list[Requirement]:
    """Look at this machine, in under a second.

    `programs`: where llama.cpp's programs and Ollama are, by name, None for what is nowhere. `llamacpp`: which
    llama.cpp is used, and why; None where there is none, so that it must be compiled.
    """
    compiled = llamacpp is None
    go = version(shutil.which("go"), "version")
    return [
        Requirement("Python", python(), True, "install Python 3.11 or later: https://www.python.org/downloads"),
        Requirement("C++ compiler", version(compiler()), compiled, install("c++")),
        Requirement("CMake", version(cmake()), compiled, install("cmake")),
        Requirement("Ninja", version(shutil.which("ninja")), False, install("ninja")),
        Requirement("git", version(shutil.which("git")), False, install("git")),
        Requirement("uv", version(uv()), True, "make setup"),
        Requirement("Axolotl", package("axolotl"), True, "make setup"),
        Requirement("llama.cpp", llamacpp, True, "make setup"),
        *(program(name, path) for name, path in programs.items()),
        Requirement("Go", go, False, f"{install('go')} (only where Ollama is missing)"),
        *resources(),
        Requirement(
            "bf16 on this CPU", "yes" if cpu_bf16() else None, False, "nothing to do: the CPU recipes train in fp32"
        ),
        Requirement("GPU", gpu(), False, "nothing to do: the CPU recipes need none"),
    ]


def table(findings: list[Requirement]) -> "Table":
    """The findings as a table for the screen: what is there, what lacks, and what to do."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "to fix it"):
        shown.add_column(column, overflow="fold")
    for finding in findings:
        lacks = "[red]missing[/]" if finding.needed else "[yellow]none[/]"
        mark = "[green]ok[/]" if finding.found else lacks
        # Text: a path or a version is not markup.
        shown.add_row(mark, finding.name, Text(finding.found or ""), Text("" if finding.found else finding.fix))
    return shown


def install(*programs: str) -> str:
    """The command that installs programs ("c++", "cmake", "ninja", "git", "go") on this machine."""
    if sys.platform == "darwin" and programs == ("c++",):
        return "xcode-select --install"
    for manager, (command, names) in MANAGERS.items():
        if shutil.which(manager):
            # Homebrew refuses root; the others need it.
            rights = "" if manager == "brew" or os.geteuid() == 0 else "sudo "
            return f"{rights}{command} {' '.join(names.get(name, name) for name in programs)}"
    return f"install {' and '.join(programs)} with your system's package manager"


def cpu_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware (avx512_bf16 or amx_bf16 on x86, bf16 on Arm).

    Without it, bf16 autocast on a CPU is slower than fp32. False where the system does not list what it can do.
    """
    return bool(features() & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def features() -> frozenset[str]:
    """What the processor can do, in the kernel's words (avx2, sve ...); nothing where there is no /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.MULTILINE)
    return frozenset(found[1].split() if found else ())


def processor() -> str:
    """A short name for processors that run what was compiled for this one (-march=native): x86_64-1f0c9a3e.

    The hash is of the instructions that a compiler may use: on x86 those of INSTRUCTIONS, on Arm all features, on macOS
    the processor's name. So it stays the same when a kernel lists more of the same processor.
    """
    arm = platform.machine() in ("aarch64", "arm64")
    used = sorted(each for each in features() if arm or INSTRUCTIONS.match(each))
    if not used and (sysctl := shutil.which("sysctl")):
        asked = [sysctl, "-n", "machdep.cpu.brand_string"]
        used = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    return f"{platform.machine()}-{files.sha256_of(' '.join(used).encode())[:8]}"


def compiler() -> str | None:
    """The path of the C++ compiler that CMake takes: CXX, else c++, g++ or clang++; None where there is none."""
    names = (os.environ.get("CXX", "").partition(" ")[0], "c++", "g++", "clang++")
    return next((path for name in names if (path := shutil.which(name))), None)


def cmake() -> str | None:
    """The path of CMake; None where there is none."""
    return shutil.which("cmake")


def uv() -> str | None:
    """The path of uv: on PATH, else the one that the set-up brought into the cache; None where there is none."""
    own = sorted(run_folder.cache().glob("uv-*/bin/uv"))
    return shutil.which("uv") or (str(own[-1]) if own else None)


def python() -> str | None:
    """The version of this Python; None when it is older than 3.11."""
    return sys.version.split()[0] if sys.version_info >= (3, 11) else None


def version(path: str | None, option: str = "--version") -> str | None:
    """The version number that a program states of itself, "there" if it states none; None when it cannot be run."""
    if path is None:
        return None
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = re.findall(r"\d+(?:\.\d+)+", done.stdout + done.stderr)
    return numbers[0] if numbers else "there"


def package(name: str) -> str | None:
    """The version of an installed Python package, without importing it; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def program(name: str, path: Path | None) -> Requirement:
    """The finding for one of the programs that serve models. Ollama can do without: the chain ends in llama-server."""
    if name == "ollama":
        fix = f"https://ollama.com/download, or {install('go')} && make setup"
        return Requirement("Ollama", str(path) if path else None, False, fix)
    if name in MEASURING:
        return Requirement(name, str(path) if path else None, False, "built when IMATRIX=1 or make quality needs it")
    return Requirement(name, str(path) if path else None, True, "make setup")


def resources() -> list[Requirement]:
    """The findings for cores, memory and disk, against what the CPU demo takes."""
    memory = psutil.virtual_memory().available / 2**30
    folder = run_folder.outputs()
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder).free / 2**30
    return [
        Requirement("cores", str(cores()), True, ""),
        at_least("memory", memory, MEMORY_GIB, "close other programs"),
        at_least(
            "disk", disk, DISK_GIB, "remove files, or set REACT_RECIPES_OUTPUTS and REACT_RECIPES_CACHE elsewhere"
        ),
    ]


def at_least(name: str, free: float, gib: float, fix: str) -> Requirement:
    """The finding for an amount of something free, in GiB, of which the demo takes `gib`."""
    found = f"{free:.1f} GiB free" if free >= gib else None
    return Requirement(name, found, True, f"{free:.1f} GiB free, up to {gib} taken: {fix}")


@dataclass(frozen=True)
class Device:
    """One GPU of this machine: its name, its memory in GiB, whether it has bf16 (compute capability 8.0 and up)."""

    name: str
    gib: float
    bf16: bool


@cache
def devices() -> list[Device]:
    """The GPUs of this machine, as nvidia-smi gives them, asked once; none where it does not run."""
    if not (path := shutil.which("nvidia-smi")):
        return []
    query = [path, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(", ", 2) for line in done.stdout.splitlines() if line.count(", ") >= 2]
    return [Device(name, float(mib) / 1024, float(cap) >= 8.0) for name, mib, cap in rows if done.returncode == 0]


def gpu() -> str | None:
    """The GPUs' names and memory in words; None where there are none."""
    return "; ".join(f"{each.name}, {each.gib:.0f} GiB" for each in devices()) or None


def tier(found: list[Device] | None = None, nodes: int = 1) -> str:
    """The key of the largest tier that this machine, or these devices in each of `nodes` machines, can hold.

    Raises BadInput for devices of which the least has less than any tier.
    """
    found = devices() if found is None else found
    if not found:
        return "cpu"
    least, modern = min(each.gib for each in found), all(each.bf16 for each in found)
    fit = [
        each
        for each in catalog.tiers().values()
        if each.gpu
        and (each.nodes, each.precision == "bf16") in {(nodes, modern), (1, modern)}
        and each.devices <= len(found)
        # A GPU of so many GB as sold shows up to 6 % less in GiB: B against 2^30 B, and what the driver keeps.
        and each.usable_gib <= least + 0.5
    ]
    if not fit:
        raise BadInput(f"{found[0].name}: {least:.1f} GiB, less than any tier; TIER=cpu trains without it")
    return max(fit, key=lambda each: (each.nodes, each.devices, each.memory_gb)).key
