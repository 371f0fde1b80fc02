"""The doctor: what it finds in environments that are well and in broken ones, its exit status, text and JSON."""

import copy
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitgan import cli
from vitgan_kernels import backends, doctor, native_support, triton_support
from vitgan_kernels.diagnosis import Facts, diagnose
from vitgan_kernels.self_check import Outcome
from vitgan_kernels.spectral_norm import native

RIGHT = Outcome("l2_attention", "triton", "float32", 0, 1e-7, 1e-6, None)
WRONG = Outcome("l2_attention", "triton", "bfloat16", 2, 0.5, 0.1, "the largest error is 5.0e-01, and 1.0e-01 may be")


def as_fact(outcome: Outcome) -> Facts:
    return vars(outcome) | {"passed": outcome.passed}


# An environment with a GPU where everything works
HEALTHY: Facts = {
    "versions": {
        "vitgan": "0.1.0",
        "python": "3.12.3",
        "torch": "2.13.0+cu130",
        "triton": "3.7.1",
        "C++ compiler": "g++",
        "nvcc": "13",
    },
    "gpu": {
        "devices": [{"name": "NVIDIA H200", "architecture": "sm_90", "memory in GiB": 139}],
        "problem": None,
        "driver": "580.65",
        "seen by the driver": ["NVIDIA H200"],
        "PyTorch built for": "CUDA 13.0",
    },
    "extension": {
        "built": True,
        "loads": True,
        "about": "built: gcc",
        "architectures": ["sm_90"],
        "devices": {"cuda:0": (True, "CUDA, built for sm_90")},
    },
    "triton": {"problem": None, "needed": "3.7.1", "interpreted": False},
    "forced backend": "auto",
    "device": "cuda",
    "operators": {"l2_attention": {"backend": "triton", "why": ["l2_attention: triton runs"]}},
    "checks": [as_fact(RIGHT)],
    "seconds of checks": 1.5,
}


def with_changes(changes: dict[str, Any]) -> Facts:
    """The healthy environment but for some facts, each named by its place: "gpu.devices"."""
    facts = copy.deepcopy(HEALTHY)
    for place, value in changes.items():
        *outer, last = place.split(".")
        inner = facts
        for name in outer:
            inner = inner[name]
        inner[last] = value
    return facts


NO_GPU: Facts = {"gpu.devices": [], "gpu.seen by the driver": [], "gpu.driver": None, "extension.devices": {}}
NO_CUDA: Facts = {"extension.devices": {"cuda:0": (False, "was built without CUDA")}, "extension.architectures": []}
UNUSED_GPU: Facts = {"gpu.devices": [], "extension.devices": {}}
OLD_TRITON: Facts = {"versions.triton": "3.6.0"}
CPU_ONLY = UNUSED_GPU | {"gpu.PyTorch built for": None}
FORCED: Facts = {"forced backend": "cpp", "operators.l2_attention.backend": None}


