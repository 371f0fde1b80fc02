"""The model: a kernel takes as long as its busiest resource does at its published rate, and a launch besides.

Of each launch, on the multiprocessor that gets the most programs:

    memory    every tensor that the launch is given goes once over the memory bus; what an earlier launch of the case
              has touched comes from the L2 cache where no more than that holds was touched since
    tensor    its matrix products, whole tiles, at the tensor cores' dense rate
    fp32      additions, multiplications and multiply-adds of the compiled code, by the lanes there are
    double    the same in float64, which the CUDA kernels add norms and inner products up in
    special   exp2, log2, sine and reciprocals, 16 lanes
    issue     all instructions: one a clock and scheduler, as far as enough warps are resident to hide their latency

How many programs are resident follows from registers, shared memory and warps (occupancy). The longest of these is the
time; LAUNCH is added for each kernel. ISSUE_GAP and LAUNCH are assumptions, not measurements.

A phase of a CUDA kernel counts as a launch, since a barrier of the whole grid stands before it.

Nothing else is modelled: caches serve every second read within a launch, at no cost, nothing waits for memory once
enough warps are there, clocks stay at their boost, and the host is never late. What PyTorch launches between the
kernels (sums of partial results) is left out. So a prediction ranks kernels and names what holds each of them up; a
measurement may be some times longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.predictions.devices import GPUS, REGISTERS, SCHEDULERS, SPECIAL_LANES, Gpu
from benchmarks.predictions.figures import CaseFigures, Figures

ISSUE_GAP = 4  # clocks between two instructions of one warp: as if each waited for the result of the one before it
LAUNCH = 2e-6  # seconds from the end of a kernel to the start of the next
LABEL = "predicted, not measured"


@dataclass(frozen=True)
class Prediction:
    """Seconds of one launch, and which resource they are of."""

    seconds: float
    bound: str
    occupancy: float  # resident warps of those that there is room for


def resident_programs(figures: Figures, gpu: Gpu) -> int:
    """How many programs a multiprocessor holds at a time; 0 where not even one fits."""
    registers_of_a_warp = -(-figures.registers // 8) * 8 * 32
    by_registers = REGISTERS // (registers_of_a_warp * figures.warps)
    by_shared = gpu.shared // (figures.shared + 1024)  # the driver's own kilobyte
    return min(gpu.warps // figures.warps, by_registers, by_shared, gpu.blocks)


def predicted(figures: Figures, gpu: Gpu) -> Prediction:
    """The time of one launch. ValueError where a program does not fit."""
    resident = resident_programs(figures, gpu)
    if resident == 0:
        raise ValueError(f"{figures.kernel}: no multiprocessor of {gpu.name} holds one program")
    most = -(-figures.programs // gpu.multiprocessors)
    warps = min(resident, most) * figures.warps
    issued = {kind: most * figures.warps * count for kind, count in figures.instructions.items()}
    rate = SCHEDULERS * min(1.0, warps / SCHEDULERS / ISSUE_GAP)
    clocks = {
        "issue": sum(issued.values()) / rate,
        "fp32": issued.get("fp32", 0) * 32 / gpu.fp32_lanes,
        "double": issued.get("double", 0) * 32 / gpu.fp64_lanes,
        "special": issued.get("special", 0) * 32 / SPECIAL_LANES,
        "tensor": most * sum(flops / gpu.tensor_flops[_operands(dtype)] for dtype, flops in figures.flops.items()),
    }
    seconds = {name: value / gpu.clock for name, value in clocks.items()}
    again = figures.again if figures.since > gpu.l2 else 0
    seconds["memory"] = (figures.bytes + again) / gpu.bytes_per_second
    bound = max(seconds, key=lambda name: seconds[name])
    return Prediction(seconds[bound] + LAUNCH, bound, resident * figures.warps / gpu.warps)


def total(case: CaseFigures, gpu: Gpu) -> float:
    """Seconds of all launches of a case."""
    return sum(kernel.launches * predicted(kernel, gpu).seconds for kernel in case.kernels)


def text(cases: Sequence[CaseFigures]) -> str:
    """A table for a terminal."""
    lines = [LABEL]
    for gpu in GPUS:
        lines += ["", gpu.name]
        for case in cases:
            if case.target == gpu.target:
                shape = " ".join(f"{name}={size}" for name, size in case.shape.items())
                lines.append(f"  {case.suite} {case.measures} {case.dtype} {shape}: {1e3 * total(case, gpu):.3f} ms")
                for kernel in case.kernels:
                    one = predicted(kernel, gpu)
                    lines.append(
                        f"    {kernel.kernel:<22} x {kernel.launches:<3} {1e6 * one.seconds:9.1f} us  {one.bound:<8}"
                        f" occupancy {one.occupancy:4.0%}  {kernel.registers} registers, {kernel.shared} bytes shared"
                    )
    return "\n".join(lines)


def _operands(dtype: str) -> str:
    return "tf32" if dtype == "f32" else dtype
