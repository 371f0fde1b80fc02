"""What the modulated SIREN launches in the paper's generator, to be compiled for real GPUs."""

from functools import partial
from itertools import pairwise
from typing import Any

import torch

from tests.aot.compiler import Case
from vitgan_kernels.modulated_siren import stack


def run(
    dtype: torch.dtype,
    widths: list[int],
    *,
    batch: int,
    points: int,
    shared: bool = True,
    scaled: bool = False,
    tf32: bool = False,
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
        stack.forward(x, layers, 30.0, False)
        stack.backward(empty(batch, points, widths[-1]), x, layers, 30.0, False, [True, True, True])
    finally:
        torch.backends.cuda.matmul.fp32_precision = setting


def cases() -> list[Case]:
    """One hidden layer and two, of the widths of the presets and of the widest that is fused, in every precision."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    one, two = partial(run, batch=256, points=64), partial(run, batch=512, points=16)
    head, deep, wide = [384, 384, 3], [384, 384, 384, 3], [512, 512, 512, 3]
    return [
        Case("bf16, 384, 1 hidden", partial(one, bf16, head), quick=True),
        Case("bf16, 384, 2 hidden", partial(two, bf16, deep), quick=True),
        Case("bf16, 512, 2 hidden, demodulated", partial(two, bf16, wide, shared=False, scaled=True)),
        Case("bf16, 32, 1 hidden", partial(one, bf16, [32, 32, 3])),
        Case("bf16, 1024, 1 layer", partial(two, bf16, [1024, 1024], shared=False, scaled=True)),
        Case("fp16, 384, 2 hidden", partial(two, fp16, deep)),
        Case("tf32, 384, 1 hidden", partial(one, fp32, head, tf32=True)),
        Case("tf32, 256, 2 hidden, demodulated", partial(two, fp32, [256, 256, 256, 3], scaled=True, tf32=True)),
        Case("tf32, 512, 2 hidden", partial(two, fp32, wide, tf32=True)),
        Case("fp32, 384, 2 hidden", partial(two, fp32, deep), tensor_cores=False),
    ]
