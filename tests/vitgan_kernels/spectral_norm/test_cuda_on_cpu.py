"""What only the CUDA side has: launches, dtypes, devices, errors. The source runs compiled for the CPU."""

from types import ModuleType
from typing import Any

import pytest
import torch

from vitgan_kernels import explain, reference, spectral_norm
from vitgan_kernels.spectral_norm import native, torch_ops


def matrices(count: int = 2) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    weights = [torch.randn(6, 5, requires_grad=True) for _ in range(count)]
    return weights, [torch.randn(6) for _ in weights], [torch.randn(5) for _ in weights]


def call(given: Any, n: int = 1, dtype: torch.dtype | None = None) -> Any:
    return torch_ops.spectral_norm_(*given, None, n, 1e-12, dtype)


def test_one_launch_forward_and_one_backward(cuda_on_cpu: Any) -> None:
    scaled, _, _ = call(matrices(), n=3)
    assert (cuda_on_cpu.cooperative_launches, cuda_on_cpu.launches) == (1, 0)
    torch.stack(scaled).sum().backward()
    assert (cuda_on_cpu.cooperative_launches, cuda_on_cpu.launches) == (2, 0)


def test_a_launch_for_each_phase_where_there_is_no_barrier(cuda_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cooperative", False)
    scaled, _, _ = call(matrices(), n=3)
    assert (cuda_on_cpu.cooperative_launches, cuda_on_cpu.launches) == (0, 7)
    torch.stack(scaled).sum().backward()
    assert (cuda_on_cpu.cooperative_launches, cuda_on_cpu.launches) == (0, 9)


def test_both_ways_give_the_same_bits(cuda_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, u, v = matrices(3)
    results = []
    for cooperative, reverse in ((True, 0), (True, 1), (False, 0), (False, 1)):
        monkeypatch.setattr(native, "cooperative", cooperative)
        cuda_on_cpu.reversed = reverse
        moved = [x.clone() for x in u], [x.clone() for x in v]
        scaled, sigma, vectors = call((weights, *moved), n=2)
        slopes = torch.autograd.grad([x.exp().sum() for x in scaled], weights)
        results.append([*scaled, sigma, vectors, *slopes])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


def test_more_matrices_than_fit_into_one_launch(cuda_on_cpu: Any) -> None:
    weights, u, v = matrices(90)
    expected, sigmas = reference.spectral_norm(weights, [x.clone() for x in u], [x.clone() for x in v])
    scaled, sigma, _ = call((weights, u, v))
    assert cuda_on_cpu.cooperative_launches == 3
    torch.testing.assert_close([*scaled, sigma], [*expected, sigmas])
    actual, plain = (torch.autograd.grad([x.exp().mean() for x in xs], weights) for xs in (scaled, expected))
    torch.testing.assert_close(actual, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scaled_weights_in_the_dtype_asked_for(cuda_on_cpu: Any, dtype: torch.dtype) -> None:
    weights, u, v = matrices()
    weights[1].data[0, :3] = torch.tensor([1e-7, 0.0, -1e-3])
    whole, sigma, _ = call((weights, [x.clone() for x in u], [x.clone() for x in v]))
    scaled, same_sigma, _ = call((weights, u, v), dtype=dtype)
    torch.testing.assert_close(scaled, [x.to(dtype) for x in whole], rtol=0, atol=0)
    torch.testing.assert_close(same_sigma, sigma, rtol=0, atol=0)
    towards = [torch.randn_like(x) for x in scaled]
    actual = torch.autograd.grad(scaled, weights, towards)
    expected = torch.autograd.grad(whole, weights, [x.float() for x in towards])
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_runs_on_its_device_and_stream_and_restores_the_device(cuda_on_cpu: Any) -> None:
    call(matrices())
    assert cuda_on_cpu.launched_on == 1
    assert cuda_on_cpu.stream == 12345
    assert cuda_on_cpu.current == 0


def test_an_error_of_cuda_is_an_exception_with_its_text(cuda_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "the cooperative launch: cudaErrorLaunchFailure: unspecified launch failure"
    cuda_on_cpu.fail_next = 1
    with pytest.raises(RuntimeError, match=f"^vitgan_kernels.spectral_norm: {message}$"):
        call(matrices())
    assert cuda_on_cpu.current == 0, "the device is restored"
    call(matrices())
    monkeypatch.setattr(native, "_device_and_stream", lambda tensor: (7, 0))
    with pytest.raises(RuntimeError, match="setting the device: cudaErrorInvalidDevice: invalid device ordinal"):
        call(matrices())


def test_a_device_that_cannot_run_them_is_explained(cuda_on_cpu: Any) -> None:
    native.device_available.cache_clear()
    assert native.device_available(1) == (True, "CUDA, built for the CPU")
    ok, why = native.device_available(7)
    assert not ok
    assert "cannot run on cuda:7" in why
    assert "cudaErrorInvalidDevice: invalid device ordinal" in why
    assert "VITGAN_CUDA_ARCHS" in why
    native.device_available.cache_clear()


def test_a_workspace_that_is_too_small_is_refused(cuda_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_workspace", lambda *_: torch.empty(1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"the size of the workspace in bytes is 8; it must be at least \d+"):
        call(matrices())


def test_a_dtype_that_there_is_not_is_refused(cuda_on_cpu: Any) -> None:
    with pytest.raises(ValueError, match="dtype is float64; float32, bfloat16 or float16 is needed"):
        call(matrices(), dtype=torch.float64)


def test_the_public_function_says_why_cuda_does_not_run(cuda_module: ModuleType) -> None:
    weights, u, v = matrices()
    assert "cuda      cannot: it works on CUDA devices, the weights are on cpu" in explain(
        "spectral_norm", weights, u, v
    )
    scaled, _ = spectral_norm(weights, u, v, dtype=torch.bfloat16)
    assert {x.dtype for x in scaled} == {torch.bfloat16}
    text = explain("spectral_norm", weights, u, v, dtype=torch.bfloat16)
    assert "cpp       cannot: its scaled weights have the dtype of the weights, torch.bfloat16 was asked for" in text
    meta = [[x.detach().to("meta") for x in tensors] for tensors in (weights, u, v)]
    assert "cuda      cannot: it works on CUDA devices, the weights are on meta" in explain("spectral_norm", *meta)
