"""The commands for a machine with a GPU, on stub stages: order, time, interrupts; the smallest launches; tuning."""

import json
import os
import sys
from collections.abc import Callable
from math import inf
from pathlib import Path
from subprocess import Popen, TimeoutExpired

import pytest
import torch

from benchmarks import gpu, smoke, tune
from benchmarks.gpu import Stage, first, run, second, share

PASS = [sys.executable, "-c", "print('fine')"]


def silent(text: str) -> None:
    pass


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def out_of_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bool], str]:
    """Code that says it is ready and waits for ever; the first wait for it then runs out. `stubborn`: so does the next,
    for the time to stop."""
    fifo, process_wait = tmp_path / "ready", gpu.wait
    waits: list[float] = []

    def code(stubborn: bool) -> str:
        os.mkfifo(fifo)

        def wait(process: "Popen[bytes]", seconds: float) -> int:
            waits.append(seconds)
            if len(waits) == 1:
                fifo.read_text()  # until the other side has closed it
            if len(waits) == 1 or (stubborn and len(waits) == 2):
                raise TimeoutExpired(process.args, seconds)
            return process_wait(process, 600)

        monkeypatch.setattr(gpu, "wait", wait)
        handler = "signal.SIG_IGN" if stubborn else "lambda *_: sys.exit(print('partial'))"
        ready = f"open({str(fifo)!r}, 'w').close()"
        return f"import signal, sys\nsignal.signal(2, {handler})\n{ready}\nwhile True: signal.pause()"

    return code


def test_stages_continue_after_one_that_fails(tmp_path: Path) -> None:
    order = tmp_path / "order"

    def stub(name: str, status: int) -> Stage:
        code = f"import sys; open({str(order)!r}, 'a').write('{name} '); print('said {name}'); sys.exit({status})"
        return Stage(name, python(code), 1)

    found = [
        stub("a", 0),
        stub("b", 3),
        Stage("c", ["/does/not/exist"], 1),
        stub("d", 0),
        Stage("e", [], 1, missing="none"),
    ]
    outcomes = run(found, tmp_path / "out", 600, silent)
    assert order.read_text() == "a b d "
    assert [one.status for one in outcomes] == ["passed", "failed", "failed", "passed", "not run"]
    assert [one.words for one in outcomes[:2]] == ["said a", "exit status 3: said b (see 2-b.log)"]
    assert outcomes[2].words.startswith("cannot start: ")
    assert "said d" in (tmp_path / "out" / "4-d.log").read_text()
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [one["status"] for one in written] == [one.status for one in outcomes]


@pytest.mark.parametrize(("said", "status"), [("3 passed, 4 skipped in 1s", "passed"), ("7 skipped in 1s", "failed")])
def test_a_stage_that_skips_everything_has_not_passed(tmp_path: Path, said: str, status: str) -> None:
    (outcome,) = run([Stage("a", python(f"print({said!r})"), 1)], tmp_path, 600, silent)
    assert (outcome.status, said in outcome.words) == (status, True)


def test_a_stage_out_of_time_may_write_what_it_has_and_the_next_runs(
    tmp_path: Path, out_of_time: Callable[[bool], str]
) -> None:
    slow, after = run([Stage("slow", python(out_of_time(False)), 1), Stage("next", PASS, 1)], tmp_path, 600, silent)
    assert (slow.status, after.status) == ("out of time", "passed")
    assert ": partial (see 1-slow.log)" in slow.words


