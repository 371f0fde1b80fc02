"""Predictions: loops are counted, ceilings and occupancy are those of the GPU, and the figures are of these kernels."""

import ast
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.predictions import figures, model
from benchmarks.predictions.devices import GPUS
from benchmarks.predictions.figures import Figures
from benchmarks.predictions.loops import counted, executions
from benchmarks.report import predicted
from tests.benchmarks.helpers import row, run

TTIR = """
  tt.func public @kernel(%X: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("X"), %N: i32, %tiles: i32) {
    %c0_i32 = arith.constant 0 : i32 loc(#loc1)
    %c16_i32 = arith.constant 16 : i32
    %0 = tt.get_program_id x : i32
    %first = arith.muli %0, %tiles : i32
    %1 = arith.addi %0, %c16_i32 : i32
    %last = arith.minsi %1, %tiles : i32
    %o = scf.for %i = %first to %last step %c1_i32 iter_args(%a = %z) -> (tensor<16x32xf32>)  : i32 {
      %p = scf.for %j = %c0_i32 to %N step %c16_i32 iter_args(%b = %a) -> (tensor<16x32xf32>)  : i32 {
        %d = tt.dot %x, %y, %b : tensor<16x64xbf16> * tensor<64x32xbf16> -> tensor<16x32xf32>
        scf.yield %d : tensor<16x32xf32>
      }
      %r = "tt.reduce"(%p) <{axis = 1 : i32}> ({
      ^bb0(%s: f32, %t: f32):
        tt.reduce.return %u : f32
      }) : (tensor<16x32xf32>) -> tensor<16xf32>
      scf.yield %p : tensor<16x32xf32>
    }
    %e = tt.dot %x, %y, %z : tensor<16x64xf32> * tensor<64x32xf32> -> tensor<16x32xf32>
  }
"""
KERNEL = Figures(
    kernel="kernel",
    launches=1,
    programs=264,
    warps=4,
    registers=128,
    shared=32 * 1024,
    bytes=0,
    flops={},
    instructions={},
)
H200 = GPUS[0]


def test_products_are_counted_with_their_loops() -> None:
    work = counted(TTIR, {"N": 65, "tiles": 3, "c1_i32": 1})
    product = 2 * 16 * 64 * 32
    assert work.iterations == [3, 5]
    assert work.product_flops == {"bf16": 15 * product, "f32": product}


def test_a_bound_that_is_not_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="the bound %first of a loop"):
        counted(TTIR, {"N": 65, "c1_i32": 1})


def test_instructions_run_as_often_as_the_loops_around_them() -> None:
    code = [(0, None), (16, None), (32, None), (48, 32), (64, 16), (80, 96), (96, None), (112, 112)]
    assert executions(code, [3, 5]) == [1, 3, 15, 15, 3, 1, 1, 1]
    assert executions(code, [3, 1, 5]) == [1, 3, 15, 15, 3, 1, 1, 1]
    with pytest.raises(ValueError, match="2 loops and the kernel 3"):
        executions(code, [3, 2, 5])


@pytest.mark.parametrize(
    ("changes", "resident"),
    [
        ({}, 4),  # 65536 registers by 4 warps of 128 * 32
        ({"registers": 64}, 6),  # 228 KB by 33
        ({"registers": 16, "shared": 0}, 16),  # 64 warps
        ({"registers": 16, "shared": 0, "warps": 1}, 32),  # blocks
        ({"shared": 228 * 1024}, 0),
    ],
)
def test_occupancy(changes: dict[str, Any], resident: int) -> None:
    assert model.resident_programs(replace(KERNEL, **changes), H200) == resident


def test_a_kernel_that_only_moves_bytes_takes_the_bus_as_long() -> None:
    one = model.predicted(replace(KERNEL, bytes=48_000_000), H200)
    assert one.bound == "memory"
    assert one.seconds == pytest.approx(1e-5 + model.LAUNCH)


def test_a_kernel_of_products_takes_the_tensor_cores_as_long() -> None:
    one = model.predicted(replace(KERNEL, flops={"bf16": 4096 * 1_000_000}, instructions={"tensor": 1000}), H200)
    assert one.bound == "tensor"
    assert one.seconds == pytest.approx(2e6 / 1.83e9 + model.LAUNCH)  # two programs a multiprocessor


def test_few_warps_issue_slowly() -> None:
    alone = model.predicted(replace(KERNEL, programs=132, instructions={"other": 1_000_000}), H200)
    assert alone.bound == "issue"
    assert alone.seconds == pytest.approx(1e6 * model.ISSUE_GAP / 1.83e9 + model.LAUNCH)
    full = model.predicted(replace(KERNEL, programs=4 * 132, instructions={"other": 1_000_000}), H200)
    assert full.seconds == pytest.approx(alone.seconds)  # four in the time of one
    special = model.predicted(replace(KERNEL, programs=4 * 132, instructions={"special": 1_000_000}), H200)
    assert special.bound == "special"


def test_a_program_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="no multiprocessor of NVIDIA H200"):
        model.predicted(replace(KERNEL, shared=228 * 1024), H200)


def test_the_figures_are_of_the_present_kernels() -> None:
    assert not figures.stale(), "run python -m benchmarks.predictions --compile"
    cases = figures.load()
    assert {case.target for case in cases} == {gpu.target for gpu in GPUS}
    assert all(model.total(case, gpu) > 0 for gpu in GPUS for case in cases if case.target == gpu.target)


def test_comments_do_not_make_figures_stale() -> None:
    plain = figures._without_docstrings(ast.parse("def f():\n    return 1"))
    told = figures._without_docstrings(ast.parse('"""All."""\ndef f():\n    """What."""\n    return 1  # why'))
    other = figures._without_docstrings(ast.parse("def f():\n    return 2"))
    assert ast.dump(plain) == ast.dump(told) != ast.dump(other)


def test_a_measurement_stands_beside_its_prediction_and_no_other() -> None:
    case = next(case for case in figures.load() if case.target == H200.target)
    same = row(suite=case.suite, shape=case.shape, dtype=case.dtype, measures=case.measures)
    text = predicted.section([run(same, device="NVIDIA H200")])
    assert text.count("2.00 ms") == 1
    assert text.count(model.LABEL) > len(GPUS)
    assert "2.00 ms" not in predicted.section([run(same, device="NVIDIA H100")])
    assert "2.00 ms" not in predicted.section([run(replace(same, dtype="float32"), device="NVIDIA H200")])


def test_stale_figures_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "digest", lambda: "another")
    assert "older than the kernels" in predicted.section([])
    with pytest.raises(RuntimeError, match="--compile"):
        figures.load()
