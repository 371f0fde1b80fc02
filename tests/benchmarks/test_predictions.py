"""Predictions: loops are counted, ceilings and occupancy are those of the GPU, and the figures are of these kernels."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import test_spectral_norm
from benchmarks.predictions import cuda, figures, model
from benchmarks.predictions.devices import GPUS, Gpu
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
    again=0,
    since=0,
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


# TFLOP/s on the data sheets: dense bfloat16, TF32, float32, float64
PUBLISHED = {
    "NVIDIA H200": (989.4, 494.7, 66.9, 33.5),
    "NVIDIA H100 80GB HBM3": (989.4, 494.7, 66.9, 33.5),
    "NVIDIA A100-SXM4-80GB": (312, 156, 19.5, 9.7),
}


@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS if gpu.name in PUBLISHED], ids=lambda gpu: gpu.name)
def test_rates_are_those_of_the_data_sheets(gpu: Gpu) -> None:
    clocks = gpu.multiprocessors * gpu.clock / 1e12
    bf16, tf32, fp32, fp64 = PUBLISHED[gpu.name]
    assert gpu.tensor_flops["bf16"] * clocks == pytest.approx(bf16, rel=0.01)
    assert gpu.tensor_flops["f16"] * clocks == pytest.approx(bf16, rel=0.01)
    assert gpu.tensor_flops["tf32"] * clocks == pytest.approx(tf32, rel=0.01)
    # Hopper's vector rates hold at 1.98 GHz, its tensor rates at 1.83: the model has the lower clock for all
    assert gpu.fp32_lanes * 2 * clocks == pytest.approx(fp32, rel=0.1)
    assert gpu.fp64_lanes * 2 * clocks == pytest.approx(fp64, rel=0.1)


def test_a_laptops_multiprocessor_is_that_of_the_desktop_card() -> None:
    clocks = 128 * 2.52e9 / 1e12  # of the RTX 4090, for which the architecture's paper has rates
    laptop = GPUS[-1]
    assert laptop.tensor_flops["bf16"] * clocks == pytest.approx(165.2, rel=0.01)
    assert laptop.tensor_flops["tf32"] * clocks == pytest.approx(82.6, rel=0.01)
    assert laptop.fp32_lanes * 2 * clocks == pytest.approx(82.6, rel=0.01)
    assert laptop.fp64_lanes * 64 == laptop.fp32_lanes
    assert laptop.fp32_lanes * laptop.multiprocessors == 3072


def test_what_the_cache_does_not_hold_is_read_again() -> None:
    small = replace(KERNEL, bytes=0, again=48_000_000, since=48_000_000)
    assert model.predicted(small, H200).seconds == pytest.approx(model.LAUNCH)
    one = model.predicted(replace(small, since=H200.l2 + 1), H200)
    assert one.seconds == pytest.approx(1e-5 + model.LAUNCH)
    assert one.bound == "memory"


def test_the_figures_are_of_the_present_kernels() -> None:
    assert not figures.stale(), "run python -m benchmarks.predictions --compile"
    cases = figures.load()
    assert {case.target for case in cases} == {gpu.target for gpu in GPUS}
    assert all(model.total(case, gpu) > 0 for gpu in GPUS for case in cases if case.target == gpu.target)


@pytest.mark.parametrize("name", ["power_iteration.cu", "backward.cu", "cuda_common.cuh", "power_iteration.h"])
def test_a_change_of_the_cuda_sources_makes_their_figures_stale(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = tuple(tmp_path / path.name for path in cuda.SOURCES)
    for path, copy in zip(cuda.SOURCES, copies, strict=True):
        copy.write_text(path.read_text())
    monkeypatch.setattr(cuda, "SOURCES", copies)
    assert figures.stale() == []
    changed = tmp_path / name
    changed.write_text(changed.read_text() + "\n// a comment\n")
    assert figures.stale() == []
    changed.write_text(changed.read_text() + "int more;\n")
    assert figures.stale() == ["cuda"]


def test_the_cuda_figures_are_of_the_matrices_that_are_measured() -> None:
    predicted_shapes = [case.shape for case in figures.load() if case.suite == "spectral_norm"]
    for preset in {name for sizes in test_spectral_norm.SIZES.values() for name in sizes["cuda"]}:
        assert test_spectral_norm.case(preset).shape in predicted_shapes, preset


def test_without_nvcc_the_figures_of_cuda_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = json.loads(figures.FILE.read_text())
    monkeypatch.setattr(figures, "FILE", tmp_path / "figures.json")
    figures.FILE.write_text(json.dumps(kept | {"sources": {"triton": "old", "cuda": "older"}}))
    monkeypatch.setattr(cuda, "nvcc", lambda: None)
    monkeypatch.setattr("benchmarks.predictions.cases.CASES", ())
    figures.write(lambda text: None)
    with pytest.raises(RuntimeError, match=r"\(cuda\): put the CUDA toolkit's nvcc on PATH, and run"):
        figures.load()
    written = json.loads(figures.FILE.read_text())
    assert written["cases"] == [case for case in kept["cases"] if case["suite"] == "spectral_norm"]
    assert figures.stale() == ["cuda"], "kept figures do not pass for new ones"


LISTING = """
	//## File "/csrc/power_iteration.cu", line {call}
