"""The command for a machine with a GPU, on stub stages: order, time, what fails and what is missing; its smoke."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_hour, smoke
from benchmarks.gpu_hour import Stage, run, stages

PASS = [sys.executable, "-c", "print('fine')"]


def silent(text: str) -> None:
    pass


def test_stages_continue_after_one_that_fails(tmp_path: Path) -> None:
    order = tmp_path / "order"

    def stub(name: str, status: int) -> Stage:
        code = f"import sys; open({str(order)!r}, 'a').write('{name} '); print('said {name}'); sys.exit({status})"
        return Stage(name, [sys.executable, "-c", code], 1)

    found = [stub("a", 0), stub("b", 3), Stage("c", ["/does/not/exist"], 1), stub("d", 0)]
    outcomes = run(found, tmp_path / "out", 60, silent)
    assert order.read_text() == "a b d "
    assert [one.status for one in outcomes] == ["passed", "failed", "failed", "passed"]
    assert outcomes[0].words == "said a"
    assert outcomes[1].words == "exit status 3: said b (see 2-b.log)"
    assert outcomes[2].words.startswith("cannot start: ")
    assert "said d" in (tmp_path / "out" / "4-d.log").read_text()
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [one["status"] for one in written] == [one.status for one in outcomes]


@pytest.mark.parametrize(("said", "status"), [("3 passed, 4 skipped in 1s", "passed"), ("7 skipped in 1s", "failed")])
def test_a_stage_that_skips_everything_has_not_passed(tmp_path: Path, said: str, status: str) -> None:
    (outcome,) = run([Stage("a", [sys.executable, "-c", f"print({said!r})"], 1)], tmp_path, 60, silent)
    assert (outcome.status, said in outcome.words) == (status, True)


def test_a_stage_out_of_time_may_write_what_it_has_and_the_next_runs(tmp_path: Path) -> None:
    code = "import time\ntry:\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('partial')"
    found = [Stage("slow", [sys.executable, "-c", code], 1), Stage("next", PASS, 1)]
    slow, after = run(found, tmp_path, 8, silent)
    assert (slow.status, after.status) == ("out of time", "passed")
    assert slow.words == "interrupted after 3 s: partial (see 1-slow.log)"
    assert "partial" in (tmp_path / "1-slow.log").read_text()


def test_a_stage_that_ignores_the_interrupt_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_hour, "SECONDS_TO_STOP", 0.05)
    ended = tmp_path / "ended"
    code = f"""
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(20)
pathlib.Path({str(ended)!r}).touch()
"""
    found = [Stage("stuck", [sys.executable, "-c", code], 1), Stage("late", PASS, 1)]
    stuck, late = run(found, tmp_path, 2, silent)
    assert stuck.status == "out of time"
    assert not ended.exists(), "it was waited for, and not killed"
    assert late.status == "not run"
    assert late.words == "no time was left of 2 s: give more by --seconds"


def test_time_left_over_goes_to_later_stages(tmp_path: Path) -> None:
    told: list[str] = []
    found = [Stage("a", PASS, 1), Stage("b", [], 8, missing="there is none"), Stage("c", PASS, 1)]
    outcomes = run(found, tmp_path, 1000, told.append)
    assert told[0].startswith("a: at most 500 s")
    (limit,) = (int(line.split()[3]) for line in told if line.startswith("c: at most"))
    assert 900 < limit <= 1000
    assert outcomes[1].status == "not run"
    assert outcomes[1].words == "there is none"


def test_what_is_done_and_in_which_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    without = stages(tmp_path / "out")
    order = [stage.name for stage in without if stage.name != "test spectral_norm"]
    tests = ["test l2_attention", "test modulated_siren"]
    assert order == ["build", "launches", *tests, "test training", "memcheck", "racecheck", "benchmarks"]
    assert [stage.name for stage in without if stage.missing] == ["memcheck", "racecheck"]
    assert "compute-sanitizer is not on PATH nor in the CUDA toolkit" in without[-2].missing
    sanitizer = tmp_path / "bin" / "compute-sanitizer"
    sanitizer.parent.mkdir()
    sanitizer.write_text("#!/bin/sh\n")
    sanitizer.chmod(0o755)
    found = {stage.name: stage for stage in stages(tmp_path / "out")}
    assert not any(stage.missing for stage in found.values())
    assert found["memcheck"].command[:2] == [str(sanitizer), "--tool=memcheck"]
    assert "--no-deps" in found["build"].command, "PyTorch is never replaced"
    for tested in ("test modulated_siren", "test training"):
        files = [argument for argument in found[tested].command if argument.endswith(".py")]
        assert files[0].endswith("test_gpu.py")
        assert all(Path(file).is_file() for file in files)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_hour.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("no GPU: PyTorch ")
    assert not (tmp_path / "out").exists()


def test_without_a_package_of_the_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert gpu_hour.lacking() == [], "the tests' environment has all of them"
    monkeypatch.setattr(gpu_hour, "machine", lambda: "a GPU")
    monkeypatch.setattr(gpu_hour, "NEEDED", {"pytest": "", "no_such_module": "no-such-package"})
    assert gpu_hour.main(["--out", str(tmp_path / "out")]) == 2
    assert "has no no-such-package: run " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("status", "expected", "words"), [(0, 0, "2 of 2"), (1, 1, "1 of 2")])
def test_the_summary_and_the_exit_status(
    status: int, expected: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = Stage("b", [sys.executable, "-c", f"raise SystemExit({status})"], 1)
    monkeypatch.setattr(gpu_hour, "machine", lambda: "a GPU")
    monkeypatch.setattr(gpu_hour, "stages", lambda out: [Stage("a", PASS, 1), last])
    assert gpu_hour.main(["--out", str(tmp_path)]) == expected
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert summary[0] == "a GPU"
    assert summary[-1] == f"{words} stages passed; everything is in {tmp_path}"


def test_the_launches_are_finite() -> None:
    pytest.importorskip("triton")
    device = smoke.pick_device()
    assert smoke.all_finite(smoke.attention(17, 17, True, torch.bfloat16, device))
    assert smoke.all_finite(smoke.siren([20, 40, 33, 3], True, torch.bfloat16, device))
    assert not smoke.all_finite([torch.tensor([1.0, float("nan")])])
