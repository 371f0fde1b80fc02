"""Every kernel once or twice at small, ragged sizes: what a sanitizer watches. python -m benchmarks.launches

On CUDA, or in Triton's interpreter with TRITON_INTERPRET=1. Exits with status 1 if a result is not finite, or
spectral norm, whose tests run the CUDA source on the CPU, does not agree with the reference.
"""

import sys
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.environment import pick_device
from vitgan_kernels import l2_attention, modulated_siren, spectral_norm


def main() -> int:
    """Launch; the exit status."""
    device = pick_device()
    torch.manual_seed(0)
    wrong = []
    for dtype in (torch.float32, torch.bfloat16):
        for queries, tokens, tied in ((17, 17, True), (1, 17, False), (150, 150, False), (1, 150, False)):
            if not all_finite(attention(queries, tokens, tied, dtype, device)):
                wrong += [f"l2_attention, {queries} queries of {tokens} tokens, tied: {tied}, {dtype}: not finite"]
        for widths, demodulate in (([20, 24], True), ([20, 40, 3], False), ([20, 40, 33, 3], True)):
            if not all_finite(siren(widths, demodulate, dtype, device)):
                wrong += [f"modulated_siren, {widths}, demodulate: {demodulate}, {dtype}: not finite"]
    ours, reference = (normalised(device, name) for name in ("cuda" if device.type == "cuda" else "cpp", "reference"))
    if not all(torch.allclose(*pair, rtol=1e-3, atol=1e-4) for pair in zip(ours, reference, strict=True)):
        wrong += ["spectral_norm: not what the reference computes"]
    print("\n".join(wrong) or "every result is finite")
    return 1 if wrong else 0


def attention(queries: int, tokens: int, tied: bool, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The value, and gradients of order 1 and 2."""
    q, k, v = (
        torch.randn(1, 2, count, 32, dtype=dtype, device=device, requires_grad=True)
        for count in (queries, tokens, tokens)
    )
    leaves = [q, v] if tied else [q, k, v]
    out = l2_attention(q, None if tied else k, v, backend="triton")
    first = torch.autograd.grad(out.float().square().mean(), leaves, create_graph=True)
    penalty = torch.stack([gradient.float().square().sum() for gradient in first]).sum()
    return [out, *first, *torch.autograd.grad(penalty, leaves)]


def siren(widths: list[int], demodulate: bool, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The value and all gradients; x is shared by the samples or not, by turns."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device, requires_grad=True)

    x = leaf(3, 9, widths[0]) if demodulate else leaf(9, widths[0])
    weights = [leaf(o, i) for i, o in pairwise(widths)]
    styles, biases = [leaf(3, i) for i in widths[:-1]], [leaf(o) for o in widths[1:]]
    out = modulated_siren(x, weights, styles, biases, omega=1.0, demodulate=demodulate, backend="triton")
    return [out, *torch.autograd.grad(out.float().square().mean(), [x, *weights, *styles, *biases])]


def normalised(device: torch.device, backend: str) -> list[Tensor]:
    """The scaled weights, sigma, the vectors and the gradients of the weights, from the same numbers at every call."""
    torch.manual_seed(0)
    sizes = [(1, 7), (65, 33), (384, 200)]
    weights = [torch.randn(size, device=device, requires_grad=True) for size in sizes]
    u, v = ([torch.nn.functional.normalize(torch.randn(s[i], device=device), dim=0) for s in sizes] for i in range(2))
    scaled, sigma = spectral_norm(weights, u, v, n_iterations=2, backend=backend)
    loss = torch.stack([weight.square().sum() for weight in scaled]).sum() + sigma.detach().sum()
    return [*scaled, sigma, *u, *v, *torch.autograd.grad(loss, weights)]


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether there is no infinity and no NaN; waits for the device, so that a failed launch is seen here."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


if __name__ == "__main__":
    sys.exit(main())