.L_x_1:
        /*0000*/                   LDG.E R1, [R2] ;
	//## File "/usr/include/math.h", line 3 inlined at "/csrc/power_iteration.cu", line {loop}
	//## File "/csrc/power_iteration.cu", line {loop} inlined at "/csrc/power_iteration.cu", line {call}
	//## File "/csrc/power_iteration.cu", line {call}
.L_x_2:
        /*0010*/                   LDS R1, [R2] ;
        /*0020*/                   FFMA R1, R1, R1, R1 ;
        /*0030*/                   FFMA R1, R1, R1, R1 ;
        /*0040*/              @!P0 BRA `(.L_x_2) ;
	//## File "/csrc/power_iteration.cu", line {call}
        /*0050*/               @P1 BRA `(.L_x_1) ;
	//## File "/csrc/power_iteration.cu", line 1
        /*0060*/                   EXIT ;
"""


def test_loops_of_cuda_are_counted_by_what_their_source_does() -> None:
    text = (cuda.CSRC / "power_iteration.cu").read_text().splitlines()
    phase = cuda.FORWARD[0]
    loop = replace(phase.loops[0], turns=lambda rows, cols: 40)
    lines = {name: next(at for at, line in enumerate(text, 1) if words in line)
             for name, words in (("call", phase.call), ("loop", loop.text))}  # fmt: skip
    code = cuda.parsed(LISTING.format(**lines), "power_iteration.cu")
    assert [one.operation for one in code] == ["LDG.E", "LDS", "FFMA", "FFMA", "BRA", "BRA", "EXIT"]
    assert [one.target for one in code] == [None, None, None, None, 1, 0, None]
    counted = replace(phase, loops=(loop,), tasks=lambda rows, cols: 3)
    # 40 turns of a loop unrolled twice; the other two instructions of the call once a task
    assert cuda.issued(code, counted, [(8, 32)], str) == {"LDS": 20, "FFMA": 40, "BRA": 23, "LDG.E": 3}
    assert cuda.issued(code, replace(counted, never=re.escape(phase.call)), [(8, 32)], str) == {
        "LDS": 20,
        "FFMA": 40,
        "BRA": 20,
    }
    missing = replace(phase, loops=(replace(loop, once="DFMA"),))
    with pytest.raises(ValueError, match="no loop in the machine code"):
        cuda.issued(code, missing, [(8, 32)], str)


def test_comments_do_not_make_figures_stale() -> None:
    plain = figures._without_docstrings(ast.parse("def f():\n    return 1"))
    told = figures._without_docstrings(ast.parse('"""All."""\ndef f():\n    """What."""\n    return 1  # why'))
    other = figures._without_docstrings(ast.parse("def f():\n    return 2"))
    assert figures._tree(plain) == figures._tree(told) != figures._tree(other)


def test_figures_do_not_depend_on_the_version_of_python() -> None:
    code = "def f(x: int) -> int:\n    return x + 1"
    plain, later = ast.parse(code), ast.parse(code)
    function = later.body[0]
    assert isinstance(function, ast.FunctionDef)
    type(function)._fields, before = (*function._fields, "since_a_later_version"), function._fields
    try:
        function.since_a_later_version = []  # type: ignore[attr-defined]
        assert repr(figures._tree(plain)) == repr(figures._tree(later))
    finally:
        type(function)._fields = before


def test_a_measurement_stands_beside_its_prediction_and_no_other() -> None:
    case = next(case for case in figures.load() if case.target == H200.target)
    same = row(suite=case.suite, shape=case.shape, dtype=case.dtype, measures=case.measures)
    text = predicted.section([run(same, device="NVIDIA H200")])
    assert text.count("2.00 ms") == 1
    assert "gradients, &lt;G, W&gt;" in text
    assert text.count(model.LABEL) > len(GPUS)
    assert "2.00 ms" not in predicted.section([run(same, device="NVIDIA H100")])
    assert "2.00 ms" not in predicted.section([run(replace(same, dtype="float32"), device="NVIDIA H200")])


def test_stale_figures_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "digests", lambda: {"triton": "another"})
    assert "older than the kernels" in predicted.section([])
    with pytest.raises(RuntimeError, match="--compile"):
        figures.load()
