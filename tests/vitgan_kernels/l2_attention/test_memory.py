"""What the Triton kernels of L2 attention do with memory: offsets beyond 32 bits, and no copies of strided inputs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitgan_kernels import l2_attention

pytest.importorskip("triton")

import triton
import triton.language as tl

from vitgan_kernels.l2_attention import kernels, launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16  # in float32 the tokens are centred first


@triton.jit
def addresses(X, OUT, head, HEADS, start, stride_b, stride_h, stride_n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = kernels.token_rows((X, stride_b, stride_h, stride_n), head, HEADS, start, BLOCK)
    tl.store(OUT + tl.arange(0, BLOCK), rows.to(tl.int64))


@pytest.mark.parametrize(
    ("head", "start", "strides"),
    [
        (0, 0, (0, 0, 2**29)),  # tokens outermost: one tile spans more than 2^31 elements
        (0, 2**20, (0, 0, 2**12)),
        (23, 0, (2**30, 64, 1024)),
        (23, 16, (2**33, 2**30, 2**31 - 16)),
    ],
    ids=str,
)
def test_offsets_pass_32_bits(head: int, start: int, strides: tuple[int, int, int]) -> None:
    """Addresses only: nothing is read there."""
    x, out = torch.zeros(1, device=DEVICE), torch.zeros(16, dtype=torch.int64, device=DEVICE)
    addresses[(1,)](x, out, head, 6, start, *strides, BLOCK=16)
    b, h, n = strides
    expected = [x.data_ptr() + 4 * (head // 6 * b + head % 6 * h + (start + token) * n) for token in range(16)]
    assert out.tolist() == expected


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every tensor that a kernel was given."""
    seen: list[Tensor] = []
    run = launch._Call.run

    def watched(self: launch._Call, kernel: Any, pointers: list[Tensor], *rest: Any, **options: Any) -> None:
        seen.extend(pointers)
        run(self, kernel, pointers, *rest, **options)

    monkeypatch.setattr(launch._Call, "run", watched)
    return seen


def cut_from_one_projection() -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of a single linear layer, (B, N, 3, H, d) in memory."""
    return torch.randn(2, 7, 3, 2, 8, device=DEVICE, dtype=DTYPE).permute(2, 0, 3, 1, 4).unbind()  # type: ignore[return-value]


def shared_keys() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(*size, device=DEVICE, dtype=DTYPE) for size in ((2, 3, 7, 8), (1, 3, 5, 8), (5, 8)))
    return q, k, v


def three_leading_dimensions() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, 3, 2, 7, 8, device=DEVICE, dtype=DTYPE) for _ in range(3))
    return q, k, v


def padded_features() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, 2, 7, 12, device=DEVICE, dtype=DTYPE)[..., :8] for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("make", [cut_from_one_projection, shared_keys, three_leading_dimensions, padded_features])
def test_strided_inputs_reach_the_kernels_without_a_copy(make: Any, launched: list[Tensor]) -> None:
    q, k, v = make()
    out = l2_attention(q, k, v, backend="triton")
    torch.testing.assert_close(out, l2_attention(q, k, v, backend="reference"), rtol=2e-3, atol=2e-3)
    assert [x.data_ptr() for x in launched[:3]] == [x.data_ptr() for x in (q, k, v)]


def test_features_that_are_not_adjacent_are_copied(launched: list[Tensor]) -> None:
    q = torch.randn(2, 2, 8, 7, device=DEVICE, dtype=DTYPE).mT
    torch.testing.assert_close(
        l2_attention(q, None, q, backend="triton"), l2_attention(q, None, q, backend="reference"), rtol=2e-3, atol=2e-3
    )
    assert launched[0].data_ptr() != q.data_ptr()


def test_tied_queries_are_loaded_once(launched: list[Tensor]) -> None:
    q, v = (torch.randn(2, 2, 7, 8, device=DEVICE, dtype=DTYPE, requires_grad=True) for _ in range(2))
    l2_attention(q, None, v, backend="triton").sum().backward()
    assert {x.data_ptr() for x in launched[:2]} == {q.data_ptr()}


def test_memory_grows_with_the_tokens_and_not_with_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """To second order, as a gradient penalty goes. Nothing runs: the launches' tensors tell."""
    seen: list[Tensor] = []
    monkeypatch.setattr(launch._Call, "run", lambda self, kernel, pointers, *rest, **options: seen.extend(pointers))
    q, v = (torch.randn(1, 1, 1000, 8, device=DEVICE, requires_grad=True) for _ in range(2))
    (gradient,) = torch.autograd.grad(l2_attention(q, None, v, backend="triton").sum(), q, create_graph=True)
    gradient.square().sum().backward()
    assert len(seen) > 40
    assert max(x.numel() for x in seen) == 1000 * 8
