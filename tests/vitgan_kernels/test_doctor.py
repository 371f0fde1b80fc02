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
from vitgan_kernels import backends, doctor, triton_support, use_backend
from vitgan_kernels.diagnosis import Facts, diagnose
from vitgan_kernels.self_check import Outcome
from vitgan_kernels.spectral_norm import native

WELL = Outcome("l2_attention", "triton", "float32", 0, 1e-7, 1e-6, None)
WRONG = Outcome("l2_attention", "triton", "bfloat16", 2, 0.5, 0.1, "the largest error is 5.0e-01, and 1.0e-01 may be")


def as_fact(outcome: Outcome) -> Facts:
    return vars(outcome) | {"passed": outcome.passed}


def healthy() -> Facts:
    """A machine with a GPU where everything works."""
    return {
        "versions": {
            "vitgan": "0.1.0",
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
        "checks": [as_fact(WELL)],
        "seconds of checks": 1.5,
    }


def with_changes(changes: dict[str, Any]) -> Facts:
    """The healthy machine but for some facts, each named by its place: "gpu.devices"."""
    facts = copy.deepcopy(healthy())
    for place, value in changes.items():
        *outer, last = place.split(".")
        inner = facts
        for name in outer:
            inner = inner[name]
        inner[last] = value
    return facts


def test_a_machine_where_all_is_well() -> None:
    assert diagnose(healthy()) == []
    assert doctor.as_text(healthy(), []).endswith("What is promised works here.")


WITHOUT_GPU: Facts = {"gpu.devices": [], "gpu.seen by the driver": [], "gpu.driver": None, "extension.devices": {}}
NO_CUDA: Facts = {"extension.devices": {"cuda:0": (False, "was built without CUDA")}, "extension.architectures": []}


@pytest.mark.parametrize(
    ("changes", "what", "what_to_do"),
    [
        ({"extension.loads": False, "extension.about": "no libstdc++"}, "fails: no libstdc++", "from its source"),
        (NO_CUDA, "no CUDA kernels for cuda:0: was built without CUDA", "VITGAN_CUDA_ARCHS='90'"),
        (NO_CUDA | {"versions.nvcc": None}, "no CUDA kernels for cuda:0", "install nvcc"),
        ({"gpu.problem": "no kernel image"}, "cannot compute on this machine's GPU.*no kernel image", "for sm_90 and"),
        ({"gpu.devices": [], "extension.devices": {}}, "cannot use this machine's GPU .NVIDIA H200", "driver .580.65"),
        ({"triton.problem": "ImportError: x", "versions.triton": None}, "cannot be imported: ImportError: x", "=3.7.1"),
        ({"versions.triton": None}, "there is a GPU and no Triton", "pip install 'triton==3.7.1"),
        ({"versions.triton": "3.9.0"}, "Triton 3.9.0 does not go with torch 2.13.0", "pip install 'triton==3.7.1"),
        ({"versions.triton": "3.70.1", "triton.needed": "3.7"}, "Triton 3.70.1 does not go", "'triton==3.7"),
        (
            {"forced backend": "cpp", "operators.l2_attention.backend": None},
            "VITGAN_KERNELS_BACKEND=cpp is set, and cannot run a call here of l2_attention",
            "unset VITGAN_KERNELS_BACKEND",
        ),
        (
            {"checks": [as_fact(WELL), as_fact(WRONG)]},
            "l2_attention on triton in bfloat16, second derivative: the largest error is 5.0e-01",
            "use another backend",
        ),
    ],
)
def test_what_is_broken(changes: dict[str, Any], what: str, what_to_do: str) -> None:
    facts = with_changes(changes)
    (finding,) = diagnose(facts)
    assert finding.broken
    assert re.search(what, finding.what), finding.what
    assert re.search(what_to_do, finding.what_to_do), finding.what_to_do
    text = doctor.as_text(facts, [finding])
    assert f"BROKEN: {finding.what}\n  what to do: {finding.what_to_do}\n" in text
    assert text.endswith("broken: 1")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (WITHOUT_GPU | {"extension.built": False, "extension.loads": False}, "the compiled extension is not built"),
        (
            {"gpu.devices": [], "gpu.PyTorch built for": None, "extension.devices": {}},
            "this PyTorch is a build for the CPU",
        ),
        ({"triton.interpreted": True}, "TRITON_INTERPRET is set"),
    ],
)
def test_what_is_only_advice(changes: dict[str, Any], what: str) -> None:
    (finding,) = diagnose(with_changes(changes))
    assert not finding.broken
    assert what in finding.what
    assert finding.what_to_do


@pytest.mark.parametrize(
    "changes",
    [
        WITHOUT_GPU,
        WITHOUT_GPU | {"versions.triton": None},
        {"versions.triton": "3.7.1+git12ab"},
        {"versions.triton": "3.9.0", "triton.needed": None},
    ],
)
def test_what_is_no_finding(changes: dict[str, Any]) -> None:
    assert diagnose(with_changes(changes)) == []


