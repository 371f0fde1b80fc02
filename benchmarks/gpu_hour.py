"""Everything that only a GPU can tell, in one command and ten minutes:

    python -m benchmarks.gpu_hour [--out FOLDER] [--seconds 600]

Builds the extension, runs the tests of the kernels and of training, the sanitizer over a few launches, and the
benchmarks, each in a process of its own, and leaves in one folder the log of each stage, the results and summary.txt. A
stage that fails does not stop the next. Whatever time a stage leaves over goes to those after it; one that needs more
than its share is interrupted, and keeps what it has found so far.

The environment's own PyTorch is used and never replaced; `./run gpu` makes an environment where there is none.
Exit status: 0 all stages passed, 1 some did not or could not run, 2 there is no GPU, or a package is missing.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS_TO_STOP = 20  # at most, of a stage's own time, to write what there is after an interrupt
SANITIZER = "compute-sanitizer"


@dataclass(frozen=True)
class Stage:
    """A command, its share of the time, and what its environment has besides ours.

    missing: why there is no command, and what to do.
    """

    name: str
    command: Sequence[str]
    share: int
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "passed", "failed", "out of time" or "not run"."""

    stage: str
    status: str
    seconds: float
    words: str = ""


def stages(out: Path) -> list[Stage]:
    """What is done, in order. A share counts against those of the stages that are still to come."""
    python = sys.executable
    launches = [python, "-m", "benchmarks.smoke"]
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    found = [
        Stage("build", [*pip, "-e", str(ROOT)], 70, {"VITGAN_REQUIRE_NATIVE": "1"}),
        Stage("launches", launches, 60),
    ]
    # Most of their time is the compiler's.
    pytest = [python, "-m", "pytest", "-q", "-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"]
    for operator in sorted(OPERATORS):
        report = f"--junitxml={out / operator}.xml"
        if files := _test_files(operator):
            found.append(Stage(f"test {operator}", [*pytest, report, *files], 100))
    training = ROOT / "tests" / "vitgan" / "training" / "test_gpu.py"
    found.append(Stage("test training", [*pytest, f"--junitxml={out / 'training.xml'}", str(training)], 60))
    sanitizer = find_sanitizer()
    missing = "" if sanitizer else f"{SANITIZER} is not on PATH nor in the CUDA toolkit: install it, or set CUDA_HOME"
    for tool in ("memcheck", "racecheck"):
        report = f"--log-file={out / f'{tool}.txt'}"
        command = [sanitizer or SANITIZER, f"--tool={tool}", "--error-exitcode=9", report, *launches]
        # Without the cache each tensor is an allocation of its own, whose bounds memcheck knows.
        found.append(Stage(tool, command, 40, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, missing))
    record = f"--benchmark-json={out / 'results' / 'gpu.json'}"
    return [*found, Stage("benchmarks", [python, "-m", "pytest", "-q", "benchmarks", record], 190)]


OPERATORS = {
    "l2_attention": "test_*.py",
    "modulated_siren": "test_*.py",
    "spectral_norm": "test_gpu*.py",  # its others are the same with and without a GPU
}


def _test_files(operator: str) -> list[str]:
    """The tests of an operator's kernels, those that only a GPU runs first."""
    files = sorted((ROOT / "tests" / "vitgan_kernels" / operator).glob(OPERATORS[operator]))
    return [str(path) for path in sorted(files, key=lambda path: not path.stem.startswith("test_gpu"))]


