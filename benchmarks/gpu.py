"""All that only a GPU can tell, in two commands of at most eight minutes each:

    python -m benchmarks.gpu first [--out FOLDER] [--seconds 470]
    python -m benchmarks.gpu second [--out FOLDER] [--seconds 470] [--data CIFAR10.zip]

`first` builds the extension, runs the kernels' tests, and measures the README's rows, the most important first.
`second` runs the sanitizer, tunes the tile table, measures the other rows, runs the other tests, and trains for the
minutes left. Each stage is a process; its log, the results and summary.json lie in one folder and are complete at
every moment. A stage that fails does not stop the next; the time that one leaves over goes to those after it.

The environment's own PyTorch is used and never replaced; `./run gpu` makes an environment where there is none.
Exit status: 0 all stages passed, 1 some did not or could not run, 2 there is no GPU, or a package is missing.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "vitgan_kernels"
SECONDS_TO_STOP = 10  # at most, of a stage's own time, to write what there is after an interrupt
SANITIZER = "compute-sanitizer"
MINUTES = "MINUTES"  # in a command: those that the stage has, but for a start and an end
# modules of the stages beside what the package needs, and the packages that have them under another name
NEEDED = {"pip": "", "setuptools": "", "pybind11": "", "ninja": "", "pytest": "", "xdist": "pytest-xdist",
          "pytest_benchmark": "pytest-benchmark", "hypothesis": "", "triton": ""}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A command, its share of the time, and what its environment has besides ours.

    beside: a command that runs beside it and is stopped with it. missing: why the stage cannot run, and what to do.
    """

    name: str
    command: Sequence[str]
    share: int
    environment: dict[str, str] = field(default_factory=dict)
    beside: Sequence[str] = ()
    missing: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "passed", "failed", "out of time", "interrupted" or "not run"."""

    stage: str
    status: str
    seconds: float
    words: str = ""


def first(out: Path) -> list[Stage]:
    """A share counts against those of the stages that are still to come."""
    pip = ["-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    found = sorted(TESTS.glob("*/test_gpu.py"))
    rows = ["benchmarks", "-m", "headline"]
    # What is compiled for the benchmarks is then in the caches: pytest-benchmark itself does nothing under xdist.
    warm = _pytest(*rows, "-k", "compiled", workers=6)
    return [
        Stage("build", [sys.executable, *pip], 60, {"VITGAN_REQUIRE_NATIVE": "1"}),
        Stage("correctness", _pytest(*map(str, found), f"--junitxml={out / 'correctness.xml'}", workers=8), 150,
              beside=warm),
        Stage("headline rows", _pytest(*rows, f"--benchmark-json={out / 'headlines.json'}"), 250),
    ]  # fmt: skip


def second(out: Path, data: str = "shapes") -> list[Stage]:
    """As `first`; training takes what is left."""
    smoke = [sys.executable, "-m", "benchmarks.smoke"]
    sanitizer = find_sanitizer()
    missing = "" if sanitizer else f"{SANITIZER} is not on PATH nor in the CUDA toolkit: install it, or set CUDA_HOME"
    # Without the cache each tensor is an allocation of its own, whose bounds memcheck knows.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    found = []
    for tool in ("memcheck", "racecheck"):
        options = [f"--tool={tool}", "--error-exitcode=9", f"--log-file={out / f'{tool}.txt'}"]
        found.append(Stage(tool, [sanitizer or SANITIZER, *options, *smoke], 40, alone, missing=missing))
    train = ["-m", "vitgan", "train", "--preset", "cifar10", "--data", data, "--out", str(out / "train")]
    training = str(ROOT / "tests" / "vitgan" / "training" / "test_gpu.py")
    grid = [str(path) for name in ("l2_attention", "modulated_siren") for path in sorted((TESTS / name).glob("*.py"))]
    rows = ["benchmarks", "-m", "not headline", f"--benchmark-json={out / 'rows.json'}"]
    return [
        *found,
        Stage("tiles", [sys.executable, "-m", "benchmarks.tune", str(out / "tiles.json")], 90),
        Stage("rows", _pytest(*rows), 120),
        Stage("tests", _pytest(training, *grid, workers=8), 60),
        Stage("train", [sys.executable, *train, "--max-minutes", MINUTES], 120),
    ]


def _pytest(*arguments: str, workers: int = 0) -> list[str]:
    many = ["-n", str(min(workers, os.cpu_count() or 1)), "--dist", "worksteal"] if workers else []
    return [sys.executable, "-m", "pytest", "-q", "--disable-warnings", *many, *arguments]


def find_sanitizer() -> str | None:
    """NVIDIA's compute-sanitizer, on PATH or in the toolkit."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    places = [toolkit / "bin", toolkit / SANITIZER]
    return shutil.which(SANITIZER) or shutil.which(SANITIZER, path=os.pathsep.join(map(str, places)))


