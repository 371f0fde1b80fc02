"""The CUDA kernels of spectral normalisation on a GPU: values, gradients, repeatability, other dtypes, CUDA graphs."""

import pytest
import torch
from torch import Tensor, nn

from vitgan_kernels import SpectralNormGroup, reference, spectral_norm
from vitgan_kernels.spectral_norm import native

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None or not native.device_available(0)[0],
    reason="there is no GPU that the compiled extension can use",
)

SHAPES = [(1, 1), (1, 40), (40, 1), (4, 2, 3, 3), (600, 40), (5, 2100), (1536, 384), (384, 1536)]
Matrices = tuple[list[Tensor], list[Tensor], list[Tensor]]


def matrices() -> Matrices:
    """After a few iterations, so that sigma is no small difference of large sums; every second lies transposed."""
    weights = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    u = [torch.randn(weight.shape[0], dtype=torch.float64) for weight in weights]
    v = [torch.randn(weight[0].numel(), dtype=torch.float64) for weight in weights]
    reference.spectral_norm(weights, u, v, n_iterations=3)
    weights = [w.t().contiguous().t() if w.ndim == 2 and i % 2 else w for i, w in enumerate(weights)]
    return weights, u, v


def on_gpu(given: Matrices) -> Matrices:
    weights, u, v = ([x.to("cuda", torch.float32) for x in xs] for xs in given)
    return weights, u, v


def everything(given: Matrices, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Scaled weights, sigma, moved u and v, and the gradients along fixed directions."""
    weights = [weight.requires_grad_() for weight in given[0]]
    scaled, sigma = spectral_norm(weights, *given[1:], n_iterations=2, dtype=dtype, backend=backend)
    towards = [torch.cos(torch.arange(x.numel(), device=x.device)).view(x.shape).to(x.dtype) for x in scaled]
    slopes = torch.autograd.grad([*scaled, sigma], weights, [*towards, torch.ones_like(sigma)])
    return [x.detach() for x in (*scaled, sigma, *given[1], *given[2], *slopes)]


@pytest.mark.parametrize("cooperative", [True, False])
def test_agrees_with_float64(monkeypatch: pytest.MonkeyPatch, cooperative: bool) -> None:
    monkeypatch.setattr(native, "cooperative", cooperative)
    given = matrices()
    actual = everything(on_gpu(given), "cuda")
    exact = everything(given, "reference")
    for ours, theirs in zip(actual, exact, strict=True):
        assert (ours.cpu() - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_repeats_bit_for_bit_with_barriers_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    given = matrices()
    first = everything(on_gpu(given), "cuda")
    for cooperative in (True, False):
        monkeypatch.setattr(native, "cooperative", cooperative)
        torch.testing.assert_close(everything(on_gpu(given), "cuda"), first, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scaled_weights_in_another_dtype_are_those_of_float32_rounded(dtype: torch.dtype) -> None:
    given = matrices()
    count = len(SHAPES)
    whole, rounded = (everything(on_gpu(given), "cuda", chosen) for chosen in (None, dtype))
    torch.testing.assert_close(rounded[:count], [x.to(dtype) for x in whole[:count]], rtol=0, atol=0)


def test_inside_a_cuda_graph() -> None:
    torch.use_deterministic_algorithms(False)  # which fills new memory; the fixture sets it back
    model = nn.Sequential(nn.Linear(40, 300), nn.Tanh(), nn.Linear(300, 1)).cuda()
    group = SpectralNormGroup(model, backend="cuda")
    x = torch.randn(8, 40, device="cuda")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(x).sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad(set_to_none=True)
    state = {name: entry.clone() for name, entry in model.state_dict().items()}

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(x)
        out.sum().backward()
    model.load_state_dict(state)  # a capture runs nothing, and this only makes sure of it
    for _ in range(2):
        graph.replay()
    moved, values = {name: entry.clone() for name, entry in model.state_dict().items()}, out.clone()

    model.load_state_dict(state)
    expected = [model(x).detach() for _ in range(2)][-1]
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(moved, dict(model.state_dict()))
    assert all(sigma > 0 for sigma in group.sigma().values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_another_device_than_the_current_one() -> None:
    weights, u, v = ([x.to("cuda:1", torch.float32) for x in xs] for xs in matrices())
    scaled, _ = spectral_norm(weights, u, v, backend="cuda")
    assert {x.device.index for x in scaled} == {1}
    assert torch.cuda.current_device() == 0
