"""GPUs as their makers publish them, for predictions of times that nobody has measured."""

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
    warps: int  # that a multiprocessor holds
    blocks: int
    shared: int  # bytes of a multiprocessor
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
        warps=64,
        blocks=32,
        shared=228 * 1024,
        source="NVIDIA H200 data sheet (SXM: 4.8 TB/s, 989 TFLOP/s of dense bfloat16), H100 architecture paper",
    ),
    Gpu(
        name="NVIDIA A100",
        target="sm_80",
        multiprocessors=108,
        clock=1.41e9,
        bytes_per_second=2.039e12,
        tensor_flops={"bf16": 2048, "f16": 2048, "tf32": 1024},
        fp32_lanes=64,
        warps=64,
        blocks=32,
        shared=164 * 1024,
        source="NVIDIA A100 data sheet (SXM, 80 GB: 2.039 TB/s, 312 TFLOP/s dense bfloat16), A100 architecture paper",
    ),
    Gpu(
        name="NVIDIA GeForce RTX 4060 Laptop GPU",
        target="sm_89",
        multiprocessors=24,
        clock=2.37e9,
        bytes_per_second=2.56e11,
        tensor_flops={"bf16": 512, "f16": 512, "tf32": 256},
        fp32_lanes=128,
        warps=48,
        blocks=24,
        shared=100 * 1024,
        source="NVIDIA's tables of GeForce laptops (3072 cores, 2.37 GHz at the highest power; 128 bits of 16 Gbit/s), "
        "Ada architecture paper",
    ),
)