def run(stages: Sequence[Stage], out: Path, seconds: float, say: Callable[[str], None] = print) -> list[Outcome]:
    """Run the stages one after the other within so many seconds; each outcome is in summary.json as soon as known."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []

    def known(outcome: Outcome) -> None:
        say(f"{outcome.stage:<16}{outcome.status:<12}{outcome.seconds:>6.0f} s  {outcome.words}".rstrip())
        outcomes.append(outcome)
        (out / "summary.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")

    for index, stage in enumerate(stages):
        left = end - time.monotonic()
        if stage.missing or left < 1:
            known(Outcome(stage.name, "not run", 0, stage.missing or f"no time was left of {seconds:.0f} s"))
            continue
        began, limit = time.monotonic(), share(left, stages[index:])
        log = out / f"{index + 1}-{stage.name.replace(' ', '-')}.log"
        say(f"{stage.name}: at most {limit:.0f} s, log in {log}")
        try:
            status, words = _run_one(stage, log, limit)
        except BaseException:
            known(Outcome(stage.name, "interrupted", time.monotonic() - began, _last_line(log)))
            raise
        known(Outcome(stage.name, status, time.monotonic() - began, words))
    return outcomes


def share(left: float, stages: Sequence[Stage]) -> float:
    """Seconds for the first of the stages that are still to come."""
    return left * stages[0].share / sum(stage.share for stage in stages if not stage.missing)


def _run_one(stage: Stage, log: Path, limit: float) -> tuple[str, str]:
    grace = min(SECONDS_TO_STOP, limit / 4)
    minutes = f"{max(limit - 40, limit / 2) / 60:.2f}"
    command = [minutes if word == MINUTES else word for word in stage.command]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with later_interrupts():  # or one would lose sight of a process that has just started
            if stage.beside:
                started.append(_start(stage.beside, stage, log.with_suffix(".beside.log")))
            started.append(_start(command, stage, log))
        status = wait(started[-1], limit - grace)
    except OSError as error:
        return "failed", f"cannot start: {error}"
    except subprocess.TimeoutExpired:
        stop(started.pop(), grace)
        return "out of time", f"interrupted after {limit - grace:.0f} s: {_last_line(log)} (see {log.name})"
    except BaseException:
        if started:
            stop(started.pop(), grace)
        raise
    finally:
        for process in started:
            if process.poll() is None:
                stop(process, 0)
    words = _last_line(log)
    if status:
        return "failed", f"exit status {status}: {words} (see {log.name})"
    if "skipped" in words and "passed" not in words:
        return "failed", f"every test was skipped: {words} (see {log.name}, -rs says why)"
    return "passed", words


def _start(command: Sequence[str], stage: Stage, log: Path) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | stage.environment
    with log.open("w") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


@contextmanager
def later_interrupts() -> Iterator[None]:
    """Ctrl-C in the block raises KeyboardInterrupt at its end."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def wait(process: "subprocess.Popen[bytes]", seconds: float) -> int:
    """The exit status. Raises TimeoutExpired."""
    return process.wait(seconds)


def stop(process: "subprocess.Popen[bytes]", grace: float) -> None:
    """Interrupt a stage, for it to write its results; kill what is left of it."""
    process.send_signal(signal.SIGINT)  # to it alone: pytest's workers would be gone before it has their reports
    with suppress(subprocess.TimeoutExpired):
        wait(process, grace)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[1:]] if log.exists() else []
    return next((line[:160] for line in reversed(lines) if line), "no output")


def why_no_gpu() -> str | None:
    """What PyTorch says of GPUs, and what to do; None where it sees one."""
    import torch

    if torch.cuda.is_available():
        return None
    build = f"PyTorch {torch.__version__} in {sys.prefix}"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"no GPU: {build} is built without CUDA. Install one with CUDA there, or use another environment"
    return f"no GPU: {build} sees none. nvidia-smi says whether the driver does; CUDA_VISIBLE_DEVICES may hide it"


def lacking() -> list[str]:
    """The packages that the stages need and the environment has not."""
    return [package or module for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="all that only a GPU can tell")
    parser.add_argument("part", nargs="?", choices=["first", "second"], default="first")
    parser.add_argument("--out", type=Path, help="folder of the results (default: build/gpu/PART)")
    parser.add_argument("--seconds", type=float, default=470, help="for everything together (%(default)s)")
    parser.add_argument("--data", default="shapes", help="what the second part trains on (%(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="go on without a GPU, to see the order and the limits")
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds must be positive, got {options.seconds:g}")
    if not options.rehearse and (why := why_no_gpu()):
        print(why, file=sys.stderr)
        return 2
    if packages := lacking():
        command = f"{sys.executable} -m pip install -e '{ROOT}[test]'"
        print(f"{sys.prefix} has no {', '.join(packages)}: run {command}, or ./run gpu", file=sys.stderr)
        return 2
    out = (options.out or ROOT / "build" / "gpu" / options.part).resolve()
    stages = first(out) if options.part == "first" else second(out, options.data)
    try:
        outcomes = run(stages, out, options.seconds, say=lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print(f"interrupted; what is known is in {out}", file=sys.stderr)
        return 1
    passed = sum(outcome.status == "passed" for outcome in outcomes)
    print(f"{passed} of {len(outcomes)} stages passed; everything is in {out}")
    return 0 if passed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
