"""GPUs as their makers publish them, for predictions of times that nobody has measured.

Of all of them: resident warps, blocks, registers and shared memory are those of the compute capability in the CUDA
C++ Programming Guide (technical specifications) and in the toolkit's cuda_occupancy.h. A rate per clock times
multiprocessors times clock is what the data sheet has as FLOP/s, dense: the tests hold it to that. Each is named as
its driver names it, so that a measurement is of that card and no sibling with another memory.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Limits and ceilings of a GPU. Rates per clock are of one multiprocessor, a multiply-add being two operations."""

    name: str
    target: str  # what the kernels are compiled for
    multiprocessors: int
    clock: float  # Hz, the published boost clock
    bytes_per_second: float
    tensor_flops: dict[str, int]  # per clock, dense, accumulated in float32, by the operands' dtype
    fp32_lanes: int
    fp64_lanes: int
    warps: int  # that a multiprocessor holds
    blocks: int
    shared: int  # bytes of a multiprocessor
    l2: int  # bytes
    source: str


SPECIAL_LANES = 16  # of the unit for exp2, log2, sin and rsqrt
REGISTERS = 65536
SCHEDULERS = 4

GPUS = (
    Gpu(
        name="NVIDIA H200",
        target="sm_90",
        multiprocessors=132,
        clock=1.83e9,
        bytes_per_second=4.8e12,
        tensor_flops={"bf16": 4096, "f16": 4096, "tf32": 2048},
        fp32_lanes=128,
        fp64_lanes=64,
        warps=64,
        blocks=32,
        shared=228 * 1024,
        l2=50 << 20,
        source="NVIDIA H200 data sheet (SXM: 4.8 TB/s, 989 TFLOP/s of dense bfloat16), H100 architecture paper (132 "
        "multiprocessors; the clock is the one at which its tensor rates hold)",
    ),
    Gpu(
        name="NVIDIA H100 80GB HBM3",
        target="sm_90",
        multiprocessors=132,
        clock=1.83e9,
        bytes_per_second=3.35e12,
        tensor_flops={"bf16": 4096, "f16": 4096, "tf32": 2048},
        fp32_lanes=128,
        fp64_lanes=64,
        warps=64,
        blocks=32,
        shared=228 * 1024,
        l2=50 << 20,
        source="NVIDIA H100 data sheet (SXM: 3.35 TB/s, 989 TFLOP/s of dense bfloat16), H100 architecture paper (132 "
        "multiprocessors; the clock is the one at which its tensor rates hold)",
    ),
    Gpu(
        name="NVIDIA A100-SXM4-80GB",
        target="sm_80",
        multiprocessors=108,
        clock=1.41e9,
        bytes_per_second=2.039e12,
        tensor_flops={"bf16": 2048, "f16": 2048, "tf32": 1024},
        fp32_lanes=64,
        fp64_lanes=32,
        warps=64,
        blocks=32,
        shared=164 * 1024,
        l2=40 << 20,
        source="NVIDIA A100 data sheet (SXM, 80 GB: 2.039 TB/s, 312 TFLOP/s of dense bfloat16), A100 architecture "
        "paper (108 multiprocessors at 1.41 GHz, 1024 multiply-adds a clock each)",
    ),
    Gpu(
        name="NVIDIA GeForce RTX 4060 Laptop GPU",
        target="sm_89",
        multiprocessors=24,
        clock=2.37e9,
        bytes_per_second=2.56e11,
        tensor_flops={"bf16": 512, "f16": 512, "tf32": 256},
        fp32_lanes=128,
        fp64_lanes=2,
        warps=48,
        blocks=24,
        shared=100 * 1024,
        l2=32 << 20,
        source="NVIDIA's tables of GeForce laptops (3072 cores, 2.37 GHz at the highest power; 128 bits of 16 Gbit/s), "
        "Ada architecture paper (per multiprocessor as the RTX 4090: 165 TFLOP/s of dense bfloat16 at 2.52 GHz on 128)",
    ),
)
