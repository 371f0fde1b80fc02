"""L2 attention: squared distances with tied queries and keys as in ViTGAN's discriminator, and distances themselves."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import attention
from benchmarks.cases import MEASURES, Case, Inputs
from benchmarks.environment import pick_device
from benchmarks.measure import Implementation
from vitgan_kernels import l2_attention, reference

DEVICE = pick_device()
ON_CPU = DEVICE.type == "cpu"
F32, BF16 = torch.float32, torch.bfloat16
Size = tuple[int, int, int, int]  # batch, heads, tokens, width
if ON_CPU:
    HEADLINES: list[Size] = [(8, 6, 65, 64)]
    TIED = [(each, F32) for each in ((64, 6, 65, 64), (2, 6, 257, 64), (1, 6, 1025, 64), (16, 2, 17, 32))]
    TIED = [(HEADLINES[0], F32), (HEADLINES[0], BF16), *TIED]
    UNTIED = [((8, 4, 65, 96), F32), ((4, 4, 257, 96), F32)]
else:
    HEADLINES = [(512, 6, 65, 64), (128, 6, 257, 64), (32, 6, 1025, 64)]
    more = [(128, 6, 65, 64), *((16, 6, n, 64) for n in (129, 257, 513, 2049, 4097)), (2048, 6, 65, 64)]
    TIED = [(each, BF16) for each in (*HEADLINES, *more)]
    UNTIED = [((64, 4, 65, 96), BF16), ((16, 4, 257, 96), BF16)]
NO_SECOND = "it has no second derivative"


def case(size: Size, dtype: torch.dtype, measures: str, euclidean: bool = False) -> Case:
    """Least bytes: inputs and the cotangent once, results once. Operations: N^2 d products, two each, of 2 in the
    forward, 5 more in the backward, 12 more in its backward."""
    batch, heads, tokens, width = size
    count = 3 if euclidean else 2

    def inputs(seed: int) -> Inputs:
        random = torch.Generator(DEVICE).manual_seed(seed)
        *found, grad = (torch.randn(size, generator=random, device=DEVICE).to(dtype) for _ in range(count + 1))
        return found, [grad]

    whole = batch * heads * tokens * width * dtype.itemsize
    product = 2.0 * batch * heads * tokens**2 * width
    exact = attention.distances if euclidean else tied(reference.l2_attention)
    return Case(
        suite="l2_attention",
        name=f"{'euclidean ' if euclidean else ''}({batch}, {heads}, {tokens}, {width})",
        dtype=dtype,
        measures=measures,
        inputs=inputs,
        exact=exact,
        plain=partial(reference.l2_attention, metric="euclidean") if euclidean else attention.eager,
        wanted=tuple(range(count)),
        bytes=whole * (count + 1 if measures == "forward" else 2 * count + 1),
        flops=product * {"forward": 2, "forward_backward": 7, "second_order": 19}[measures],
    )


def tied(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda q, v: function(q, None, v)


def implementations(case: Case, compiled: bool) -> list[Implementation]:
    one, (q, v) = case.implementation, case.inputs(0)[0][:2]
    ours = case.ours("l2_attention", tied(l2_attention), [q, None, v], compiled)
    no_second = NO_SECOND if case.measures == "second_order" else None
    if compiled:
        no_backward = "it has no backward on the CPU" if ON_CPU and case.measures != "forward" else None
        tuned = "autotuning on the CPU takes minutes" if ON_CPU else None
        return [
            *ours,
            one("eager, compiled", attention.eager, compiled="default"),
            one("eager in float32, compiled", tied(reference.l2_attention), compiled="default"),
            one("FlexAttention", attention.Flex(), unable=no_second or no_backward),
            one("eager, max-autotune", attention.eager, compiled="max-autotune-no-cudagraphs", unable=tuned),
        ]
    return [
        *ours,
        one("eager", attention.eager),
        one("eager in float32", tied(reference.l2_attention)),
        one("SDPA, one more feature", attention.sdpa, unable=no_second),
        one("SDPA, math backend", attention.sdpa_math),
    ]


def euclidean_implementations(case: Case, compiled: bool) -> list[Implementation]:
    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return l2_attention(q, k, v, metric="euclidean")

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.l2_attention(q, k, v, metric="euclidean")

    no_second = NO_SECOND if case.measures == "second_order" else None
    found = case.ours("l2_attention", ours, case.inputs(0)[0], compiled, metric="euclidean")
    end, mode = (", compiled", "default") if compiled else ("", None)
    return [
        *found,
        case.implementation(f"torch.cdist{end}", attention.cdist, compiled=mode, unable=no_second),
        case.implementation(f"eager{end}", eager, compiled=mode),
        case.implementation(f"eager, expanded{end}", attention.distances, compiled=mode),
    ]


def cases(sizes: list[tuple[Size, torch.dtype]]) -> list[object]:
    """Each size in each order of derivative; the sizes of HEADLINES are rows of the README."""
    return [
        pytest.param(size, dtype, measures, id=f"{size}-{dtype}-{measures}",
                     marks=[pytest.mark.headline] if size in HEADLINES and measures != "forward" else [])
        for size, dtype in sizes for measures in MEASURES
    ]  # fmt: skip


COMPILED = pytest.mark.parametrize("compiled", [False, True], ids=["direct", "compiled"])


@COMPILED
@pytest.mark.parametrize(("size", "dtype", "measures"), cases(TIED))
def test_l2_attention(
    size: Size, dtype: torch.dtype, measures: str, compiled: bool, compare: Callable[..., None]
) -> None:
    found = case(size, dtype, measures)
    compare(found, implementations(found, compiled))


@COMPILED
@pytest.mark.parametrize(("size", "dtype", "measures"), cases(UNTIED))
def test_euclidean(size: Size, dtype: torch.dtype, measures: str, compiled: bool, compare: Callable[..., None]) -> None:
    if measures == "second_order" and size != UNTIED[0][0]:
        pytest.skip(f"its second order is measured at {UNTIED[0][0]} alone: eager takes gigabytes beyond")
    found = case(size, dtype, measures, euclidean=True)
    compare(found, euclidean_implementations(found, compiled))
