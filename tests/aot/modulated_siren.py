"""What the modulated SIREN launches in the paper's generator, to be compiled for real GPUs."""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from tests.aot.compiler import Case

from vitgan_kernels import triton_support
from vitgan_kernels.modulated_siren import launch


def run(
    dtype: torch.dtype, batch: int, points: int, widths: list[int], *, shared: bool, scaled: bool, tf32: bool = False
) -> None:
    """Forward and backward passes on tensors without values."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(points, widths[0]) if shared else empty(batch, points, widths[0])
    layers: list[Any] = [
        (empty(o, i), empty(batch, i), empty(batch, o, dtype=torch.float32) if scaled else None, empty(o))
        for i, o in pairwise(widths)
    ]
    setting = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        launch.forward(x, layers, 30.0, False)
        launch.backward(empty(batch, points, widths[-1]), x, layers, 30.0, False)
    finally:
        torch.backends.cuda.matmul.fp32_precision = setting


def cases() -> list[Case]:
    """One hidden layer and two, of the widths of the presets and of the widest that is fused, in every precision."""
    half = torch.bfloat16
    return [
        Case("bf16, 384, 1 hidden", partial(run, half, 256, 64, [384, 384, 3], shared=True, scaled=False), quick=True),
        Case("bf16, 384, 2 hidden", partial(run, half, 512, 16, [384, 384, 384, 3], shared=True, scaled=False), quick=True),
        Case("bf16, 512, 2 hidden, demodulated", partial(run, half, 512, 16, [512, 512, 512, 3], shared=False, scaled=True)),
        Case("bf16, 32, 1 hidden", partial(run, half, 256, 64, [32, 32, 3], shared=True, scaled=False)),
        Case("fp16, 384, 2 hidden", partial(run, torch.float16, 512, 16, [384, 384, 384, 3], shared=True, scaled=False)),
        Case("tf32, 384, 1 hidden", partial(run, torch.float32, 256, 64, [384, 384, 3], shared=True, scaled=False, tf32=True)),
        Case("tf32, 512, 2 hidden", partial(run, torch.float32, 512, 16, [512, 512, 512, 3], shared=True, scaled=True, tf32=True)),
        Case("fp32, 384, 2 hidden", partial(run, torch.float32, 512, 16, [384, 384, 384, 3], shared=True, scaled=True), tensor_cores=False),
        Case("bf16, 1024, 1 layer", partial(run, half, 512, 16, [1024, 1024], shared=False, scaled=True)),
    ]  # fmt: skip