def test_a_stage_that_ignores_the_interrupt_is_killed(tmp_path: Path, out_of_time: Callable[[bool], str]) -> None:
    (stuck,) = run([Stage("stuck", python(out_of_time(True)), 1)], tmp_path, 600, silent)
    assert stuck.status == "out of time"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_interrupt_keeps_what_is_known(at: int, tmp_path: Path) -> None:
    """Ctrl-C comes from the stage itself, so whenever that runs; it may write what it has."""
    code = """
import os, signal, sys
signal.signal(2, lambda *_: sys.exit(print('partial')))
os.kill(os.getppid(), 2)
while True: signal.pause()
"""
    stages = [Stage("abc"[i], python(code) if i == at else PASS, 1, beside=PASS) for i in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run(stages, tmp_path, 600, silent)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert [one["status"] for one in written] == ["passed"] * at + ["interrupted"]
    assert written[at]["words"] == "partial"


def test_what_runs_beside_a_stage_ends_with_it(tmp_path: Path) -> None:
    """The stage waits for the other, whose end closes the pipe that it then reads."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    beside = python(f"import signal; file = open({str(fifo)!r}, 'w'); file.write('warm'); file.flush(); signal.pause()")
    stage = Stage("a", python(f"print(open({str(fifo)!r}).read(4))"), 1, beside=beside)
    (outcome,) = run([stage], tmp_path, 600, silent)
    assert (outcome.status, outcome.words) == ("passed", "warm")
    assert (tmp_path / "1-a.beside.log").is_file()


def test_time_left_over_goes_to_later_stages(tmp_path: Path) -> None:
    stages = [Stage("a", PASS, 1), Stage("b", [], 8, missing="there is none"), Stage("c", PASS, 3)]
    assert share(100, stages) == 25
    assert share(90, stages[2:]) == 90
    (none,) = run(stages[:1], tmp_path, 0.5, silent)
    assert (none.status, none.words) == ("not run", "no time was left of 0 s")
    command = python("import sys; print(sys.argv[1])")
    (minutes,) = run([Stage("train", [*command, gpu.MINUTES], 1)], tmp_path, 640, silent)
    assert float(minutes.words) == pytest.approx(10, abs=0.2)


def test_what_is_done_and_in_which_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    build, correctness, headlines = first(tmp_path)
    assert "--no-deps" in build.command, "PyTorch is never replaced"
    assert sum(word.endswith("test_gpu.py") for word in correctness.command) == 3
    assert f"--benchmark-json={tmp_path / 'headlines.json'}" in headlines.command
    assert [stage.name for stage in second(tmp_path) if stage.missing] == ["memcheck", "racecheck"]
    sanitizer = tmp_path / "bin" / "compute-sanitizer"
    sanitizer.parent.mkdir()
    sanitizer.write_text("#!/bin/sh\n")
    sanitizer.chmod(0o755)
    found = second(tmp_path, "some.zip")
    assert [stage.name for stage in found] == ["memcheck", "racecheck", "tiles", "rows", "tests", "train"]
    assert not any(stage.missing for stage in found)
    assert found[0].command[:2] == [str(sanitizer), "--tool=memcheck"]
    assert "some.zip" in found[-1].command
    files = [word for word in [*correctness.command, *found[4].command] if word.endswith(".py")]
    assert all(Path(file).is_file() for file in files)


def test_without_a_gpu_or_a_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "out")]
    with monkeypatch.context() as without:
        without.setattr("torch.cuda.is_available", lambda: False)
        assert gpu.main(["first", *out]) == 2
    assert capsys.readouterr().err.startswith("no GPU: PyTorch ")
    assert gpu.lacking() == [], "the tests' environment has all of them"
    monkeypatch.setattr(gpu, "NEEDED", {"pytest": "", "no_such_module": "no-such-package"})
    assert gpu.main(["second", "--rehearse", *out]) == 2
    assert "has no no-such-package: run " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [0, 1])
def test_the_exit_status(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [Stage("a", PASS, 1), Stage("b", python(f"raise SystemExit({status})"), 1)]
    monkeypatch.setattr(gpu, "first", lambda out: stages)
    assert gpu.main(["--rehearse", "--out", str(tmp_path)]) == status
    assert f"{2 - status} of 2 stages passed; everything is in {tmp_path}" in capsys.readouterr().out


def test_the_launches_are_finite() -> None:
    pytest.importorskip("triton")
    device = smoke.pick_device()
    assert smoke.all_finite(smoke.attention(17, 17, True, torch.bfloat16, device))
    assert smoke.all_finite(smoke.siren([20, 40, 33, 3], True, torch.bfloat16, device))
    assert not smoke.all_finite([torch.tensor([1.0, float("nan")])])


def test_a_tile_that_fails_or_is_wrong_is_not_the_fastest() -> None:
    row = {tune.WIDTH: (16, 16, 4)}

    def results() -> list[torch.Tensor]:
        if row[tune.WIDTH] == (32, 32, 4):
            raise RuntimeError("out of shared memory")
        return [torch.tensor([2.0 if row[tune.WIDTH] == (64, 32, 4) else 1.0])]

    taken = tune.tune(row, results, lambda: 1.0 / sum(row[tune.WIDTH]), 1e-3)
    assert next(iter(taken)) == row[tune.WIDTH] == (16, 16, 4)
    assert taken[32, 32, 4] == taken[64, 32, 4] == inf
    assert min(taken, key=lambda tile: taken[tile]) == (128, 64, 8)
