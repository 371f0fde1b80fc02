"""What is installed here, what was built, which backend each operator would use and why, and whether it computes right.

`vitgan doctor` and `python -m vitgan_kernels` are this. `gather` collects facts, `diagnosis.py` turns them into
findings, `main` prints both or gives them as JSON. The exit status is 1 where something that is promised does not work.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from vitgan_kernels import native_support, triton_support
from vitgan_kernels.backends import ENVIRONMENT_VARIABLE, OPERATORS, BackendError, explain
from vitgan_kernels.diagnosis import ORDERS, Facts, Finding, diagnose
from vitgan_kernels.self_check import cases, check_all
from vitgan_kernels.spectral_norm import native

# What the CUDA builds of PyTorch pin; CPU builds pin nothing, and then this decides.
TRITON_OF_TORCH = {"2.11": "3.6", "2.12": "3.7", "2.13": "3.7", "2.14": "3.8", "2.15": "3.9"}


def gather() -> Facts:
    """All that the report says but the findings, as numbers, text, lists and dictionaries."""
    gpu = _gpu_facts()
    device = "cuda" if gpu["devices"] and not gpu["problem"] else "cpu"
    start = time.perf_counter()
    outcomes = check_all(device)
    return {
        "versions": {
            "vitgan": _installed_version("vitgan"),
            "python": platform.python_version(),
            "system": platform.platform(),
            "torch": torch.__version__,
            "triton": _triton_version()[0],
            "C++ compiler": _first_line(_compiler_command(), ""),
            "nvcc": _first_line([os.environ.get("NVCC") or "nvcc"], "release"),
        },
        "gpu": gpu,
        "extension": _extension_facts(0 if torch.version.hip else len(gpu["devices"])),
        "triton": {
            "problem": _triton_version()[1],
            "needed": _triton_needed(),
            "interpreted": triton_support.INTERPRETED,
        },
        "forced backend": os.environ.get(ENVIRONMENT_VARIABLE) or "auto",
        "device": device,
        "operators": {case.operator: _choice(case.operator, *case.arguments(*case.inputs)) for case in cases(device)},
        "checks": [asdict(outcome) | {"passed": outcome.passed} for outcome in outcomes],
        "seconds of checks": round(time.perf_counter() - start, 2),
    }


def main(arguments: Sequence[str] | None = None, prog: str = "python -m vitgan_kernels") -> int:
    """Print the report; returns 1 where something that is promised does not work, otherwise 0."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="What is installed and built here, which backend each operator would use and why, and a check of "
        "each against float64. The exit status is 1 where something that is promised does not work.",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    options = parser.parse_args(arguments)
    facts = gather()
    findings = diagnose(facts)
    healthy = not any(finding.broken for finding in findings)
    if options.json:
        print(json.dumps(facts | {"findings": [asdict(finding) for finding in findings], "ok": healthy}, indent=2))
    else:
        print(as_text(facts, findings))
    return 0 if healthy else 1


def as_text(facts: Facts, findings: list[Finding]) -> str:
    """The report for a reader."""
    gpu, extension = facts["gpu"], facts["extension"]
    versions = [f"{name:<14}{version or 'none'}" for name, version in facts["versions"].items()]
    devices = [f"{d['name']}, {d['architecture']}, {d['memory in GiB']} GiB" for d in gpu["devices"]]
    built = [f"extension     {extension['about']}"]
    built += [f"{device:<14}{about}" for device, (_, about) in extension["devices"].items()]
    built.append(f"Triton        kernels are compiled on first use{' (interpreted)' * facts['triton']['interpreted']}")
    sections = [
        ("versions", versions),
        ("GPUs", [*(devices or ["none that this PyTorch can use"]), f"driver        {gpu['driver'] or 'none'}"]),
        ("built", built),
        (f"backends, for a call on {facts['device']}", [x for o in facts["operators"].values() for x in o["why"]]),
        (f"checks against float64, {facts['seconds of checks']} s", _check_lines(facts["checks"])),
    ]
    lines = []
    for title, content in sections:
        lines += [title, *(f"  {line}" for line in content), ""]
    for finding in findings:
        lines += [f"{'BROKEN' if finding.broken else 'advice'}: {finding.what}", f"  what to do: {finding.what_to_do}"]
    broken = sum(finding.broken for finding in findings)
    lines.append(f"broken: {broken}" if broken else "What is promised works here.")
    return "\n".join(lines)


