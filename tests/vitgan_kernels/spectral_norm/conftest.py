"""What the tests of spectral normalisation share: the compiled implementations, one after another."""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vitgan_kernels import native_support
from vitgan_kernels.spectral_norm import native, op

ROOT = Path(__file__).resolve().parents[3]
STREAM = 12345


class Device(ctypes.Structure):
    """What the CUDA runtime on the CPU knows and does; tests/csrc/cuda_on_cpu/cuda_runtime.h says more."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("current", "reversed", "fail_next", "launches")),
        *((name, ctypes.c_int) for name in ("cooperative_launches", "launched_on")),
        ("stream", ctypes.c_void_p),
    ]


def missing(why: str) -> None:
    assert os.environ.get("VITGAN_REQUIRE_NATIVE") != "1", why
    pytest.skip(why)


@pytest.fixture
def compiled() -> None:
    """Skips where the extension is not built, unless it has to be."""
    ok, why = native.available()
    if not ok:
        missing(why)


@pytest.fixture
def backend_that_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends of the calls of spectral_norm, as they are made."""
    chosen: list[str] = []
    select = op.OPERATOR.select

    def watched(*args: Any, **kwargs: Any) -> Any:
        implementation = select(*args, **kwargs)
        chosen.append(implementation.backend)
        return implementation

    monkeypatch.setattr(op.OPERATOR, "select", watched)
    return chosen


@pytest.fixture(scope="session")
def cuda_module() -> ModuleType:
    """The extension with the CUDA source compiled for the CPU; the binding and the source are those that ship."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or importlib.util.find_spec("pybind11") is None or not (ROOT / "csrc").exists():
        missing("a C++ compiler, pybind11 and the sources in csrc/ are needed to compile the CUDA source for the CPU")
    import pybind11

    shim = ROOT / "tests" / "csrc" / "cuda_on_cpu"
    sources = sorted([*(ROOT / "csrc").iterdir(), *shim.iterdir()])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = ROOT / "build" / "cuda-on-cpu" / f"{digest}-{sysconfig.get_config_var('SOABI')}"
    module = folder / "_native.so"
    if not module.exists():
        folder.mkdir(parents=True, exist_ok=True)
        common = [str(compiler), "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", f"-I{shim}"]
        common += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        includes = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
        csrc = ROOT / "csrc"
        common += [f"-I{csrc}", '-DVITGAN_WITH_CUDA="the CPU"']
        options = {
            shim / "module.cpp": ["-O0", *includes],
            csrc / "spectral_norm_binding.cpp": ["-O0", *includes],
            csrc / "spectral_norm.cpp": ["-O1"],
            csrc / "threads.cpp": ["-O1"],
            csrc / "spectral_norm.cu": ["-O1", "-x", "c++"],
            csrc / "spectral_norm_backward.cu": ["-O1", "-x", "c++"],
        }
        objects = [str(folder / f"{os.getpid()}-{path.name}.o") for path in options]
        commands = [
            [*common, *how, "-c", str(path), "-o", output]
            for (path, how), output in zip(options.items(), objects, strict=True)
        ]
        running = [subprocess.Popen(command) for command in commands]
        assert [process.wait() for process in running] == [0] * len(commands)
        linked = folder / f"{os.getpid()}.so"
        subprocess.run([*common, "-shared", *objects, "-o", str(linked)], check=True)
        linked.rename(module)  # whole or not at all
    spec = importlib.util.spec_from_file_location("_native", module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def cuda_device(cuda_module: ModuleType) -> Device:
    """The state of the CUDA runtime on the CPU, new for each test."""
    function = ctypes.CDLL(str(cuda_module.__file__)).cuda_on_cpu_device
    function.restype = ctypes.POINTER(Device)
    device: Device = function().contents
    ctypes.memset(ctypes.byref(device), 0, ctypes.sizeof(device))
    return device


@pytest.fixture
def cuda_on_cpu(cuda_module: ModuleType, cuda_device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Calls of the torch_ops operators on CPU tensors go to the CUDA source."""
    monkeypatch.setattr(native_support, "load", lambda: cuda_module)
    monkeypatch.setattr(native, "_on_cuda", lambda tensor: True)
    monkeypatch.setattr(native, "_device_and_stream", lambda tensor: (1, STREAM))
    return cuda_device


@pytest.fixture(params=["cpp", "cuda, one launch", "cuda, phases", "cuda, phases in reverse"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each compiled implementation in turn, behind the torch_ops operators."""
    if request.param == "cpp":
        request.getfixturevalue("compiled")
    else:
        device = request.getfixturevalue("cuda_on_cpu")
        device.reversed = "reverse" in request.param
        monkeypatch.setattr(native, "cooperative", "one launch" in request.param)
    return str(request.param)