def find_sanitizer() -> str | None:
    """NVIDIA's compute-sanitizer, on PATH or in the toolkit."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    places = [toolkit / "bin", toolkit / SANITIZER]
    return shutil.which(SANITIZER) or shutil.which(SANITIZER, path=os.pathsep.join(map(str, places)))


def run(found: Sequence[Stage], out: Path, seconds: float, say: Callable[[str], None] = print) -> list[Outcome]:
    """Run the stages one after the other within so many seconds; each outcome is in summary.json as soon as known."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for index, stage in enumerate(found):
        left = end - time.monotonic()
        log = out / f"{index + 1}-{stage.name.replace(' ', '-')}.log"
        if stage.missing:
            outcome = Outcome(stage.name, "not run", 0, stage.missing)
        elif left < 1:
            outcome = Outcome(stage.name, "not run", 0, f"no time was left of {seconds:.0f} s: give more by --seconds")
        else:
            limit = left * stage.share / sum(later.share for later in found[index:] if not later.missing)
            say(f"{stage.name}: at most {limit:.0f} s, log in {log}")
            outcome = _run_one(stage, log, limit)
        say(_line(outcome))
        outcomes.append(outcome)
        (out / "summary.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    return outcomes


def _run_one(stage: Stage, log: Path, limit: float) -> Outcome:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | stage.environment
    grace = min(SECONDS_TO_STOP, limit / 4)
    start = time.monotonic()
    with log.open("w") as file:
        file.write(f"$ {' '.join(stage.command)}\n")
        file.flush()
        try:
            process = subprocess.Popen(
                stage.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Outcome(stage.name, "failed", 0, f"cannot start: {error}")
        try:
            status = process.wait(limit - grace)
        except subprocess.TimeoutExpired:
            _stop(process, grace)
            words = f"interrupted after {limit - grace:.0f} s: {_last_line(log)} (see {log.name})"
            return Outcome(stage.name, "out of time", time.monotonic() - start, words)
        except BaseException:
            _stop(process, grace)
            raise
    taken = time.monotonic() - start
    if status:
        return Outcome(stage.name, "failed", taken, f"exit status {status}: {_last_line(log)} (see {log.name})")
    words = _last_line(log)
    if "skipped" in words and "passed" not in words:
        return Outcome(stage.name, "failed", taken, f"every test was skipped: {words} (see {log.name}, -rs says why)")
    return Outcome(stage.name, "passed", taken, words)


def _stop(process: "subprocess.Popen[bytes]", grace: float) -> None:
    """Interrupt a stage, for it to write its results; kill what is left of it."""
    process.send_signal(signal.SIGINT)  # to it alone: pytest's workers would be gone before it has their reports
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[1:]]
    return next((line[:160] for line in reversed(lines) if line), "no output")


def _line(outcome: Outcome) -> str:
    return f"{outcome.stage:<22}{outcome.status:<12}{outcome.seconds:>6.0f} s  {outcome.words}".rstrip()


def machine() -> str | None:
    """What this runs on, or None where PyTorch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    version = torch.version.cuda or torch.version.hip
    return f"{', '.join(names)}; Python {platform.python_version()}, PyTorch {torch.__version__}, CUDA or HIP {version}"


def why_no_gpu() -> str:
    """What PyTorch says of GPUs, and what to do."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"no GPU: PyTorch {torch.__version__} in {sys.prefix} is built without CUDA. Install one with CUDA there, "
            "or run this by the Python of an environment that has it"
        )
    return (
        f"no GPU: PyTorch {torch.__version__} in {sys.prefix} is built for one and sees none. "
        "nvidia-smi says whether the driver does; CUDA_VISIBLE_DEVICES may hide it"
    )


# what the stages import, beside what the package itself needs: module, and where it has another name, the package
NEEDED = {
    "pip": "", "setuptools": "", "pybind11": "", "ninja": "",
    "pytest": "", "xdist": "pytest-xdist", "pytest_benchmark": "pytest-benchmark", "hypothesis": "", "triton": "",
}  # fmt: skip


def lacking() -> list[str]:
    """The packages that the stages need and the environment has not."""
    return [package or module for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_hour", description="all that only a GPU can tell")
    parser.add_argument("--out", type=Path, help="folder of the results (default: build/gpu/<date and time>)")
    parser.add_argument("--seconds", type=float, default=600, help="for everything together")
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds must be positive, got {options.seconds:g}")
    found = machine()
    if found is None:
        print(why_no_gpu(), file=sys.stderr)
        return 2
    if packages := lacking():
        print(
            f"{sys.prefix} has no {', '.join(packages)}: run {sys.executable} -m pip install -e '{ROOT}[test]', which "
            "keeps a PyTorch from 2.11 on, or ./run gpu, which makes an environment",
            file=sys.stderr,
        )
        return 2
    out = (options.out or ROOT / "build" / "gpu" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}").resolve()
    print(found, flush=True)
    outcomes = run(stages(out), out, options.seconds, say=lambda text: print(text, flush=True))
    passed = sum(outcome.status == "passed" for outcome in outcomes)
    ending = f"{passed} of {len(outcomes)} stages passed; everything is in {out}"
    (out / "summary.txt").write_text("\n".join([found, *map(_line, outcomes), ending]) + "\n")
    print(ending)
    return 0 if passed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