def _check_lines(checks: list[dict[str, Any]]) -> list[str]:
    lines = []
    for check in checks:
        verdict = "ok" if check["passed"] else "WRONG"
        error = "" if check["error"] is None else f"  error {check['error']:.1e}, allowed {check['allowed']:.1e}"
        what = f"{check['operator']:<17}{check['backend']:<10}{check['dtype']:<9}{ORDERS[check['derivative']]:<18}"
        lines.append(f"{what}{verdict:<5}{error}")
    return lines


def _gpu_facts() -> Facts:
    smi = _output(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]) or ""
    seen = [line.rpartition(", ") for line in smi.splitlines() if ", " in line]
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        nvidia = f"sm_{properties.major}{properties.minor}"
        devices.append(
            {
                "name": properties.name,
                "architecture": nvidia if torch.version.hip is None else properties.gcnArchName,
                "memory in GiB": round(properties.total_memory / 2**30),
            }
        )
    cuda, rocm = torch.version.cuda, torch.version.hip
    return {
        "devices": devices,
        "problem": _problem_of_a_gpu() if devices else None,
        "driver": seen[0][2] if seen else None,
        "seen by the driver": [name for name, _, _ in seen],
        "PyTorch built for": f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else None,
    }


def _problem_of_a_gpu() -> str | None:
    """What PyTorch itself says when it computes there, if it does not."""
    try:
        torch.ones(2, device="cuda").sum().item()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _extension_facts(cuda_devices: int) -> Facts:
    built = importlib.util.find_spec("vitgan_kernels._native") is not None
    try:
        loads, about = native.available()
        info = native_support.build_info() if loads else {}
        devices = {f"cuda:{i}": native.device_available(i) for i in range(cuda_devices)}
    except Exception as error:  # an extension of other sources may fail in any way
        loads, about, info, devices = False, f"{type(error).__name__}: {error}", {}, {}
    architectures = info.get("cuda", "").split()
    return {"built": built, "loads": loads, "about": about, "architectures": architectures, "devices": devices}


def _triton_version() -> tuple[str | None, str | None]:
    """The version, or else what its import raises, or neither where it is not installed."""
    if not triton_support.INSTALLED:
        return None, None
    try:
        version: str = importlib.import_module("triton").__version__
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return version, None


def _triton_needed() -> str | None:
    """The version, or its beginning, that goes with this PyTorch; None where nobody knows."""
    for line in importlib.metadata.requires("torch") or []:
        pin = re.match(r"triton\s*(==|~=)\s*([\d.]+)", line)
        if pin and "extra" not in line:
            operator, version = pin.groups()
            return version if operator == "==" else version.rpartition(".")[0]  # ~=3.8.0 is ==3.8.*
    return TRITON_OF_TORCH.get(".".join(torch.__version__.split(".")[:2]))


def _choice(operator: str, args: tuple[Any, ...], options: dict[str, Any]) -> Facts:
    checked, settings = OPERATORS[operator].arguments(*args, **options)
    try:
        backend = OPERATORS[operator].select(None, *checked, **settings).backend
    except BackendError:
        backend = None
    return {"backend": backend, "why": explain(operator, *args, **options).splitlines()}


def _compiler_command() -> list[str]:
    """As setup.py looks for it."""
    return shlex.split(os.environ.get("CXX", "")) or [
        next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "c++")
    ]


def _first_line(command: list[str], holding: str) -> str | None:
    """The first line with this word of what a compiler says of its version."""
    lines = (_output([*command, "--version"]) or "").splitlines()
    return next((line for line in lines if holding in line), None)


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