@pytest.mark.parametrize(
    ("broken", "changes", "what", "what_to_do"),
    [
        (True, {"extension.loads": False, "extension.about": "no libstdc++"}, "fails: no libstdc++", "its source"),
        (True, NO_CUDA, "no CUDA kernels for cuda:0: was built without CUDA", "VITGAN_CUDA_ARCHS='90'"),
        (True, NO_CUDA | {"versions.nvcc": None}, "no CUDA kernels for cuda:0", "install nvcc"),
        (True, {"gpu.problem": "no kernel image"}, "cannot compute on this machine's GPU.*no kernel", "for sm_90 and"),
        (True, UNUSED_GPU, "cannot use this machine's GPU .NVIDIA H200", "driver .580.65"),
        (True, {"triton.problem": "ImportError: x", "versions.triton": None}, "imported: ImportError: x", "=3.7.1"),
        (True, {"versions.triton": None}, "there is a GPU and no Triton", "pip install 'triton==3.7.1"),
        (True, OLD_TRITON, "Triton 3.6.0 does not go with torch 2.13.0", "pip install 'triton==3.7.1"),
        (True, {"versions.triton": "3.1.1", "triton.needed": "3.11"}, "Triton 3.1.1 does not go", "'triton==3.11"),
        (True, FORCED, "_BACKEND=cpp is set, and cannot run a call here of l2_attention", "unset VITGAN_KERNELS_B"),
        (
            True,
            {"checks": [as_fact(RIGHT), as_fact(WRONG)]},
            "triton in bfloat16, second derivative: .* 5.0e",
            "use an",
        ),
        (False, NO_GPU | OLD_TRITON, "Triton 3.6.0 does not go with torch 2.13.0", "pip install 'triton==3.7.1"),
        (False, NO_GPU | {"extension.built": False, "extension.loads": False}, "is not built: on a CPU", "compiler"),
        (False, CPU_ONLY, "this PyTorch is a build for the CPU", "install a build of PyTorch for CUDA"),
        (False, {"triton.interpreted": True}, "TRITON_INTERPRET is set", "unset"),
        (False, {"versions.torch": "2.16.0a0+git"}, "torch 2.16.0a0.git is newer than any .* 2.15 is the", "run the t"),
        (False, {"versions.torch": "3.0.0"}, "torch 3.0.0 is newer", "run the tests"),
        (False, {"versions.python": "3.15.0rc1"}, "python 3.15.0rc1 is newer than any .* 3.14 is the", "run the tests"),
    ],
)
def test_one_finding(broken: bool, changes: dict[str, Any], what: str, what_to_do: str) -> None:
    facts = with_changes(changes)
    (finding,) = diagnose(facts)
    assert finding.broken == broken
    assert re.search(what, finding.what), finding.what
    assert re.search(what_to_do, finding.what_to_do), finding.what_to_do
    text = doctor.as_text(facts, [finding])
    assert f"{'BROKEN' if broken else 'advice'}: {finding.what}\n  what to do: {finding.what_to_do}\n" in text
    assert text.endswith("broken: 1" if broken else "What is promised works here.")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        NO_GPU,
        NO_GPU | {"versions.triton": None},
        {"versions.triton": "3.7.1+git12ab"},
        {"versions.triton": "3.9.0", "triton.needed": None},
        {"versions.triton": "3.9.2", "triton.needed": "3.9", "versions.torch": "2.15.1", "versions.python": "3.14.8"},
    ],
)
def test_no_finding(changes: dict[str, Any]) -> None:
    assert diagnose(with_changes(changes)) == []


def test_what_is_broken_comes_first() -> None:
    facts = with_changes(OLD_TRITON | {"triton.interpreted": True})
    assert [finding.broken for finding in diagnose(facts)] == [True, False]


# In this environment, with the checks left out, which have tests of their own


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_all", lambda device: [RIGHT])


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], quick: None) -> Callable[[], Facts]:
    def run() -> Facts:
        status = doctor.main(["--json"])
        facts: Facts = json.loads(capsys.readouterr().out)
        assert facts["ok"] == (status == 0) == (not broken(facts))
        return facts

    return run


Report = Callable[[], Facts]


def broken(facts: Facts) -> list[str]:
    return [finding["what"] for finding in facts["findings"] if finding["broken"]]


def test_the_facts_of_this_environment(report: Report) -> None:
    facts = report()
    assert facts["ok"], facts["findings"]
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["extension"]["loads"] == native.available()[0]
    assert set(facts["operators"]) == {"l2_attention", "modulated_linear", "modulated_siren", "spectral_norm"}
    assert facts["operators"]["l2_attention"]["why"][0].startswith("l2_attention: ")


