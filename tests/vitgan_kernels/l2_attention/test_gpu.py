"""What only a GPU can show of L2 attention. `test_triton.py` runs its grid on the device, too, where there is one."""

import pytest
import torch
from torch import Tensor

from vitgan_kernels import explain, l2_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Tokens on either side of the short path's end, the paper's discriminator first.
SIZES = [(8, 6, 65, 64), (2, 6, 128, 64), (2, 6, 257, 64), (2, 2, 1025, 64), (2, 2, 65, 256)]


def leaves(size: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(size, dtype=dtype, device="cuda", requires_grad=True) for _ in range(2)]


def step(q: Tensor, v: Tensor, backend: str = "triton", queries: int | None = None) -> list[Tensor]:
    """O, its gradients, and those of a gradient penalty; of all tokens, or of the first alone."""
    asked, keys = (q, None) if queries is None else (q[..., :queries, :], q)
    out = l2_attention(asked, keys, v, backend=backend)
    first = torch.autograd.grad(out.square().sum(), (q, v), create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), (q, v))
    return [out, *first, *second]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("queries", [None, 1])
def test_shapes_that_models_have(size: tuple[int, ...], dtype: torch.dtype, queries: int | None) -> None:
    q, v = leaves(size, dtype)
    exact = step(q.detach().double().requires_grad_(), v.detach().double().requires_grad_(), "reference", queries)
    usual = step(q, v, "reference", queries)
    for actual, plain, value in zip(step(q, v, queries=queries), usual, exact, strict=True):
        error, allowed = ((x.double() - value).square().mean().sqrt() for x in (actual, plain))
        size_of_one_rounding = value.square().mean().sqrt() * torch.finfo(dtype).eps
        assert error <= 2 * allowed + size_of_one_rounding


def test_fused_is_what_runs() -> None:
    q, v = leaves(SIZES[0], torch.bfloat16)
    assert explain("l2_attention", q, None, v).startswith("l2_attention: triton runs")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_hundred_repeats_bit_for_bit(size: tuple[int, ...], dtype: torch.dtype) -> None:
    q, v = leaves(size, dtype)
    first = step(q, v)
    for _ in range(100):
        torch.testing.assert_close(step(q, v), first, rtol=0, atol=0)


@pytest.mark.parametrize("size", [SIZES[0], SIZES[2]], ids=str)
def test_a_graph_captures_and_replays_all_orders(size: tuple[int, ...]) -> None:
    q, v = leaves(size, torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(q, v)  # compiles, which a capture may not
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(q, v)
    with torch.no_grad():
        q.normal_()
        v.normal_()
    graph.replay()
    torch.testing.assert_close(captured, step(q, v), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_by_inductor(mode: str) -> None:
    q, v = leaves((4, 6, 65, 64), torch.bfloat16)
    compiled = torch.compile(lambda q, v: l2_attention(q, None, v).square().sum(), fullgraph=True, mode=mode)
    expected = torch.autograd.grad(l2_attention(q, None, v).square().sum(), (q, v))
    for _ in range(3):
        torch.testing.assert_close(torch.autograd.grad(compiled(q, v), (q, v)), expected, rtol=2e-2, atol=2e-2)


def test_tensors_beyond_2_to_the_31_elements() -> None:
    """Tokens outermost, so that one tile's rows are further apart than 32 bits reach."""
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GB of free memory")
    torch.use_deterministic_algorithms(False)  # which would fill the memory
    apart = torch.empty(65, 2**26, dtype=torch.bfloat16, device="cuda")[:, :64].unsqueeze(0).unsqueeze(0)
    apart.normal_()
    together = apart.contiguous()
    torch.testing.assert_close(
        l2_attention(apart, None, apart, backend="triton"), l2_attention(together, None, together, backend="triton")
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_device_that_is_not_the_current_one() -> None:
    q, v = (x.detach().to("cuda:1") for x in leaves(SIZES[0], torch.bfloat16))
    torch.testing.assert_close(
        l2_attention(q, None, v), l2_attention(q, None, v, backend="reference"), rtol=2e-2, atol=2e-2
    )
