"""What a run is measured on: names, versions, the code, and the ceilings that its rows are held against."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import seconds_of

ROOT = Path(__file__).parents[1]
CACHE_BYTES = {"cpu": 64 << 20, "cuda": 128 << 20}  # at least twice the last cache of what this is likely to run on


def pick_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine_info(device: torch.device) -> dict[str, Any]:
    """What a reader of the numbers must know of the machine and its software."""
    on_cuda, threads = device.type == "cuda", torch.get_num_threads()
    on_cpu = f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads > 1)}"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else on_cpu,
        "kind": device.type,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_cuda else None,
        "cpu": processor(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda if on_cuda else None,
    }


def commit_info(folder: Path = ROOT) -> dict[str, Any]:
    """The commit, and whether files differ from it, results of other runs aside."""
    paths = (":/", ":(exclude)benchmarks/results", ":(exclude)docs/benchmarks*", ":(exclude)README.md")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", *paths, folder=folder)
    return {
        "id": _output("git", "rev-parse", "HEAD", folder=folder) or "unknown",
        "dirty": bool(changed),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def ceilings(device: torch.device) -> dict[str, float]:
    """What the machine reaches: bytes a second of a copy larger than any cache, and operations a second, by dtype, of
    a large matrix product.

    The fastest of several: a ceiling that other work had lowered would be passed by what runs later.
    """
    on_cuda = device.type == "cuda"
    source, target = (torch.ones((1 << 28) if on_cuda else (1 << 25), device=device) for _ in range(2))
    copied = 2 * source.numel() * source.element_size()
    found = {"copy": copied / min(seconds_of(lambda: target.copy_(source), 1, device) for _ in range(15))}
    side = 8192 if on_cuda else 1024
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(side, side, device=device, dtype=dtype)
        fastest = min(seconds_of(lambda a=a: a @ a, 1, device) for _ in range(15))
        found[str(dtype).removeprefix("torch.")] = 2 * side**3 / fastest
    return found


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _output(*command: str, folder: Path = ROOT) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