def fail_to_load() -> None:
    raise RuntimeError("vitgan_kernels._native cannot be loaded (undefined symbol)")


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        (fail_to_load, "fails: vitgan_kernels._native cannot be loaded (undefined symbol)"),
        (lambda: SimpleNamespace(), "AttributeError"),  # an extension of other sources
    ],
)
def test_an_extension_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch, report: Report, load: Callable[[], Any], problem: str
) -> None:
    native.device_available.cache_clear()
    monkeypatch.setattr(native_support, "load", load)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(doctor, "_choice", lambda *args: {"backend": "cpp", "why": []})
    (what,) = broken(report())
    assert "the compiled extension is there, but fails: " in what
    assert problem in what


def test_an_extension_that_was_not_built(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    monkeypatch.setitem(sys.modules, "vitgan_kernels._native", None)
    facts = report()
    assert facts["ok"]
    assert "the compiled extension is not built" in facts["findings"][0]["what"]


def test_a_triton_that_does_not_import(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    load = importlib.import_module

    def fail(name: str) -> Any:
        if name == "triton":
            raise ImportError("libcuda.so.1: no such file")
        return load(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(triton_support, "INSTALLED", True)
    assert broken(report()) == ["Triton cannot be imported: ImportError: libcuda.so.1: no such file"]


@pytest.mark.skipif(not triton_support.INSTALLED, reason="Triton is not installed")
def test_another_triton_than_this_torch_s(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    monkeypatch.setattr(importlib.import_module("triton"), "__version__", "2.0.0")
    said = [finding["what"] for finding in report()["findings"]]
    assert f"Triton 2.0.0 does not go with torch {torch.__version__}" in said


@pytest.mark.parametrize(
    ("requirements", "needed"),
    [
        (["triton==3.6.0; platform_system == 'Linux'", "triton==1; extra == 'old'"], "3.6.0"),
        (["numpy", "triton~=3.8.0; platform_system == 'Linux'"], "3.8"),
        (["triton-windows==3.1"], "3.9"),
        (None, "3.9"),
    ],
)
def test_the_triton_that_pytorch_s_metadata_names(
    monkeypatch: pytest.MonkeyPatch, requirements: list[str] | None, needed: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(torch, "__version__", "2.15.0+cpu")
    assert doctor._triton_needed() == needed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_pytorch_cannot_compute_on(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    properties = SimpleNamespace(name="NVIDIA T", major=7, minor=5, total_memory=2**34, gcnArchName="gfx")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(triton_support, "generation", lambda: 7)
    facts = report()
    assert facts["gpu"]["devices"][0] == {"name": "NVIDIA T", "architecture": "sm_75", "memory in GiB": 16}
    assert facts["device"] == "cpu"
    assert any("PyTorch cannot compute on this machine's GPU" in what for what in broken(facts))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("cuda", "VITGAN_KERNELS_BACKEND=cuda is set, and cannot run a call here of l2_attention"),
        ("fastest", "VITGAN_KERNELS_BACKEND=fastest is set, and there is no backend of that name"),
    ],
)
def test_a_forced_backend_that_cannot_run(
    monkeypatch: pytest.MonkeyPatch, report: Report, name: str, what: str
) -> None:
    monkeypatch.setattr(backends, "_default_backend", name)
    monkeypatch.setenv("VITGAN_KERNELS_BACKEND", name)
    facts = report()
    assert broken(facts)[0].startswith(what)
    assert facts["operators"]["l2_attention"]["backend"] is None


def test_vitgan_doctor_prints_the_report(capsys: pytest.CaptureFixture[str], quick: None) -> None:
    assert cli.main(["doctor"]) == 0
    headings = ("versions", "GPUs", "built", "backends, for a call on ", "checks against float64, ", "What is promised")
    text = "\n" + capsys.readouterr().out
    assert all(f"\n{heading}" in text for heading in headings)


def test_as_a_module_with_the_checks() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "vitgan_kernels", "--json"]
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    facts = json.loads(result.stdout)
    assert {check["operator"] for check in facts["checks"]} == set(facts["operators"])
    assert all(check["passed"] for check in facts["checks"])
