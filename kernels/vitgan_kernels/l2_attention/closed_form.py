"""The closed forms of L2 attention and its first two derivatives, in plain PyTorch, any floating dtype.

What the kernels compute tile by tile, here with whole matrices. Q (..., N, d), K (..., M, d), V (..., M, e); K is None
where it is Q. Scores s_ij = f(x_ij), x_ij = ||q_i - k_j||^2, with f(x) = -scale * x or -scale * sqrt(x).

Order 0:  P = softmax(s), O = P V, L_i = log2 sum_j exp(s_ij), kept as two numbers, of which the second is what the
    rounding of the first left over. For the squared distance s leaves out -scale * ||q_i||^2, which P does not see.

Order 1, from dO:  dV = P^T dO; dP = dO V^T; D_i = dO_i . O_i; dS = P * (dP - D); E = 2 f' * dS;
    dQ = rowsum(E) Q - E K;  dK = colsum(E) K - E^T Q.

Order 2, from the cotangents A of dQ, B of dK, C of dV (A is a tangent of Q, B of K, C of V):
    y_ij = (q_i - k_j) . (A_i - B_j);  G = 2 f' * y, the tangent of s;  g_i = sum_j P_ij G_ij;  X = dO C^T;
    R = P * (G - g), the tangent of P;  W = (dP - D) * (G - g) + X;  H = P * (W - w), w_i = sum_j P_ij W_ij;
    F = 2 f' * H + 4 f'' * y * dS;
    ddO = R V + P C;  dV2 = R^T dO;
    dQ2 = rowsum(E) A - E B + rowsum(F) Q - F K;  dK2 = colsum(E) B - E^T A + colsum(F) K - F^T Q.

With K = Q a gradient is the sum of those of Q and of K, and A is the cotangent of both.
At distance zero the slope of the distance is taken as 0, like PyTorch's norm does.
"""

import math

import torch
from torch import Tensor

from vitgan_kernels.l2_attention.centering import centred

LOG_2 = math.log(2)


def forward(q: Tensor, k: Tensor | None, v: Tensor, scale: float, euclidean: bool) -> tuple[Tensor, Tensor]:
    """O in the dtype of v and L (2, ..., N) in at least float32; its second number is 0 here."""
    queries, keys, values = _precise(q, k, v)
    scores, _, _ = _scores(queries, keys, scale, euclidean)
    lse = torch.logsumexp(scores, -1) / LOG_2
    return (torch.softmax(scores, -1) @ values).to(v.dtype), torch.stack([lse, torch.zeros_like(lse)])


def backward(
    grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, scale: float, euclidean: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """dQ, dK (None where K is Q), dV, in the dtypes of the inputs."""
    queries, keys, values = _precise(q, k, v)
    grad = grad.to(values.dtype)
    scores, slope, _ = _scores(queries, keys, scale, euclidean)
    p, dp = torch.softmax(scores, -1), grad @ values.mT
    e = slope * p * (dp - (p * dp).sum(-1, keepdim=True))
    dq = _difference(e, queries, keys)
    dk = _difference(e.mT, keys, queries)
    dv = (p.mT @ grad).to(v.dtype)
    return ((dq + dk).to(q.dtype), None, dv) if k is None else (dq.to(q.dtype), dk.to(k.dtype), dv)


def double_backward(
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    scale: float,
    euclidean: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """ddO, dQ2, dK2 (None where K is Q), dV2, in the dtypes of the inputs. Differentiable by autograd, to any order."""
    queries, keys, values = _precise(q, k, v)
    along_q, along_k, along_v = _precise(a, b, c)
    cotangent = grad.to(values.dtype)
    scores, slope, inverse = _scores(queries, keys, scale, euclidean)
    p, dp, x = torch.softmax(scores, -1), cotangent @ values.mT, cotangent @ along_v.mT
    delta = (p * dp).sum(-1, keepdim=True)
    y = (queries * along_q).sum(-1).unsqueeze(-1) + (keys * along_k).sum(-1).unsqueeze(-2)
    y = y - queries @ along_k.mT - along_q @ keys.mT
    tangent, ds = slope * y, p * (dp - delta)
    g = (p * tangent).sum(-1, keepdim=True)
    r = p * (tangent - g)
    weights = (dp - delta) * (tangent - g) + x
    h = p * (weights - (p * weights).sum(-1, keepdim=True))
    e, f = slope * ds, slope * h
    if euclidean:
        f = f - slope * inverse * y * ds
    dq = _difference(e, along_q, along_k) + _difference(f, queries, keys)
    dk = _difference(e.mT, along_k, along_q) + _difference(f.mT, keys, queries)
    ddo, dv = (r @ values + p @ along_v).to(grad.dtype), (r.mT @ cotangent).to(v.dtype)
    return (ddo, (dq + dk).to(q.dtype), None, dv) if k is None else (ddo, dq.to(q.dtype), dk.to(k.dtype), dv)


def _precise(q: Tensor, k: Tensor | None, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries = q.to(dtype)
    return queries, queries if k is None else k.to(dtype), v.to(dtype)


def _scores(q: Tensor, k: Tensor, scale: float, euclidean: bool) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """s, 2 f' and 1 / x (0 at x = 0; for the squared distance, which has no use for it, 0)."""
    if not euclidean:
        q, k = centred(q, k)
        return scale * (2 * q @ k.mT - k.square().sum(-1).unsqueeze(-2)), -2 * scale, 0.0
    squares = (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
    zero = squares == 0
    squares = torch.where(zero, 1, squares)  # whose derivatives are finite
    root, inverse = torch.where(zero, 0, squares.sqrt()), torch.where(zero, 0, 1 / squares)
    return -scale * root, -scale * torch.where(zero, 0, squares.rsqrt()), inverse


def _difference(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """sum_j weights_ij (x_i - y_j)."""
    return weights.sum(-1, keepdim=True) * x - weights @ y
