"""What only a GPU can show: CUDA graphs, memory as the allocator counts it, offsets beyond 32 bits."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from vitgan_kernels import modulated_linear, modulated_siren

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def network(widths: list[int], batch: int, points: int) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Shared x, weights, styles and biases in bfloat16, all of which require gradients."""

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, device="cuda")).bfloat16().requires_grad_()

    return (
        random(points, widths[0]),
        [random(o, i, scale=i**-0.5) for i, o in pairwise(widths)],
        [random(batch, i) for i in widths[:-1]],
        [random(o) for o in widths[1:]],
    )


def step(x: Tensor, weights: list[Tensor], styles: list[Tensor], biases: list[Tensor], **options: Any) -> list[Tensor]:
    """The output and all gradients."""
    out = modulated_siren(x, weights, styles, biases, omega=1.5, backend="triton", **options)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), [x, *weights, *styles, *biases])]


@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("widths", [[96, 96, 3], [96, 96, 96, 3], [96, 96, 96, 96, 3]], ids=str)
def test_a_cuda_graph_replays_both_passes_bit_for_bit(widths: list[int], demodulate: bool) -> None:
    parts = network(widths, 64, 16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, and fills the caches of the allocator
            step(*parts, demodulate=demodulate)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step(*parts, demodulate=demodulate)
    with torch.no_grad():
        for style in parts[2]:
            style.normal_()  # the graph reads it anew
    for _ in range(2):
        graph.replay()
        expected = step(*parts, demodulate=demodulate)
        assert all(torch.equal(a, b) for a, b in zip(replayed, expected, strict=True))


@pytest.mark.parametrize("widths", [[384, 384, 3], [384, 384, 384, 3], [100, 513, 17]], ids=str)
def test_results_repeat_bit_for_bit(widths: list[int]) -> None:
    parts = network(widths, 512, 16)
    first = step(*parts)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, step(*parts), strict=True))


@pytest.mark.parametrize("hidden_layers", [1, 2])
def test_the_head_at_128_pixels_needs_a_third_of_the_memory(hidden_layers: int) -> None:
    parts = network([384] * (hidden_layers + 1) + [3], 8 * 16 * 16, 64)

    def eager() -> None:
        x, weights, styles, _ = parts
        for index, (weight, style) in enumerate(zip(weights, styles, strict=True)):
            x = (x * style.unsqueeze(1)) @ weight.t()
            x = torch.sin(30 * x) if index < hidden_layers else x
        torch.autograd.grad(x.float().square().sum(), [parts[0], *weights, *styles])

    peaks = []
    for run in (eager, lambda: step(*parts)):
        run()  # compiles
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] >= 3 * peaks[1]


def test_more_than_two_to_the_31_elements() -> None:
    width, points = 64, 64
    batch = 2**31 // (width * points) + 40
    needed = 3 * 2 * batch * points * width
    free, _ = torch.cuda.mem_get_info()
    if free < 1.2 * needed:
        pytest.skip(f"needs {1.2 * needed / 2**30:.0f} GB of free memory, and has {free / 2**30:.0f}")
    x = torch.zeros(batch, points, width, device="cuda", dtype=torch.bfloat16)
    x[-40:].normal_()
    weight = (torch.randn(width, width, device="cuda") / 8).bfloat16().requires_grad_()
    style = torch.ones(batch, width, device="cuda", dtype=torch.bfloat16).requires_grad_()
    x.requires_grad_()
    out = modulated_linear(x, weight, style, backend="triton")
    last = modulated_linear(x[-40:].detach(), weight.detach(), style[-40:].detach(), backend="triton")
    torch.testing.assert_close(out[-40:], last, rtol=0, atol=0)
    out.backward(torch.ones_like(out))
    assert x.grad is not None
    torch.testing.assert_close(x.grad[-1], x.grad[0], rtol=0, atol=0)
