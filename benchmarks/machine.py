"""What a run is measured on: names and versions, and the ceilings that its rows are held against."""

import datetime
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.records import FOLDER, Ceilings, Row, Run

CEILING_REPEATS = 15
CACHE_BYTES = {"cpu": 64 << 20, "cuda": 128 << 20}  # at least twice the last cache of what this is likely to run on


def pick_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Code(NamedTuple):
    """What is measured: the commit, and whether files differed from it."""

    commit: str
    dirty: bool


def code() -> Code:
    """The code of this moment."""
    return Code(_output("git", "rev-parse", "HEAD") or "unknown", has_changes())


def describe(device: torch.device, code: Code, size: str, ceilings: Ceilings, rows: list[Row]) -> Run:
    """The run with everything that a reader of its numbers must know."""
    on_cuda = device.type == "cuda"
    threads = torch.get_num_threads()
    return Run(
        device=torch.cuda.get_device_name(device)
        if on_cuda
        else f"{processor()}, {threads} thread{'s' * (threads > 1)}",
        kind=device.type,
        driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_cuda else None,
        cpu=processor(),
        threads=threads,
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=torch.version.cuda if on_cuda else None,
        commit=code.commit,
        dirty=code.dirty,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        size=size,
        ceilings=ceilings,
        rows=rows,
    )


def has_changes(folder: Path = FOLDER.parent) -> bool:
    """Whether files of the repository around the folder differ from its commit, but for results of other runs."""
    paths = (":/", f":(exclude){FOLDER.name}")
    return bool(_output("git", "status", "--porcelain", "--untracked-files=no", "--", *paths, folder=folder))


def measure_ceilings(device: torch.device) -> Ceilings:
    """A copy that is larger than any cache, and square products of matrices that fill the device."""
    on_cuda = device.type == "cuda"
    elements = (1 << 28) if on_cuda else (1 << 25)
    source, target = (torch.ones(elements, device=device) for _ in range(2))
    copied = 2 * source.numel() * source.element_size() / _seconds(lambda: target.copy_(source), device)
    side = 8192 if on_cuda else 1024
    products = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16) if on_cuda else (torch.float32,):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        products[str(dtype).removeprefix("torch.")] = 2 * side**3 / _seconds(_product(a, b, out), device)
    return Ceilings(copied, products)


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.mm(a, b, out=out)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The fastest of a few calls, waiting for the device after each: they are long, so this costs nothing.

    Not the median: a ceiling that other work on the machine had lowered would be passed by what runs later.
    """
    taken = []
    for _ in range(CEILING_REPEATS + 2):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return min(taken[2:])


def _output(*command: str, folder: Path = FOLDER.parent) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
