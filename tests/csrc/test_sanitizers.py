"""The C++ and the CUDA source (compiled for the CPU) under sanitizers, on memory of exactly the size they may touch."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"


def run_sanitized(
    sanitizers: str, names: list[str], folder: Path, program: str = "sanitized.cpp"
) -> subprocess.CompletedProcess[str]:
    compiler = shutil.which("g++")
    if compiler is None:
        assert os.environ.get("VITGAN_REQUIRE_NATIVE") != "1", "no g++ here"
        pytest.skip("no g++ here")
    flags = ["-std=c++17", "-O1", "-g1", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    flags += ["-Wno-unknown-pragmas", f"-I{HERE / 'cuda_on_cpu'}", f"-I{CSRC}", "-x", "c++"]
    flags += ["-DVITGAN_LEVEL=generic", "-Wno-psabi"]
    sources = [*(CSRC / name for name in names), HERE / program]
    objects = [str(folder / f"{source.name}.o") for source in sources]
    pairs = zip(sources, objects, strict=True)
    running = [subprocess.Popen([compiler, *flags, "-c", str(source), "-o", name]) for source, name in pairs]
    assert [process.wait() for process in running] == [0] * len(sources)
    executable = str(folder / "sanitized")
    subprocess.run([compiler, f"-fsanitize={sanitizers}", "-pthread", *objects, "-o", executable], check=True)
    # leaks are looked for by ptrace, which containers often forbid
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    return subprocess.run([executable], env=environment, check=False, capture_output=True, text=True)


def test_address_and_undefined_behaviour(tmp_path: Path) -> None:
    names = ["spectral_norm.cpp", "threads.cpp", "spectral_norm.cu", "spectral_norm_backward.cu"]
    result = run_sanitized("address,undefined", names, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "0 results disagree\n"
    # what the program switches fibres by; it tells the sanitizer of every switch
    assert [line for line in result.stderr.splitlines() if "makecontext/swapcontext" not in line] == []


def test_threads(tmp_path: Path) -> None:
    """Of the C++ alone: this sanitizer cannot follow the fibres that the CUDA source runs on."""
    result = run_sanitized("thread", ["spectral_norm.cpp", "threads.cpp"], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (result.stdout, result.stderr) == ("0 results disagree\n", "")


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_l2_attention(sanitizers: str, tmp_path: Path) -> None:
    names = ["l2_attention.simd.cpp", "l2_attention.cpp", "levels.cpp", "threads.cpp"]
    result = run_sanitized(sanitizers, names, tmp_path, "sanitized_l2.cpp")
    assert (result.stdout, result.stderr, result.returncode) == ("0 results disagree\n", "", 0)