def test_what_is_broken_comes_first() -> None:
    facts = with_changes({"triton.interpreted": True, "versions.triton": "3.9.0"})
    assert [finding.broken for finding in diagnose(facts)] == [True, False]


# On this machine, with the checks left out, which have tests of their own


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_all", lambda device: [WELL])


Report = Callable[[], tuple[int, Facts]]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], quick: None) -> Report:
    def run() -> tuple[int, Facts]:
        status = doctor.main(["--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def broken(facts: Facts) -> list[str]:
    return [finding["what"] for finding in facts["findings"] if finding["broken"]]


def test_the_facts_of_this_machine(report: Report) -> None:
    status, facts = report()
    assert (status, facts["ok"]) == (0, True), facts["findings"]
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["extension"]["loads"] == native.available()[0]
    assert set(facts["operators"]) == {"l2_attention", "modulated_linear", "modulated_siren", "spectral_norm"}
    assert facts["operators"]["l2_attention"]["why"][0].startswith("l2_attention: ")


def test_an_extension_that_does_not_load(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    def fail() -> None:
        raise RuntimeError("vitgan_kernels._native cannot be loaded (undefined symbol)")

    monkeypatch.setattr(native, "_load", fail)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    status, facts = report()
    assert status == 1
    (what,) = broken(facts)
    assert "is there, but fails: vitgan_kernels._native cannot be loaded (undefined symbol)" in what


def test_an_extension_of_other_sources(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    monkeypatch.setattr(native, "_load", lambda: SimpleNamespace())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(doctor, "explain", lambda *args, **options: "")
    monkeypatch.setattr(doctor, "_choice", lambda *args: {"backend": "cpp", "why": []})
    status, facts = report()
    assert status == 1
    assert "AttributeError" in broken(facts)[0]


def test_an_extension_that_was_not_built(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    monkeypatch.setitem(sys.modules, "vitgan_kernels._native", None)
    status, facts = report()
    assert status == 0
    assert "the compiled extension is not built" in facts["findings"][0]["what"]


def test_a_triton_that_does_not_import(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    load = importlib.import_module

    def fail(name: str) -> Any:
        if name == "triton":
            raise ImportError("libcuda.so.1: no such file")
        return load(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(triton_support, "INSTALLED", True)
    status, facts = report()
    assert status == 1
    assert broken(facts) == ["Triton cannot be imported: ImportError: libcuda.so.1: no such file"]


@pytest.mark.skipif(not triton_support.INSTALLED, reason="Triton is not installed")
def test_another_triton_than_this_torch_s(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    monkeypatch.setattr(importlib.import_module("triton"), "__version__", "2.0.0")
    status, facts = report()
    assert status == 1
    assert broken(facts) == [f"Triton 2.0.0 does not go with torch {torch.__version__}"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_pytorch_cannot_compute_on(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    properties = SimpleNamespace(name="NVIDIA T", major=7, minor=5, total_memory=2**34, gcnArchName="gfx")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(triton_support, "generation", lambda: 7)
    status, facts = report()
    assert status == 1
    assert facts["gpu"]["devices"][0] == {"name": "NVIDIA T", "architecture": "sm_75", "memory in GiB": 16}
    assert facts["device"] == "cpu"
    assert any("PyTorch cannot compute on this machine's GPU" in what for what in broken(facts))


def test_a_backend_that_is_forced_and_cannot_run(report: Report) -> None:
    with use_backend("cuda"):
        status, facts = report()
    assert status == 1
    assert facts["operators"]["l2_attention"]["backend"] is None
    assert "cannot run a call here of l2_attention" in broken(facts)[0]
    assert "has no cuda implementation" in facts["operators"]["l2_attention"]["why"][0]


def test_a_forced_backend_of_no_known_name(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    monkeypatch.setattr(backends, "_default_backend", "fastest")
    monkeypatch.setenv("VITGAN_KERNELS_BACKEND", "fastest")
    status, facts = report()
    assert status == 1
    assert broken(facts) == ["VITGAN_KERNELS_BACKEND=fastest is set, and there is no backend of that name"]
    assert "one of auto, reference, " in facts["findings"][0]["what_to_do"]


def test_the_pin_of_pytorch_s_own_metadata_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = ["triton==3.6.0; platform_system == 'Linux'", "triton==1; extra == 'old'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: pins)
    assert doctor._triton_needed() == "3.6.0"
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: None)
    monkeypatch.setattr(torch, "__version__", "2.11.0+cpu")
    assert doctor._triton_needed() == "3.6"


def test_vitgan_doctor_is_the_same(capsys: pytest.CaptureFixture[str], quick: None) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for line in (
        "versions",
        "GPUs",
        "built",
        "backends, for a call on ",
        "checks against float64, ",
        "What is promised",
    ):
        assert f"\n{line}" in f"\n{text}"


def test_as_a_module_with_the_checks() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "vitgan_kernels", "--json"]
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    facts = json.loads(result.stdout)
    assert {check["operator"] for check in facts["checks"]} == set(facts["operators"])
    assert all(check["passed"] for check in facts["checks"])
